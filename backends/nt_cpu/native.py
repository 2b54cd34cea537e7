"""The compiled kernels, if they are installed."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nt_core.errors import NeuroTrailsError
from nt_core.structure.memory import machine_bytes
from nt_cpu.code import ALIGNMENT, KINDS, MAGIC, VERSION, Program
from nt_cpu.lowering import FUNCTIONS
from nt_cpu.streams import LINE, SETS, TILE, UNIT

VARIABLE = "NT_CPU_KERNELS"
MOST_THREADS: Final = 1024
"""Largest number of threads of one run, because OpenMP ends the process when it cannot make a thread."""

INSTRUCTIONS = ("avx512", "avx2", "portable")
CONSTANTS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "MAGIC": MAGIC,
        "VERSION": VERSION,
        "LINE": LINE,
        "TILE": TILE,
        "UNIT": UNIT,
        "SETS": SETS,
        "THREADS": MOST_THREADS,
        **{name: number for number, name in enumerate(KINDS)},
        "KINDS": len(KINDS),
        **{name: number for number, name in enumerate(FUNCTIONS)},
        "FUNCTIONS": len(FUNCTIONS),
    }
)
"""The constants by which programs are written; the library must read them by the same."""

_ERROR_BYTES = 512
_ADDRESSES = 8
_PEAK_ROUNDS = 2_000_000


@cache
def library() -> Any:
    """Load the shared library; None if it is not installed.

    Raises:
        NeuroTrailsError: it was compiled from other sources than this package goes with.
    """
    try:
        import nt_cpu_native as native
    except ImportError:
        return None
    if not hasattr(native, "LIBRARY"):  # the sources' folder
        return None
    found = ctypes.CDLL(str(native.LIBRARY))
    expect_constants(constants_of(found))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    found.nt_open.restype = pointer
    found.nt_open.argtypes = [pointer, integer, pointer, integer, ctypes.c_char_p, integer]
    found.nt_close.argtypes = [pointer]
    found.nt_memory.restype = integer
    found.nt_memory.argtypes = [pointer, integer]
    found.nt_sizes.restype = None
    found.nt_sizes.argtypes = [pointer, pointer]
    found.nt_run.restype = ctypes.c_int
    found.nt_run.argtypes = [pointer, pointer, pointer, integer, integer, pointer]
    found.nt_kernels_name.restype = ctypes.c_char_p
    found.nt_multiply_adds.restype = integer
    found.nt_multiply_adds.argtypes = [integer, integer]
    return found


def constants_of(library: Any) -> dict[str, int]:
    """Return the constants that a library was compiled with; none, if it is too old to tell."""
    if not hasattr(library, "nt_constant"):
        return {}
    value = ctypes.c_int64()
    found: dict[str, int] = {}
    library.nt_constant.restype = ctypes.c_char_p
    library.nt_constant.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
    while name := library.nt_constant(len(found), ctypes.byref(value)):
        found[name.decode()] = value.value
    return found


def expect_constants(found: Mapping[str, int]) -> None:
    """Raise unless a library's constants are those of this package.

    Raises:
        NeuroTrailsError: naming the first that differs.
    """
    for name in {**CONSTANTS, **found}:
        if found.get(name) != CONSTANTS.get(name):
            raise NeuroTrailsError(
                f"kernels: expected {name} = {CONSTANTS.get(name)}, found {found.get(name)}: they were "
                "compiled from another version; pip install ./backends/nt_cpu_native again"
            )


class NativeProgram:
    """A program that the library has read and checked; any number of threads may run it at a time.

    Args:
        program: of :func:`nt_cpu.code.program`, or from an untrusted file.
        threads: number of threads that the library uses for one run, 1 to :data:`MOST_THREADS`.

    Raises:
        NeuroTrailsError: the program is invalid, or needs more working memory than the machine has; or
            ``threads`` is out of range.
    """

    def __init__(self, program: Program, threads: int) -> None:
        _expect_threads(threads)
        program = Program(_aligned(program.code), _aligned(program.blob))
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
        needed = self._library.nt_memory(self._engine, threads)
        if needed < 0:
            raise NeuroTrailsError("program: its working memory has more bytes than 64 bits count")
        self._bytes = needed + ALIGNMENT
        if self._bytes > machine_bytes():
            raise NeuroTrailsError(
                f"program: needs {self._bytes} bytes of working memory, expected at most the "
                f"{machine_bytes()} of this machine"
            )
        self._spare: list[NDArray[np.uint8]] = []

    def expect_shapes(self, inputs: int, members: int, outputs: int) -> None:
        """Check that the program reads and writes arrays of these sizes, because it gets bare addresses.

        Args:
            inputs: number of elements of one example.
            members: number of members.
            outputs: number of elements of one member's logits for one example.

        Raises:
            NeuroTrailsError: the program belongs to another network.
        """
        sizes = (ctypes.c_int64 * 3)()
        self._library.nt_sizes(self._engine, sizes)
        if tuple(sizes) != (inputs, members, outputs):
            raise NeuroTrailsError(
                f"program: reads {sizes[0]} numbers and gives {sizes[1]} × {sizes[2]}, but its spec {inputs} "
                f"and {members} × {outputs}"
            )
        if members * outputs * 4 > machine_bytes():
            raise NeuroTrailsError(
                f"program: gives {members * outputs} numbers for each example, expected at most the "
                f"{machine_bytes()} bytes of this machine"
            )

    def run(self, inputs: NDArray[np.float32], outputs: NDArray[np.float32]) -> None:
        """Compute logits. (B, *input shape) → (M, B, *output shape), both contiguous."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = np.empty(self._bytes, np.uint8)
        start = memory.ctypes.data + -memory.ctypes.data % ALIGNMENT
        code = self._library.nt_run(
            self._engine, inputs.ctypes.data, outputs.ctypes.data, len(inputs), self.threads, start
        )
        assert code == 0, code
        self._spare.append(memory)

    def __del__(self) -> None:
        if getattr(self, "_engine", None):
            self._library.nt_close(self._engine)


def _expect_threads(threads: int) -> None:
    if not 1 <= threads <= MOST_THREADS:
        raise NeuroTrailsError(f"threads: expected 1 to {MOST_THREADS}, found {threads}")


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array at an aligned address, as the kernels need; arrays of packed files are not copied."""
    return array if array.ctypes.data % _ADDRESSES == 0 else np.array(array)


def kernels() -> str | None:
    """Return the instruction set that this machine's kernels use; None if they are not installed.

    Raises:
        NeuroTrailsError: the environment variable ``NT_CPU_KERNELS`` names no instruction set.
    """
    wish = os.environ.get(VARIABLE)
    if wish and wish not in INSTRUCTIONS:
        raise NeuroTrailsError(f"{VARIABLE}: expected {', '.join(INSTRUCTIONS)}, or unset, found {wish!r}")
    found = library()
    return None if found is None else str(found.nt_kernels_name().decode())


def peak_flops(threads: int = 1) -> float | None:
    """Measure the peak FLOP/s of this machine, with operands in registers.

    Returns:
        FLOP/s of the best of several short runs; None if the kernels are not installed.

    Raises:
        NeuroTrailsError: ``threads`` is out of range.
    """
    _expect_threads(threads)
    found = library()
    if found is None:
        return None

    def once() -> float:
        start = time.perf_counter()
        done = int(found.nt_multiply_adds(_PEAK_ROUNDS, threads))
        return done / (time.perf_counter() - start)

    return max(once() for _ in range(5))
