"""LLaMA in the layout of Hugging Face transformers: ``config.json`` and safetensors, sharded or not.

The module needs neither transformers nor PyTorch. Tensors have the same shapes and meaning in both layouts,
so only names differ. A member is written as a model of its own: its head with the backbone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from nt_core import BlockGraph, CheckpointError, EnsembleSpec, NeuroTrailsError, SpecError
from nt_core.checkpoint import Checkpoint, expect_values
from nt_core.files import INDEX, TENSORS, stored_tensors, write_atomically, write_tensors
from nt_core.topology import initial_masks, magnitude_masks
from nt_models.huggingface.config import ARGUMENTS, CONFIG, LlamaConfig, read_config
from nt_models.huggingface.tensors import expect_tensors, sources, tensor_name
from nt_models.llama import llama, llama_arguments

TOKENS: Final = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
"""Numbers of special tokens that transformers takes where ``config.json`` has no such field."""

KEPT: Final = (*TOKENS, "max_position_embeddings")
"""Fields of ``config.json`` that are not part of a graph; a checkpoint's record keeps them."""

RECORD: Final = "huggingface"
"""The key of a checkpoint's record under which the kept fields are."""


def read_llama_config(folder: str | Path, *, length: int | None = None) -> BlockGraph:
    """Make the graph that a folder's ``config.json`` describes.

    Args:
        folder: written by ``save_pretrained`` of a ``LlamaForCausalLM``, or of a ``MistralForCausalLM``.
        length: of the sequences; None: the greatest, ``max_position_embeddings``.

    Raises:
        CheckpointError: the file is missing or damaged, the network is one that ``llama`` does not compute,
            or the length exceeds the greatest, or a Mistral's window.
    """
    config, _ = read_config(Path(folder))
    return _graph(Path(folder), config, length)


def load_llama(
    folder: str | Path,
    spec: EnsembleSpec | None = None,
    *,
    masks: Literal["initial", "magnitude"] = "initial",
    seed: int = 0,
) -> Checkpoint:
    """Read a pretrained LLaMA into the backbone and every head of a spec.

    Each head starts from the same pretrained blocks, norm and projection. With tied embeddings, projections
    start from the embedding and are independent of it from then on. float16 and bfloat16 become float32.

    Args:
        folder: ``config.json`` and safetensors, sharded or not.
        spec: of the ensemble; None: a dense ``Single`` of the greatest length. Its graph must be the graph of
            :func:`read_llama_config`, at any length.
        masks: initial connections of a sparse spec; all other weights become 0. ``initial``: the masks of
            ``compile``, drawn at random for each head; ``magnitude``: the largest of each weight, as many as
            are allocated to it, and so the same connections in every head.
        seed: keys random masks.

    Returns:
        A checkpoint, which the ``restore`` of each backend turns into a model.

    Raises:
        CheckpointError: a file is missing or damaged, the network is not the spec's, or tensors are missing,
            left over, of another shape or dtype; the message names all of them.
    """
    folder = Path(folder)
    config, content = read_config(folder)
    spec = spec or EnsembleSpec(graph=_graph(folder, config, None))
    _expect_heads(spec)
    _expect_same_network(folder, config, spec)
    kept = TOKENS | _kept(content)
    if config.window is not None:
        kept["max_position_embeddings"] = min(config.max_position_embeddings, config.window)
    stored = stored_tensors(folder)
    expect_tensors(folder, spec.layout, stored, tied=config.tie_word_embeddings)
    tensors = sources(spec.layout, tied=config.tie_word_embeddings)
    values = {name: stored[tensor].read() for name, tensor in tensors.items()}
    if masks == "initial":
        chosen = dict(initial_masks(spec.topology, spec.layout, seed))
    elif masks == "magnitude":
        chosen = dict(magnitude_masks(spec.topology, spec.layout, values))
    else:
        raise SpecError(f"masks: expected 'initial' or 'magnitude', found {masks!r}")
    for name, mask in chosen.items():
        values[name][~mask.dense()] = 0
    return Checkpoint(spec=spec, values=values, masks=chosen, record={RECORD: kept})


