"""What ``nt_core.cost.per_process`` says of memory and messages is what the backend holds and sends."""

from __future__ import annotations

import sys
import tracemalloc
from collections import Counter
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import nt_models
import nt_torch
from nt_core import PRESETS
from nt_core.cost import scale
from nt_core.cost.memory import CHOOSING, CHOSEN
from nt_core.cost.per_process import WIDTHS
from nt_core.masks import NUMPY, Moment
from nt_core.policies import (
    AtRandom,
    Gradient,
    Layer,
    Magnitude,
    MagnitudeAndGradient,
    SignedMagnitude,
    SoftMagnitude,
    swap,
)
from nt_core.random import Random
from nt_torch.processes.shards import ShardedArrays, local
from nt_torch.topology.arrays import TorchArrays

sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import in_processes

GRAPHS = {
    "mlp": nt_models.mlp(inputs=6, hidden=(17, 16), classes=3),  # rows that do not divide evenly
    "llama": nt_models.llama(blocks=3, width=8, hidden=12, heads=2, vocabulary=5, length=6),
    "resnet": nt_models.resnet(depth=10, width=3, classes=3, size=32, channels=2),
}
OPTIMIZERS = {
    0: lambda p: torch.optim.SGD(p, lr=0.01),
    1: lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    2: lambda p: torch.optim.AdamW(p, lr=0.01),
}
DTYPES = {"float32": torch.float32, "mixed": torch.float32, "bfloat16": torch.bfloat16}


def spec_of(preset, graph):
    spec = PRESETS[preset](GRAPHS[graph])
    if preset in ("static", "treenet"):
        return spec
    changes = {"interval": 3, "sparsity": min(spec.topology.sparsity, 0.6)}
    if preset == "gradual_pruning":
        changes |= {"scope": "layer", "interval": 1}
    return spec.replace(topology=spec.topology.replace(**changes))


def batch(graph, rank=0):
    rng = torch.Generator().manual_seed(rank)
    if graph == "llama":
        tokens = torch.randint(0, 5, (4, 7), generator=rng)
        return tokens[:, :-1], tokens[:, 1:]
    shape = (4, 2, 32, 32) if graph == "resnet" else (4, 6)
    return torch.randn(shape, generator=rng), torch.randint(0, 3, (4,), generator=rng)


def settings_of(world, dtype):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    return {"mesh": init_device_mesh("cpu", (world,))} | ({"mp_policy": policy} if dtype == "mixed" else {})


class Collectives(TorchDispatchMode):
    """Counts collective calls and the bytes that each process puts in."""

    def __init__(self):
        super().__init__()
        self.calls, self.bytes = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            tensors = (
                args[1] if name in ("allgather_", "_allgather_base_", "_reduce_scatter_base_") else args[0]
            )
            tensors = [tensors] if isinstance(tensors, torch.Tensor) else tensors
            self.calls[name] += 1
            self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors)
        return func(*args, **(kwargs or {}))


def nbytes(tensors, whole=False):
    parts = [local(t.detach()) for t in tensors]
    return sum(t.untyped_storage().nbytes() if whole else t.numel() * t.element_size() for t in parts)


def trained(rank, preset, graph, world, wrap, dtype, states, units):
    """Train for three steps, the third with a topology update; return what is held, and what was sent."""
    torch.manual_seed(0)
    model = nt_torch.compile(spec_of(preset, graph), dtype=DTYPES[dtype])
    wrapped = model
    if world > 1:
        torch.distributed.init_process_group("gloo")
        if wrap == "fsdp2":
            nt_torch.shard(model, units=units, **settings_of(world, dtype))
        else:
            wrapped = DistributedDataParallel(model)
    optimizer = OPTIMIZERS[states](model.parameters())
    topology = nt_torch.Topology(wrapped, optimizer, total_steps=100)
    x, y = batch(graph, rank)
    x = x.to(DTYPES[dtype]) if x.is_floating_point() else x
    for _ in range(3):  # DistributedDataParallel settles its buckets in the second
        optimizer.zero_grad()
        with Collectives() as step, torch.autocast("cpu", enabled=dtype == "mixed" and wrap == "ddp"):
            loss = nt_torch.ensemble_loss(wrapped(x).float(), y)
            loss.backward()
        with Collectives() as update:
            optimizer.step()
            changed = topology.step()
    assert (changed is None) == (preset in ("static", "treenet"))
    parameters = list(model.parameters())
    kept = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim()
    ]
    buffers = dict(model.named_buffers())
    held = {
        "parameters": nbytes(parameters, whole=True),
        "gradients": nbytes([p.grad for p in parameters]),
        "optimizer": nbytes(kept),
        "masks": nbytes(b for name, b in buffers.items() if name.endswith("weight_mask")),
        "statistics": nbytes(b for name, b in buffers.items() if "running" in name),
        "seen": sum(bits.nbytes for bits in topology._seen.values()),
        "smoothed": nbytes(topology._gradients.smoothed.values()),
    }
    return held, (step.calls, step.bytes), (update.calls, update.bytes)


