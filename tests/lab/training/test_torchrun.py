"""The command line in several processes, as ``torchrun`` starts them: the pages' commands, at small size."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nt_core.checkpoint import load_checkpoint
from nt_core.testing.resumption import expect_same
from nt_lab.cli.main import app

sys.path.insert(0, str(Path(__file__).parents[2] / "torch"))

from ranks import in_processes

DOCS = Path(__file__).parents[3] / "docs"
SECONDS = 500
"""When processes are taken to wait for each other for ever; no test comes near it on any machine."""

SMALL = {
    "neurotrails": ["--set", "graph.width=1", "--epochs", "1"],
    "llama_tiny": ["--data", "text:input.txt", "--set", "training.batch_size=16", "--set", "graph.length=16",
                   "--set", "training.accumulation=2", "--steps", "3"],
}  # fmt: skip
"""What makes a command small."""


def commands(page: str) -> list[list[str]]:
    """The ``torchrun`` commands of a how-to page."""
    text = (DOCS / "how-to" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    return [
        shlex.split(line) for line in re.findall(r"^\$ (?:[A-Z_]+=1 )?(torchrun .*)$", text, re.MULTILINE)
    ]


def small(command: list[str]) -> list[str]:
    """Make a command of a page small: its options stay, but for what is trained on and how long."""
    options = " ".join(command).replace("llama_350m", "llama_tiny")
    options = re.sub(r"--(data|epochs|steps) \S+|--set (data|graph|training.(batch|accu))\S+", "", options)
    options = re.sub(r"--nproc-per-node \d+", "--nproc-per-node 2", options)
    words = options.split()
    spec = words[words.index("train") + 1]
    return [sys.executable, "-m", "torch.distributed.run", *words[1:], "--device", "cpu", *SMALL[spec]]


@contextmanager
def started(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a command in a folder; whatever of it still runs at the end is killed."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},  # or restarts may hang: issue 135712
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(
                process.pid, signal.SIGTERM
            )  # torchrun ends its workers, which have sessions of their own
            process.wait(60)


def expect_success(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    return said


@pytest.mark.parametrize("page", ["several-processes.md", "fsdp.md"])
def test_commands_on_one_machine(page: str, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("a line of text, and another one\n" * 400)
    found = [command for command in commands(page) if "--nnodes" not in command]
    assert found
    for command in found:
        with started(small(["torchrun", "--standalone", *command[1:]]), tmp_path) as process:
            assert expect_success(process).count("run: ") == 1
        assert load_checkpoint(tmp_path / command[command.index("--out") + 1]).masks


def can_make_hosts() -> bool:
    """Tell whether network namespaces can be made here, which needs root and iproute2."""
    if os.name == "nt" or os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    space = f"nt-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", space], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", space], capture_output=True, check=False)
    return made.returncode == 0


@contextmanager
def two_hosts(names: tuple[str, str]) -> Iterator[list[list[str]]]:
    """Two hosts of this machine, joined by a cable; give what runs a command on each."""
    ips, spaces = [f"10.199.7.{i + 1}" for i in range(2)], [f"nt-{os.getpid()}-{i}" for i in range(2)]
    addresses = "".join(f"{ip} {name}\n" for ip, name in zip(ips, names, strict=True))

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    try:
        for space in spaces:
            ip("netns", "add", space)
            hosts = Path("/etc/netns", space, "hosts")  # what ip netns exec shows as /etc/hosts
            hosts.parent.mkdir(parents=True)
            hosts.write_text(f"127.0.0.1 localhost\n{addresses}")
        ip("link", "add", "eth0", "netns", spaces[0], "type", "veth", "peer", "eth0", "netns", spaces[1])
        for space, address in zip(spaces, ips, strict=True):
            ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")
        yield [
            [
                "ip",
                "netns",
                "exec",
                space,
                "unshare",
                "--uts",
                "sh",
                "-c",
                f'hostname {name}; exec "$@"',
                "sh",
            ]
            for space, name in zip(spaces, names, strict=True)
        ]
    finally:
        for space in spaces:
            subprocess.run(["ip", "netns", "delete", space], check=False)
            shutil.rmtree(Path("/etc/netns", space), ignore_errors=True)


def test_the_command_on_two_machines(tmp_path: Path) -> None:
    if not can_make_hosts():
        pytest.skip("network namespaces cannot be made here")
    (command,) = [command for command in commands("several-processes.md") if "--nnodes" in command]
    words = small(command)
    words[words.index("--nproc-per-node") + 1] = "1"
    assert "first-machine:29500" in words
    (tmp_path / "second").mkdir()
    with (
        two_hosts(("first-machine", "second-machine")) as (first, second),
        started([*first, *words], tmp_path) as one,
        started([*second, *words], tmp_path / "second") as other,
    ):
        said = expect_success(one)
        assert "run: " not in expect_success(other)
    assert said.count("run: ") == 1
    assert load_checkpoint(tmp_path / "runs" / "sixteen").masks
    assert not list((tmp_path / "second").iterdir())


def workers(parent: int) -> list[int]:
    """The processes that a process started, in the order of their numbers."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            found.append(int(status.parent.name))
    return sorted(found)


def nt(_: int, *words: str) -> str:
    """What ``nt`` says as one rank of several, which import nothing anew."""
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stdout


@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["whole", "sharded"])
def test_a_worker_that_is_killed_is_started_again_and_goes_on(shard: list[str], tmp_path: Path) -> None:
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2", "--max-restarts", "2", "-m", "nt_lab"]
    command = small([*torchrun, "train", "neurotrails", "--save-every", "3", *shard])
    command[command.index("--epochs") + 1] = "2"
    words = command[command.index("train") :]
    said, errors = zip(*in_processes(2, nt, *words, "--out", str(tmp_path / "whole")), strict=True)
    assert (errors, "".join(said).count("run: ")) == ((None, None), 1)
    with started([*command, "--out", "killed"], tmp_path) as process:
        states = tmp_path / "killed" / "unfinished" / "states"
        while process.poll() is None and not list(states.glob("*/step-*.safetensors")):
            time.sleep(0.05)
        os.kill(workers(process.pid)[-1], signal.SIGKILL)
        said = expect_success(process)
    assert "found the state of an interrupted run; going on after step" in said
    found, wanted = (load_checkpoint(tmp_path / name) for name in ("killed", "whole"))
    expect_same(dict(found.values), dict(wanted.values))
    assert found.masks == wanted.masks
