"""Names of modules: identifiers, so that tools can write them into code; older state dicts still load."""

import re

import pytest
import torch
from resume import both
from small import short

import nt_models
import nt_torch
from nt_core import EnsembleSpec, Features, GraphBuilder, GraphError, MultiHead, OneRun
from nt_core.training import Training
from nt_models.tiny import TINY
from nt_torch.network.parts import present_name
from nt_torch.training import keeper
from nt_torch.training.states import content

HEADS = MultiHead(split=1, heads=2)


def compiled(graph):
    return nt_torch.compile(EnsembleSpec(graph=graph, structure=HEADS))


def older(state):
    """Name a state dict's modules as they were: block and op with a slash between them."""
    return {name.replace("__", "/"): value for name, value in state.items()}


@pytest.mark.parametrize("name", TINY)
def test_every_module_is_named_by_identifiers(name):
    model = compiled(TINY[name]())
    for path, _ in model.named_modules():
        assert all(part.isidentifier() or part.isdecimal() for part in path.split(".") if part), path


def test_odd_names_of_blocks_are_identifiers_too():
    net = GraphBuilder(Features(count=4))
    for block in ("1", "stage3.1", "a-b c", "größe", "class", "keys"):
        with net.block(block) as b:
            b.out = b.linear(b.inp, 4, name="fc.1")
    with net.classifier() as b:
        b.out = b.linear(b.inp, 2)
    model = nt_torch.compile(EnsembleSpec(graph=net.build()))
    assert all(key.isidentifier() for key in model.heads[0].ops)
    assert model.array("head1/a-b c/fc.1.weight").shape == (4, 4)


def test_names_that_become_one_are_refused():
    net = GraphBuilder(Features(count=4))
    for block in ("a-b", "a.b"):
        with net.block(block) as b:
            b.out = b.linear(b.inp, 4, name="fc")
    with net.classifier() as b:
        b.out = b.linear(b.inp, 2)
    with pytest.raises(GraphError, match="PyTorch names it 'a_b__fc', which is taken; rename the block"):
        nt_torch.compile(EnsembleSpec(graph=net.build()))


def test_a_state_dict_of_an_older_version_loads():
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8)
    saved, model = compiled(graph), nt_torch.compile(EnsembleSpec(graph=graph, structure=HEADS), seed=1)
    state = older(saved.state_dict())
    assert sum("/" in name for name in state) == len(state)
    before = dict(state)
    found = torch.nn.Sequential(model).load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert not found.missing_keys
    assert not found.unexpected_keys
    assert state.keys() == before.keys()
    for name, value in saved.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict({**state, "heads.0.ops.nothing/here.weight": torch.ones(1)})


def test_a_training_saved_by_an_older_version_goes_on(backend, monkeypatch, tmp_path):
    def old_content(*arguments):
        found = content(*arguments)
        return found | {"model": older(found["model"])}

    monkeypatch.setattr(keeper, "content", old_content)
    spec = short("neurotrails").replace(plan=OneRun(epochs=1))
    both(backend, spec, Training(batch_size=18), tmp_path, stops=(3,))


@pytest.mark.parametrize("name", sorted(set(TINY) - {"llama"}))
def test_symbolic_tracing_gives_a_module_that_computes_the_same(name):
    """Rotary positions depend on the number of tokens, which a symbolic trace does not know."""
    model = compiled(TINY[name]()).eval()
    x = torch.randn(2, *model.spec.graph.input.shape)
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)
    assert not re.search(r"\.ops, ", traced.code)  # an op is an attribute, not looked up by getattr


def test_present_names_of_present_names_are_themselves():
    names = compiled(TINY["wide_resnet"]()).state_dict()
    assert [present_name(name) for name in names] == list(names)
