"""Fast setting of inactive elements to exactly zero, in place."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 17
"""Elements masked at a time on a CPU, so few that a chunk's widened mask fits the second-level cache."""

WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def remask_(tensor: Tensor, active: Tensor) -> None:
    """Set a tensor to +0 where ``active`` is False, in place of any value (NaN and infinities too).

    Args:
        tensor: floats; changed in place.
        active: bool of the same shape and device.

    Example:
        >>> x = torch.tensor([1.0, float("nan")])
        >>> remask_(x, torch.tensor([True, False]))
        >>> x
        tensor([1., 0.])
    """
    if tensor.device.type == "cpu" and _same_dense_layout(tensor, active):
        _clear_words(_in_storage_order(tensor), _in_storage_order(active))
    else:
        torch.where(active, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device), out=tensor)


def _clear_words(flat: Tensor, active: Tensor) -> None:
    # PyTorch's masked kernels are scalar on CPUs; integer products of bits with 0 or 1 are five times faster.
    words, keep = flat.view(WORDS[flat.element_size()]), active.view(torch.int8)
    scratch = torch.empty(min(CHUNK, words.shape[0]), dtype=words.dtype)
    for start in range(0, words.shape[0], CHUNK):
        part = words[start : start + CHUNK]
        part.mul_(scratch[: part.shape[0]].copy_(keep[start : start + CHUNK]))


def _same_dense_layout(tensor: Tensor, active: Tensor) -> bool:
    # Axes of size 1 have strides without meaning.
    strides = [
        (a, b) for a, b, size in zip(tensor.stride(), active.stride(), tensor.shape, strict=True) if size > 1
    ]
    return all(a == b for a, b in strides) and _is_dense(tensor)


def _is_dense(tensor: Tensor) -> bool:
    sizes = sorted(
        (stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1
    )
    expected = 1
    for stride, size in sizes:
        if stride != expected:
            return False
        expected *= size
    return True


def _in_storage_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,))
