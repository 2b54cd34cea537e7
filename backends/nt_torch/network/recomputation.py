"""Activation checkpointing: intermediate values are recomputed in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Run = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def recomputed(run: Run, values: dict[str, Tensor], modules: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Run a function whose intermediate values are not kept for the backward pass.

    The results are bit for bit the same as without recomputation, because dropout draws the same numbers
    again, and running statistics are updated the first time only.

    Args:
        run: a function of the values, which may change the mapping.
        values: inputs of the function.
        modules: the modules that the function runs, whose buffers are unchanged the second time.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _buffers_kept(modules)

    # A compiler separates a function's side effects from its recomputation by itself.
    further = {} if torch.compiler.is_compiling() else {"context_fn": contexts}
    found: dict[str, Tensor] = checkpoint(lambda: run(dict(values)), use_reentrant=False, **further)  # type: ignore[arg-type]
    return found


@contextmanager
def _buffers_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Give modules copies of their buffers to write to, and restore the buffers afterwards."""
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
