"""The compiled kernels of :mod:`nt_cpu`: one shared library, without any framework's or Python's ABI."""

from __future__ import annotations

import sys
from pathlib import Path

SUFFIX = {"win32": ".dll", "darwin": ".dylib"}.get(sys.platform, ".so")
LIBRARY = Path(__file__).with_name(f"nt_cpu{SUFFIX}")