def save_llama(
    folder: str | Path, checkpoint: Checkpoint, *, head: int | None = None, overwrite: bool = False
) -> None:
    """Write one member as a folder that ``AutoModelForCausalLM.from_pretrained`` opens, in float32.

    The folder never holds a mixture of two models that could be opened, because the config is written last,
    and an old config is removed first.

    Numbers of special tokens are those of the folder that the values come from. Where there is none they are
    written as null, because transformers takes 1 and 2 where nothing is written.

    Args:
        folder: made if it does not exist; other files in it, those of a tokenizer say, are left alone.
        checkpoint: of a spec whose graph ``llama`` makes; inactive connections are written as zeros.
        head: number of the member, from 1; may be left out for a single member.
        overwrite: whether a model in the folder may be replaced.

    Raises:
        CheckpointError: there is no such head, a value is missing or of a wrong shape, the folder holds a
            model already, it cannot be written, or transformers does not open one with such heads.
        GraphError: the graph is no LLaMA.
    """
    folder, spec = Path(folder), checkpoint.spec
    arguments = llama_arguments(spec.graph)
    if arguments["width"] % arguments["heads"]:
        raise CheckpointError(
            f"{folder}: transformers opens a LLaMA only if its heads divide its width={arguments['width']}, "
            f"found heads={arguments['heads']}; the checkpoint's own format holds any"
        )
    config = LlamaConfig.of(arguments).to_json()
    config |= dict.fromkeys(TOKENS) | _kept(checkpoint.record.get(RECORD, {}))
    _expect_heads(spec)
    expect_values(checkpoint)
    parts = ("backbone", f"head{_expect_head(spec, head)}")
    tensors = {
        tensor_name(placed): checkpoint.values[placed.name].astype("float32", copy=False)
        for placed in spec.layout.weights
        if placed.part in parts
    }
    found = [name for name in (CONFIG, TENSORS, INDEX) if (folder / name).exists()]
    if found and not overwrite:
        raise CheckpointError(f"{folder}: holds {found[0]}; choose another folder, or say overwrite=True")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
        write_tensors(folder / TENSORS, tensors)
        write_atomically(folder / CONFIG, json.dumps(config, indent=2).encode())
    except OSError as error:
        raise CheckpointError(
            f"{folder}: cannot be written ({error.strerror}); make room, or save elsewhere"
        ) from None


def _kept(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: content[key] for key in KEPT if key in content}


def _graph(folder: Path, config: LlamaConfig, length: int | None) -> BlockGraph:
    longest = config.max_position_embeddings
    if length is not None and length > longest:
        raise CheckpointError(
            f"{folder / CONFIG}: max_position_embeddings: expected a length of at most {longest}, found "
            f"{length}; choose a shorter one"
        )
    length = longest if length is None else length
    if config.window is not None and length > config.window:
        raise CheckpointError(
            f"{folder / CONFIG}: sliding_window: expected a window that holds the {length} tokens of a "
            f"sequence, found {config.window}; llama computes no window: give a length of at most "
            f"{config.window} to read_llama_config"
        )
    try:
        return llama(**config.arguments() | {"length": length})
    except NeuroTrailsError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from None


def _expect_same_network(folder: Path, config: LlamaConfig, spec: EnsembleSpec) -> None:
    found = llama_arguments(spec.graph)
    expected = llama_arguments(_graph(folder, config, found["length"]))
    wrong = [
        f"{name}={expected[name]} as its {field} says, found {found[name]}"
        for name, field in ARGUMENTS.items()
        if found[name] != expected[name]
    ]
    if wrong:
        raise CheckpointError(
            f"{folder / CONFIG}: the spec has another graph: expected {'; '.join(wrong)}; make the graph by "
            "read_llama_config"
        )


def _expect_heads(spec: EnsembleSpec) -> None:
    if spec.layout.along != "heads" or spec.layout.divided:
        raise SpecError(
            f"structure: {spec.structure.kind!r} shares kernels among members, which no LLaMA of "
            "Hugging Face does; choose single, independent or multi_head"
        )


def _expect_head(spec: EnsembleSpec, head: int | None) -> int:
    if head is None and spec.members == 1:
        return 1
    if head is None or not 1 <= head <= spec.members:
        raise CheckpointError(
            f"head: expected one of 1 to {spec.members}, found {head}; each is written as a model of its own"
        )
    return head
