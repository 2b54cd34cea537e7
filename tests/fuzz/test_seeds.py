"""Every seed of every reader, and what comes of seeds by chance: read or refused, in bounds."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nt_core.errors import NeuroTrailsError
from tests.fuzz.mutate import mutate
from tests.fuzz.readers import READERS, consume

FOLDER = Path(__file__).parent / "seeds"
SEEDS = sorted(path for path in FOLDER.rglob("*") if path.is_file())

PROCESSOR_SECONDS: Final = 20
"""What reading one file may take, however busy the processor is. A graph at the limit of its ops takes ten to
fifteen; no seed has one."""

SPARE_BYTES: Final = 64 << 20
TIMES: Final = {"spec_yaml": 400}
TIMES_ELSE: Final = 32
"""What reading a file may take at most: 64 MiB, and so many times its size."""

EXAMPLES: Final = {"parquet": 5, "image": 20, "spec_yaml": 20}
SPARE_ADDRESSES: Final = 1 << 30

pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries, about broken files


@contextmanager
def bounded(reader: str, size: int) -> Iterator[None]:
    """Fail if the block takes too much of the processor, or too much memory."""

    def too_long(_: int, __: FrameType | None) -> None:
        raise TimeoutError(
            f"{reader}: expected an answer within {PROCESSOR_SECONDS} seconds of processor time"
        )

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS)
    tracemalloc.start()
    try:
        yield
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert taken <= SPARE_BYTES + TIMES.get(reader, TIMES_ELSE) * size


def test_each_reader_has_seeds_and_the_other_way_round() -> None:
    assert {path.parent.name for path in SEEDS} == set(READERS)


@pytest.mark.parametrize("path", SEEDS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_a_seed_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    with bounded(path.parent.name, len(content)):
        error = consume(path.parent.name, content, tmp_path)
    if path.name.startswith(("broke_", "bomb_")):
        assert isinstance(error, NeuroTrailsError)
        assert len(str(error)) < 2000


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Draw a seed of which a few things were changed."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        at, end = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        match draw(st.sampled_from(("flip", "cut", "remove", "double", "splice", "form", "form"))):
            case "flip" if at < len(content):
                content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
            case "cut":
                content = content[:at]
            case "remove":
                content = content[:at] + content[end:]
            case "double":
                content = content[:end] + content[at:]
            case "splice":
                content = content[:at] + draw(st.sampled_from(seeds))[at:]
            case "form":
                content = mutate(content, Random(draw(st.integers(0, 2**32))))
    return content


@pytest.mark.parametrize("reader", READERS)
def test_what_comes_of_seeds_by_chance_is_read_or_refused(reader: str, tmp_path: Path) -> None:
    seeds = [path.read_bytes() for path in SEEDS if path.parent.name == reader]

    @settings(
        max_examples=EXAMPLES.get(reader, 50),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(seeds))
    def check(content: bytes) -> None:
        with bounded(reader, len(content)):
            consume(reader, content, tmp_path)

    check()


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the system does not say what a process takes"
)
def test_all_seeds_together_are_read_within_a_limit_of_the_process() -> None:
    """What libraries allocate in C, too: 1 GiB of addresses beyond what importing took."""
    code = f"""
import os, resource, sys, tempfile
from pathlib import Path
from random import Random
sys.path.insert(0, {str(FOLDER.parents[2])!r})
from tests.fuzz.mutate import mutate
from tests.fuzz.readers import READERS, consume
seeds = sorted(path for path in Path({str(FOLDER)!r}).rglob("*") if path.is_file())
with tempfile.TemporaryDirectory() as folder:
    for reader in READERS:  # so that what is imported late is there
        consume(reader, next(p for p in seeds if p.parent.name == reader).read_bytes(), Path(folder))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + {SPARE_ADDRESSES},) * 2)
    for path in seeds:
        consume(path.parent.name, path.read_bytes(), Path(folder))
print("read", len(seeds))
"""
    environment = {**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == [f"read {len(SEEDS)}"], done.stderr[-3000:]
