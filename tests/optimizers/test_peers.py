"""Under optimisers of other packages, fixed masks give the weights of masking by hand."""

import importlib
import importlib.util
from functools import partial
from importlib.metadata import distribution

import heavyball
import pytest
import pytorch_optimizer as po
import schedulefree
import torch
import torchao.optim as ao
from by_hand import SPEC, expect_elementwise, expect_equal

import nt_torch
from nt_core import Dynamic
from nt_torch.topology.state import KNOWN

pytestmark = pytest.mark.filterwarnings("ignore")


def _timm_lookahead() -> type[torch.optim.Optimizer]:
    """Load one file of timm, whose package imports torchvision."""
    path = distribution("timm").locate_file("timm/optim/lookahead.py")
    spec = importlib.util.spec_from_file_location("timm.optim.lookahead", str(path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Lookahead


def sam(params):
    return po.SAM(params, base_optimizer=torch.optim.SGD, lr=0.1, momentum=0.9)


def lookahead(params):
    return _timm_lookahead()(torch.optim.SGD(params, lr=0.1, momentum=0.9), k=3)


MAKES = {
    "torchao.AdamW8bit": partial(ao.AdamW8bit, lr=1e-2, block_size=16),
    "torchao.AdamW4bit": partial(ao.AdamW4bit, lr=1e-2, block_size=16),
    "torchao.AdamWFp8": partial(ao.AdamWFp8, lr=1e-2, block_size=16),
    "torchao.Adam8bit": partial(ao.Adam8bit, lr=1e-2, block_size=16),
    "schedulefree.AdamWScheduleFree": partial(schedulefree.AdamWScheduleFree, lr=1e-2),
    "schedulefree.SGDScheduleFree": partial(schedulefree.SGDScheduleFree, lr=1e-1),
    "schedulefree.RAdamScheduleFree": partial(schedulefree.RAdamScheduleFree, lr=1e-2),
    "heavyball.AdamW": partial(heavyball.AdamW, lr=1e-2, compile_step=False),
    "heavyball.SOAP": partial(heavyball.SOAP, lr=1e-3, compile_step=False),
    "heavyball.Muon": partial(heavyball.Muon, lr=1e-3, compile_step=False),
    "heavyball.LaProp": partial(heavyball.LaProp, lr=1e-2, compile_step=False),
    "timm.Lookahead": lookahead,
    **{
        f"pytorch_optimizer.{name}": partial(getattr(po, name), lr=lr)
        for name, lr in {
            "ADOPT": 1e-2,
            "AdEMAMix": 1e-2,
            "AdaBelief": 1e-2,
            "AdamP": 1e-2,
            "Adan": 1e-2,
            "Amos": 1e-2,
            "CAME": 1e-3,
            "Conda": 1e-3,
            "DiffGrad": 1e-2,
            "Grams": 1e-2,
            "Kron": 1e-3,
            "LARS": 1e-1,
            "Lamb": 1e-2,
            "LaProp": 1e-2,
            "Lion": 1e-3,
            "MADGRAD": 1e-2,
            "MARS": 1e-2,
            "Prodigy": 1.0,
            "QHAdam": 1e-2,
            "Ranger": 1e-2,
            "SOAP": 1e-3,
            "SGDP": 1e-2,
            "SM3": 1e-2,
            "Shampoo": 1e-2,
            "StableAdamW": 1e-2,
            "TAM": 1e-2,
            "Tiger": 1e-3,
            "Yogi": 1e-2,
        }.items()
    },
}


def test_at_least_25_are_tried():
    assert len(MAKES) >= 25


@pytest.mark.parametrize("name", MAKES)
def test_the_trajectory_is_that_of_masking_by_hand(name):
    expect_equal(lambda model: MAKES[name](list(model.parameters())))


TABLE = [
    (package, name)
    for package, classes in KNOWN.items()
    for name in classes
    if package in {"heavyball", "pytorch_optimizer", "schedulefree"} and name not in {"Lookahead", "Muon"}
]


@pytest.mark.parametrize(("package", "name"), TABLE)
def test_elementwise_state_is_permuted_with_the_weight(package, name):
    kind = getattr(importlib.import_module(package), name)
    settings = {"compile_step": False} if package == "heavyball" else {}
    expect_elementwise(lambda params: kind(params, lr=1e-2, **settings), KNOWN[package][name])


def test_sharpness_aware_minimisation_by_closure():
    expect_equal(lambda model: sam(list(model.parameters())), closure=True)


@pytest.mark.parametrize("name", MAKES)
def test_masks_that_move_stay_exact_and_training_goes_down(name):
    spec = SPEC.replace(topology=Dynamic(sparsity=0.7, interval=3))
    model = nt_torch.compile(spec, seed=3)
    torch.manual_seed(0)
    optimizer = MAKES[name](list(model.parameters()))
    if hasattr(optimizer, "train"):
        optimizer.train()
    topology = nt_torch.Topology(model, optimizer, total_steps=40)
    x, y = torch.randn(32, 16), torch.randint(4, (32,))
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = nt_torch.ensemble_loss(model(x), y, spec)
        loss.backward()
        optimizer.step()
        topology.step()
        losses.append(loss.item())
        for each in model.masked:
            assert not model.stored(each)[~model.mask(each)].any()
    assert {each: int(model.mask(each).sum()) for each in model.masked} == dict(spec.counts)
    assert losses[-1] < losses[0] * 1.05
