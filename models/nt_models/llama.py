"""Decoder-only language models of the LLaMA family."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from nt_core import (
    BlockGraph,
    BlockWriter,
    GraphBuilder,
    GraphError,
    NeuroTrailsError,
    Tensor,
    Tokens,
    architecture,
)
from nt_core.graph.ops import AnyRotaryScaling, Attention, Linear, RMSNorm


@architecture
def llama(
    *,
    blocks: int,
    width: int,
    hidden: int,
    heads: int,
    kv_heads: int | None = None,
    vocabulary: int = 32_000,
    length: int = 1024,
    rotary_base: float = 10_000.0,
    eps: float = 1e-6,
    head_dim: int | None = None,
    attention_bias: bool = False,
    rotary_scaling: AnyRotaryScaling | None = None,
) -> BlockGraph:
    """Make a LLaMA; Touvron et al. 2023, §2.2, and Ainslie et al. 2023 for shared key/value heads.

    The embedding is the stem. Each decoder block is a counted block. The final norm and the output projection
    are the classifier, of which each head has its own in a multi-head structure.

    Args:
        blocks: number of decoder blocks.
        width: features of each token.
        hidden: features inside the gated MLP.
        heads: of queries.
        kv_heads: of keys and values, a divisor of ``heads``; None: as many as ``heads``.
        vocabulary: number of tokens.
        length: of the sequences, in tokens.
        rotary_base: of the rotary positions.
        eps: of the norms.
        head_dim: features of each head; None: width / heads.
        attention_bias: whether the four projections of attention have biases.
        rotary_scaling: of the rotary positions: ``{"kind": "llama3", …}`` or ``{"kind": "linear", …}``, see
            :class:`nt_core.graph.ops.Llama3Scaling`; None: as they are.

    Raises:
        GraphError: the heads do not fit the width, or are odd in size.

    Example:
        >>> graph = llama(blocks=2, width=32, hidden=64, heads=4, kv_heads=2, vocabulary=256, length=16)
        >>> graph.counted, graph.output_shape
        (('block1', 'block2'), (16, 256))
    """
    shared = kv_heads or heads
    size = _head_size(width, heads, shared, head_dim)
    attend = _Attend(heads, shared, size, attention_bias, rotary_base, rotary_scaling)
    net = GraphBuilder(Tokens(length=length, vocabulary=vocabulary))
    with net.stem("embedding") as b:
        b.out = b.embedding(b.inp, vocabulary, width)
    for number in range(1, blocks + 1):
        with net.block(f"block{number}") as b:
            h = b.add(b.inp, _attention(b, b.rms_norm(b.inp, eps=eps), attend))
            b.out = b.add(h, _gated_mlp(b, b.rms_norm(h, eps=eps), hidden))
    with net.classifier("lm_head") as b:
        b.out = _project(b, b.rms_norm(b.inp, eps=eps), vocabulary, "projection")
    return net.build()


@architecture
def llama_tiny(*, vocabulary: int = 256, length: int = 128) -> BlockGraph:
    """Make a LLaMA that trains on a CPU: 4 blocks × 64, MLP 176, 4 heads; by default for bytes.

    Example:
        >>> llama_tiny().output_shape
        (128, 256)
    """
    return llama(blocks=4, width=64, hidden=176, heads=4, kv_heads=2, vocabulary=vocabulary, length=length)


@architecture
def llama_130m(*, vocabulary: int = 32_000, length: int = 1024) -> BlockGraph:
    """Make the LLaMA of 130 M parameters: 12 blocks × 768, MLP 2048, 12 heads (arXiv 2505.17909, §4.3).

    Example:
        >>> len(llama_130m().counted)
        12
    """
    return llama(blocks=12, width=768, hidden=2048, heads=12, vocabulary=vocabulary, length=length)


@architecture
def llama_250m(*, vocabulary: int = 32_000, length: int = 1024) -> BlockGraph:
    """Make the LLaMA of 250 M parameters: 24 blocks × 768, MLP 2560, 16 heads (arXiv 2505.17909, §4.3).

    Example:
        >>> len(llama_250m().counted)
        24
    """
    return llama(blocks=24, width=768, hidden=2560, heads=16, vocabulary=vocabulary, length=length)


@architecture
def llama_350m(*, vocabulary: int = 32_000, length: int = 1024) -> BlockGraph:
    """Make the LLaMA of 350 M parameters: 24 blocks × 1024, MLP 2736, 16 heads (arXiv 2505.17909, §4.3).

    Example:
        >>> len(llama_350m().counted)
        24
    """
    return llama(blocks=24, width=1024, hidden=2736, heads=16, vocabulary=vocabulary, length=length)


@architecture
def llama_1b(*, vocabulary: int = 32_000, length: int = 2048) -> BlockGraph:
    """Make the LLaMA of 1.1 G parameters: 22 blocks × 2048, MLP 5632 (TinyLlama, Zhang et al. 2024, §2.2).

    Example:
        >>> len(llama_1b().counted)
        22
    """
    sizes: dict[str, Any] = {"blocks": 22, "width": 2048, "hidden": 5632, "heads": 32, "kv_heads": 4}
    return llama(**sizes, vocabulary=vocabulary, length=length, eps=1e-5)


@architecture
def llama_7b(*, vocabulary: int = 32_000, length: int = 4096) -> BlockGraph:
    """Make the LLaMA of 6.7 G parameters: 32 blocks × 4096, MLP 11008 (Llama 2, arXiv 2307.09288).

    Example:
        >>> len(llama_7b().counted)
        32
    """
    sizes: dict[str, Any] = {"blocks": 32, "width": 4096, "hidden": 11_008, "heads": 32}
    return llama(**sizes, vocabulary=vocabulary, length=length, eps=1e-5)


@architecture
def llama_13b(*, vocabulary: int = 32_000, length: int = 4096) -> BlockGraph:
    """Make the LLaMA of 13.0 G parameters: 40 blocks × 5120, MLP 13824 (Llama 2, arXiv 2307.09288).

    Example:
        >>> len(llama_13b().counted)
        40
    """
    sizes: dict[str, Any] = {"blocks": 40, "width": 5120, "hidden": 13_824, "heads": 40}
    return llama(**sizes, vocabulary=vocabulary, length=length, eps=1e-5)


@architecture
def llama_34b(*, vocabulary: int = 32_000, length: int = 4096) -> BlockGraph:
    """Make the LLaMA of 33.7 G parameters: 48 blocks × 8192, MLP 22016 (as Code Llama's, arXiv 2308.12950).

    Example:
        >>> len(llama_34b().counted)
        48
    """
    sizes: dict[str, Any] = {"blocks": 48, "width": 8192, "hidden": 22_016, "heads": 64, "kv_heads": 8}
    return llama(**sizes, vocabulary=vocabulary, length=length, eps=1e-5)


@architecture
def llama_70b(*, vocabulary: int = 32_000, length: int = 4096) -> BlockGraph:
    """Make the LLaMA of 69.0 G parameters: 80 blocks × 8192, MLP 28672 (Llama 2, arXiv 2307.09288).

    Example:
        >>> len(llama_70b().counted)
        80
    """
    sizes: dict[str, Any] = {"blocks": 80, "width": 8192, "hidden": 28_672, "heads": 64, "kv_heads": 8}
    return llama(**sizes, vocabulary=vocabulary, length=length, eps=1e-5)


def llama_arguments(graph: BlockGraph) -> dict[str, Any]:
    """Return the arguments with which :func:`llama` makes a graph, of any origin.

    Raises:
        GraphError: no arguments make this graph.

    Example:
        >>> arguments = llama_arguments(llama_tiny())
        >>> arguments["blocks"], arguments["kv_heads"], llama(**arguments) == llama_tiny()
        (4, 2, True)
    """
    with suppress(NeuroTrailsError):
        arguments = _read_arguments(graph)
        if arguments is not None and llama(**arguments) == graph:
            return arguments
    raise GraphError(
        "graph: expected one that nt_models.llama makes, found "
        f"{(graph.origin or {}).get('name', 'another')!r}; make it by llama, or by read_llama_config"
    )


def _read_arguments(graph: BlockGraph) -> dict[str, Any] | None:
    """Read the arguments from the ops of the first block; None: the ops are not those of a LLaMA."""
    ops = {f"{block.name}/{node.name}": node.op for block, node in graph.nodes()}
    norm, queries, attention, gate = (
        ops.get(f"block1/{name}") for name in ("rms_norm1", "q_proj", "attention1", "gate_proj")
    )
    if not (
        isinstance(graph.input, Tokens)
        and isinstance(norm, RMSNorm)
        and isinstance(queries, Linear)
        and isinstance(attention, Attention)
        and isinstance(gate, Linear)
    ):
        return None
    return {
        "blocks": len(graph.counted),
        "width": norm.features,
        "hidden": gate.out_features,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "vocabulary": graph.input.vocabulary,
        "length": graph.input.length,
        "rotary_base": attention.rotary_base,
        "eps": norm.eps,
        "head_dim": queries.out_features // attention.heads,
        "attention_bias": queries.bias,
        "rotary_scaling": attention.rotary_scaling and attention.rotary_scaling.model_dump(),
    }


class _Attend(NamedTuple):
    heads: int
    kv_heads: int
    size: int
    bias: bool
    rotary_base: float
    rotary_scaling: AnyRotaryScaling | None


def _head_size(width: int, heads: int, kv_heads: int, head_dim: int | None) -> int:
    """Return the features of each head.

    Raises:
        GraphError: the heads do not fit.
    """
    if head_dim is None and (heads < 1 or width % heads):
        raise GraphError(
            f"llama: expected heads that divide width={width}, found heads={heads}; choose others, or give "
            "head_dim"
        )
    size = width // heads if head_dim is None else head_dim
    if min(heads, kv_heads, size) < 1 or heads % kv_heads or size % 2:
        raise GraphError(
            "llama: expected heads of an even size (rotary positions turn pairs) and kv_heads that divide "
            f"heads, found heads={heads} of size {size}, kv_heads={kv_heads}"
        )
    return size


def _attention(b: BlockWriter, x: Tensor, how: _Attend) -> Tensor:
    def project(x: Tensor, features: int, name: str) -> Tensor:
        return _project(b, x, features, name, bias=how.bias)

    mixed = b.attention(
        project(x, how.heads * how.size, "q_proj"),
        project(x, how.kv_heads * how.size, "k_proj"),
        project(x, how.kv_heads * how.size, "v_proj"),
        heads=how.heads,
        kv_heads=how.kv_heads,
        causal=True,
        rotary_base=how.rotary_base,
        rotary_scaling=how.rotary_scaling,
    )
    return project(mixed, x.shape[-1], "o_proj")


def _gated_mlp(b: BlockWriter, x: Tensor, hidden: int) -> Tensor:
    """Write SwiGLU; Shazeer 2020, eq. 6."""
    gate = b.activation(_project(b, x, hidden, "gate_proj"), "silu")
    return _project(b, b.multiply(gate, _project(b, x, hidden, "up_proj")), x.shape[-1], "down_proj")


def _project(b: BlockWriter, x: Tensor, features: int, name: str, *, bias: bool = False) -> Tensor:
    return b.linear(x, features, bias=bias, init="normal_002", name=name)
