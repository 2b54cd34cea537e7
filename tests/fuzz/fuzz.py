"""Fuzz readers with atheris: ``python tests/fuzz/fuzz.py [READER …] [--seconds 60]``.

Each reader runs in a process of its own, so that a crash of one hides no other. It begins with the seeds in
``seeds/READER``; what it finds is written to ``findings/READER``: mend it, then keep it as a seed whose name
tells what broke.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

INSTRUMENTED = ["nt_core", "nt_cpu", "nt_lab", "nt_models"]

LONGEST_FILE = 1 << 16
"""Bytes of an input. Seeds are smaller: time goes into many inputs, not into long ones."""

TIMEOUT = 60
"""Seconds for one input: a network at the limit of its ops takes ten to fifteen."""

MEMORY = 4096
"""MiB of the process, its imports and the fuzzer's own corpus included."""


def run_one(name: str, arguments: list[str]) -> None:
    """Fuzz one reader in this process; it does not return."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.readers import consume
    from tests.fuzz.mutate import mutate

    scratch = tempfile.TemporaryDirectory()

    def once(data: bytes) -> None:
        consume(name, data, Path(scratch.name))

    def other(data: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.3:
            return atheris.Mutate(data, longest)
        return mutate(data, random)[:longest]

    atheris.Setup([sys.argv[0], *arguments], once, custom_mutator=other)
    atheris.Fuzz()


def run_each(names: list[str], seconds: int) -> int:
    """Fuzz readers one after another; return how many failed."""
    failed = 0
    for name in names:
        findings, seeds = HERE / "findings" / name, HERE / "seeds" / name
        findings.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as corpus:
            options = [
                f"-max_total_time={seconds}",
                f"-max_len={LONGEST_FILE}",
                f"-timeout={TIMEOUT}",
                f"-rss_limit_mb={MEMORY}",
                f"-artifact_prefix={findings}/",
                "-print_final_stats=1",
                corpus,
                str(seeds),
            ]
            dictionary = HERE / "dictionaries" / f"{name}.dict"
            if dictionary.exists():
                options.insert(0, f"-dict={dictionary}")
            command = [sys.executable, __file__, "--one", name, *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        said = done.stdout.decode(errors="replace").splitlines()
        summary = [
            line for line in said if "DONE" in line or "number_of_executed" in line or "INITED" in line
        ]
        print(
            f"{name}: exit {done.returncode}",
            *(summary if not done.returncode else said[-60:]),
            sep="\n  ",
            flush=True,
        )
        failed += done.returncode != 0
    return failed


def main() -> None:
    """Read the command line."""
    if sys.argv[1:2] == ["--one"]:
        run_one(sys.argv[2], sys.argv[3:])
    names = sorted(path.name for path in (HERE / "seeds").iterdir())
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readers", nargs="*", choices=[*names, []], default=[], metavar="READER")
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    chosen = parser.parse_args()
    sys.exit(run_each(chosen.readers or names, chosen.seconds))


if __name__ == "__main__":
    main()
