"""The compiled kernels, if they are installed."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import NeuroTrailsError
from nt_cpu.code import ALIGNMENT, Program

_ERROR_BYTES = 512


@cache
def library() -> Any:
    """Load the shared library; None if it is not installed."""
    try:
        import nt_cpu_native as native
    except ImportError:
        return None
    if not hasattr(native, "LIBRARY"):  # the sources' folder
        return None
    found = ctypes.CDLL(str(native.LIBRARY))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    found.nt_open.restype = pointer
    found.nt_open.argtypes = [pointer, integer, pointer, integer, ctypes.c_char_p, integer]
    found.nt_close.argtypes = [pointer]
    found.nt_memory.restype = integer
    found.nt_memory.argtypes = [pointer, integer]
    found.nt_run.restype = ctypes.c_int
    found.nt_run.argtypes = [pointer, pointer, pointer, integer, integer, pointer]
    found.nt_kernels_name.restype = ctypes.c_char_p
    return found


class NativeProgram:
    """A program that the library has read and checked; any number of threads may run it at a time.

    Args:
        program: what :func:`nt_cpu.code.program` wrote.
        threads: how many the library uses for one run.

    Raises:
        NeuroTrailsError: the program is not sound.
    """

    def __init__(self, program: Program, threads: int) -> None:
        self._library, self._program, self.threads = library(), program, threads
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        self._engine = self._library.nt_open(
            program.code.ctypes.data,
            len(program.code),
            program.blob.ctypes.data,
            len(program.blob),
            error,
            _ERROR_BYTES,
        )
        if not self._engine:
            raise NeuroTrailsError(f"program: {error.value.decode()}")
        self._spare: list[NDArray[np.uint8]] = []

    def run(self, inputs: NDArray[np.float32], outputs: NDArray[np.float32]) -> None:
        """Compute logits. (B, *input shape) → (M, B, *output shape), both contiguous."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(self._library.nt_memory(self._engine, self.threads) + ALIGNMENT, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % ALIGNMENT
        code = self._library.nt_run(
            self._engine, inputs.ctypes.data, outputs.ctypes.data, len(inputs), self.threads, start
        )
        assert code == 0, code
        self._spare.append(memory)

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.nt_close(self._engine)


def kernels() -> str | None:
    """Return the instruction set that this machine's kernels use; None if they are not installed."""
    found = library()
    return None if found is None else str(found.nt_kernels_name().decode())