@pytest.mark.parametrize(
    ("preset", "graph", "dtype", "states"),
    [("neurotrails", "llama", "float32", 2), ("neurotrails", "resnet", "mixed", 1),
     ("neurotrails", "mlp", "bfloat16", 2), ("snfs", "mlp", "float32", 0), ("treenet", "mlp", "float32", 1),
     ("static", "mlp", "float32", 1)],
)  # fmt: skip
def test_one_process_holds_what_is_predicted(preset, graph, dtype, states):
    expected = scale(spec_of(preset, graph), ranks=1, dtype=dtype, states=states)
    held, _, _ = trained(0, preset, graph, 1, "ddp", dtype, states, "parts")
    updates = preset not in ("static", "treenet")
    assert held == figures(expected) | ({} if updates else {"seen": 0})
    assert expected.maskable == expected.device.masks


def figures(expected):
    device = expected.device
    names = ("parameters", "gradients", "optimizer", "masks", "statistics", "smoothed")
    return {name: getattr(device, name) for name in names} | {"seen": expected.host.seen}


@pytest.mark.parametrize("graph", ["mlp", "resnet"])
def test_ddp_sends_what_is_predicted(graph):
    case = ("neurotrails", graph, 2, "ddp", "float32", 1, "parts")
    expected = scale(spec_of(*case[:2]), ranks=2, states=1)
    counters = 8 * sum(p.weight.name == "running_mean" for p in spec_of(*case[:2]).layout.weights)
    for answer, error in in_processes(2, trained, *case):
        assert error is None
        held, (_, step), (calls, update) = answer
        assert held == figures(expected)
        assert step["allreduce_"] == expected.device.gradients == expected.device.buckets
        assert step["broadcast_"] == expected.device.statistics + counters
        assert expected.step_sent == step["allreduce_"] + expected.device.statistics  # 2(N − 1)/N = 1
        assert calls == {"allgather_": 1}
        assert update["allgather_"] == expected.messages.gathered == expected.update_sent


@pytest.mark.parametrize(
    ("preset", "graph", "world", "dtype", "states", "units"),
    [("neurotrails", "mlp", 3, "float32", 1, "parts"), ("neurotrails", "llama", 2, "mixed", 2, "blocks"),
     ("neurotrails_lm", "llama", 2, "bfloat16", 2, "parts"), ("set_", "mlp", 2, "float32", 0, "blocks"),
     ("rigl_paper", "mlp", 2, "float32", 1, "parts"), ("mest", "mlp", 2, "float32", 1, "parts"),
     ("gradual_pruning", "mlp", 2, "float32", 1, "parts")],
)  # fmt: skip
def test_fsdp2_holds_and_sends_what_is_predicted(preset, graph, world, dtype, states, units):
    case = (preset.rstrip("_"), graph, world, "fsdp2", dtype, states, units)
    spec = spec_of(*case[:2])
    expected = scale(spec, ranks=world, wrap="fsdp2", dtype=dtype, states=states, units=units)
    answers = in_processes(world, trained, *case)
    assert [error for _, error in answers] == [None] * world
    assert answers[0][0][0] == figures(expected)
    for (held, (step_calls, step), (calls, update)), _ in answers:
        assert all(held[name] <= most for name, most in figures(expected).items())
        width = WIDTHS[dtype]
        shard = expected.device.parameters // width.kept
        assert step["_allgather_base_"] == 2 * shard * width.computed
        assert step["_reduce_scatter_base_"] == world * shard * width.reduced
        assert step_calls["_allgather_base_"] == 2 * step_calls["_reduce_scatter_base_"]
        sent = (world - 1) * step["_allgather_base_"] + (world - 1) * step["_reduce_scatter_base_"] // world
        assert sent == expected.step_sent
        messages = expected.messages
        assert calls == {"allreduce_": messages.all_reduces, "allgather_": messages.all_gathers}
        assert update == {"allreduce_": messages.reduced, "allgather_": messages.gathered}


