"""Activation checkpointing: what a function computes inside is forgotten, and computed again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def recomputed(run: Run, values: dict[str, Tensor], modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Run a function whose intermediate values are not kept for the backward pass.

    It gives the same bits as without: dropout draws the same numbers again, and running statistics are
    updated the first time only.

    Args:
        run: a function of the values; may change the mapping it gets.
        values: what it reads.
        modules: those it runs, whose buffers stay as they are the second time.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _buffers_kept(modules)

    # A compiler keeps what a function changes apart from what it computes again.
    further = {} if torch.compiler.is_compiling() else {"context_fn": contexts}
    found: dict[str, Tensor] = checkpoint(lambda: run(dict(values)), use_reentrant=False, **further)  # type: ignore[arg-type]
    return found


@contextmanager
def _buffers_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let modules write to copies of their buffers."""
    held = [
        (module, name, buffer)
        for module in modules
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in held:
        module._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for module, name, buffer in held:
            module._buffers[name] = buffer
