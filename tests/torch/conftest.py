"""PyTorch is imported in functions: else workers of xdist wait until the process that starts them has it."""

from functools import partial
from types import SimpleNamespace

import hypothesis
import pytest

hypothesis.settings.register_profile(
    "tests", hypothesis.settings.get_profile("patient"), derandomize=True, max_examples=50
)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and busy machines lose much by them."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backend():
    """What tests of both backends call: the package, on a CPU, and what is said in another way in each."""
    import nt_torch

    return SimpleNamespace(
        **vars(nt_torch) | {"train": partial(nt_torch.train, device="cpu")},
        assign=assign,
        own_loop=own_loop,
        own_loss=own_loss,
        starts_fast=True,
    )


def assign(model, name, values):
    import torch

    with torch.no_grad():
        model.array(name).copy_(torch.from_numpy(values))


def own_loop(model, **options):
    import torch

    import nt_torch

    nt_torch.Topology(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def own_loss(model, x, y):
    import torch

    model.eval()
    return model.loss(torch.from_numpy(x), torch.from_numpy(y)).item()