def tracked(rank, world, units, dtype):
    """Return what PyTorch's own tracker sees of whole units, at its most, and of all together."""
    from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker

    torch.distributed.init_process_group("gloo")
    model = nt_torch.compile(PRESETS["neurotrails"](WIDE))
    nt_torch.shard(model, units=units, **settings_of(world, dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.zeros(1, 2, dtype=torch.long)
    tracker = FSDPMemTracker(model, optimizer)
    tracker.track_inputs((tokens,))
    with tracker:
        nt_torch.ensemble_loss(model(tokens).float(), tokens).backward()
    kinds = ("Unsharded Param", "Unsharded Grad", "All Gather", "Reduce Scatter")
    moments = [
        moment
        for stats in tracker.memory_tracking.values()
        for state, found in stats.snapshots.items()
        if state.name not in ("PEAK_FW", "PEAK_BW")
        for each in found
        for moment in each.values()
    ]
    sums = [sum(n for kind, n in m.items() if getattr(kind, "value", "") in kinds) for m in moments]
    (peak,) = tracker.get_tracker_snapshot("peak").values()
    by_kind = {getattr(kind, "value", kind): n for kind, n in peak.items()}
    return max(sums), by_kind


WIDE = nt_models.llama(blocks=3, width=64, hidden=96, heads=2, vocabulary=51, length=2)


@pytest.mark.parametrize(
    ("units", "dtype"), [("parts", "float32"), ("parts", "mixed"), ("blocks", "float32")]
)
def test_whole_units_take_what_is_predicted(units, dtype):
    device = scale(
        PRESETS["neurotrails"](WIDE), ranks=2, wrap="fsdp2", dtype=dtype, states=0, units=units
    ).device
    (answer, error), _ = in_processes(2, tracked, 2, units, dtype)
    assert error is None
    most, peak = answer
    if units == "parts":  # of units that are lists of modules it keeps no moments
        assert most == device.step
    else:
        passing = peak["Activation"] + 0.05 * device.step
        assert peak["Total"] - peak["Buffer"] <= device.held - device.masks + device.step + passing
        assert peak["Total"] - peak["Buffer"] > 0.8 * (device.held - device.masks)


def test_autocast_copies_what_is_predicted():
    """The copies that a backward pass still needs are those of every kernel."""
    spec = spec_of("neurotrails", "llama")
    model = nt_torch.compile(spec)
    x, y = batch("llama")
    shapes = {p.weight.shape for p in spec.layout.sparsifiable}
    copies = {}

    def keep(tensor):
        shape = tuple(tensor.shape)
        if tensor.dtype == torch.bfloat16 and {shape, shape[::-1]} & shapes:
            copies[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept), torch.autocast("cpu"):
        loss = nt_torch.ensemble_loss(model(x), y)
    assert (
        sum(t.untyped_storage().nbytes() for t in copies.values())
        == scale(spec, ranks=1, dtype="mixed").device.step
    )
    loss.backward()


POSITIONS = 1 << 20


@pytest.mark.parametrize("sparsity", [0.1, 0.8, 0.98])
@pytest.mark.parametrize(
    ("place", "prune", "grow"),
    [("device", Magnitude(), Gradient()), ("device", SignedMagnitude(), Gradient()),
     ("drawing", Magnitude(), AtRandom()), ("host", SoftMagnitude(), Gradient()),
     ("host", MagnitudeAndGradient(), AtRandom()), ("device of many", Magnitude(), Gradient()),
     ("sharded", SoftMagnitude(), Gradient()), ("drawing of many", SignedMagnitude(), AtRandom())],
)  # fmt: skip
@pytest.mark.usefixtures("alone")
def test_choosing_takes_no_more_than_is_predicted(place, prune, grow, sparsity):
    """Tensors and NumPy's arrays at their most, for each position; the bound is not far off for all cases."""
    rng = np.random.default_rng(0)
    weights, gradients = rng.standard_normal((2, POSITIONS), dtype=np.float32)
    active = rng.random(POSITIONS) >= sparsity
    cpu = torch.device("cpu")
    place, _, many = place.partition(" of ")
    arrays = NUMPY
    if place in ("device", "drawing"):
        arrays = TorchArrays(cpu)
        weights, gradients, active = map(torch.from_numpy, (weights, gradients, active))
    if many or place == "sharded":
        arrays = ShardedArrays(None, cpu, {"w": 0}, arrays)
    layer = Layer(name="w", weights=weights, gradients=gradients, active=active)
    moment = Moment(100, Random(0), arrays)
    count = int(active.sum()) // 2
    bound = CHOOSING[place][place in ("host", "sharded")] * POSITIONS + CHOSEN * count
    with most_of_torch() as most:
        swap(prune, grow)(layer, count, moment)
    tracemalloc.start()
    swap(prune, grow)(layer, count, moment)
    numbers = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bound / 6 <= most[0] + numbers <= bound


@contextmanager
def most_of_torch():
    """Yield a list that then holds the most bytes that tensors took at a time."""
    most = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        yield most
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    most.append(max(accumulate(sizes), default=0))


@pytest.fixture
def alone():
    """Make one process that holds everything a group of its own."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
