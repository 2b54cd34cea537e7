"""Tensors of a LLaMA in the layout of Hugging Face: names, and a check of names, shapes and dtypes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nt_core import CheckpointError, Layout
from nt_core.files import STORED, StoredTensor
from nt_core.structure import PlacedWeight

EMBEDDING: Final = "model.embed_tokens.weight"
PROJECTION: Final = "lm_head.weight"
OUTSIDE: Final = {
    "embedding/embedding1": EMBEDDING,
    "lm_head/rms_norm1": "model.norm.weight",
    "lm_head/projection": PROJECTION,
}
"""Op before or behind the decoder blocks → tensor."""

IN_BLOCK: Final = {
    "rms_norm1": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "rms_norm2": "post_attention_layernorm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
}
"""Op of a decoder block → module of a decoder layer."""

COMPUTED: Final = "rotary_emb.inv_freq"
"""End of the names of tensors that are ignored, because old versions stored them but all compute them."""

LISTED: Final = 12
"""Number of mistakes of a kind that an error names."""


def tensor_name(placed: PlacedWeight) -> str:
    """Return the name of a LLaMA's weight in transformers, which is the same in each part of a layout.

    Example:
        >>> import nt_models
        >>> from nt_core import MultiHead
        >>> graph = nt_models.llama(blocks=2, width=8, hidden=16, heads=2)
        >>> layout = MultiHead(split=1, heads=2).layout(graph)
        >>> layout.weights[-3].name, tensor_name(layout.weights[-3])
        ('head2/block2/down_proj.weight', 'model.layers.1.mlp.down_proj.weight')
    """
    block, node = placed.block.name, placed.node.name
    if placed.block.kind != "counted":
        return OUTSIDE[f"{block}/{node}"]
    return f"model.layers.{int(block.removeprefix('block')) - 1}.{IN_BLOCK[node]}.{placed.weight.name}"


def sources(layout: Layout, *, tied: bool) -> dict[str, str]:
    """Return the name of the tensor that each weight starts from: full name → tensor.

    Args:
        layout: of a LLaMA, over backbone and heads.
        tied: whether projections start from the embedding.
    """
    names = {placed.name: tensor_name(placed) for placed in layout.weights}
    return {name: EMBEDDING if tied and tensor == PROJECTION else tensor for name, tensor in names.items()}


def expect_tensors(folder: Path, layout: Layout, stored: Mapping[str, StoredTensor], *, tied: bool) -> None:
    """Check that the tensors of a folder are those of a LLaMA.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape or dtype. The message names all of
            them, or the first few of each kind and the number of the others. Or embedding and projection are
            tied, but the projection is stored too and differs.
    """
    tensors = sources(layout, tied=tied)
    shapes = {tensors[placed.name]: placed.weight.shape for placed in layout.weights}
    if tied and PROJECTION in stored:
        shapes[PROJECTION] = shapes[EMBEDDING]
    there = {name: stored[name] for name in shapes if name in stored}
    mistakes = {
        "missing": [name for name in shapes if name not in stored],
        "extra": [name for name in stored if name not in shapes and not name.endswith(COMPUTED)],
        "of another shape": [
            f"{name} (expected {shapes[name]}, found {tensor.shape})"
            for name, tensor in there.items()
            if tensor.shape != shapes[name]
        ],
        "of another dtype": [
            f"{name} (expected {' or '.join(STORED)}, found {tensor.dtype})"
            for name, tensor in there.items()
            if tensor.dtype not in STORED
        ],
    }
    lines = [f"{kind}: {_listed(names)}" for kind, names in mistakes.items() if names]
    if lines:
        raise CheckpointError(
            f"{folder}: its tensors are not those that its config.json describes; restore the files, or "
            "choose a LlamaForCausalLM that was not quantised:\n" + "\n".join(lines)
        )
    if tied and PROJECTION in stored and (stored[PROJECTION].read() != stored[EMBEDDING].read()).any():
        raise CheckpointError(
            f"{folder}: tie_word_embeddings: expected {PROJECTION} absent or equal to {EMBEDDING}, found "
            "other values; set it to false in config.json to keep both, or delete the tensor"
        )


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
