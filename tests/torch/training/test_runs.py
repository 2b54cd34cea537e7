"""Data of people's own kinds in PyTorch, and runs of their own loops."""

import numpy as np
import pytest
import torch
from runs import *  # noqa: F403
from runs import RECIPE, SPEC, examples, expect_equal, weights
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

import nt_torch
from nt_core import DataError
from nt_core.states import States, Stopped
from nt_torch.batches import as_batches


def tensors(count=20):
    return TensorDataset(*map(torch.from_numpy, examples(count)))


class Noisy(Dataset):
    """Examples with noise of PyTorch's one generator, as transforms draw it."""

    def __len__(self):
        return 20

    def __getitem__(self, place):
        inputs, labels = tensors()[place]
        return inputs + torch.randn(6), labels


class Endless(IterableDataset):
    def __iter__(self):
        yield from tensors()


def test_a_tensor_dataset_trains_as_its_arrays(backend):
    expect_equal(weights(backend, tensors()), weights(backend, examples()))


def test_a_loader_in_order_gives_what_it_holds_in_batches_of_the_recipe():
    inputs, labels = examples()
    for loader in (DataLoader(tensors(), batch_size=3), DataLoader(tensors(), batch_size=50, num_workers=0)):
        batches = as_batches(loader, SPEC)
        assert len(batches) == 20
        for first in (0, 1, 2):
            parts = list(batches.epoch(1, 8, first))
            assert [len(part) for _, part in parts] == [8, 8, 4][first:]
            np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), inputs[8 * first :])
            np.testing.assert_array_equal(np.concatenate([part for _, part in parts]), labels[8 * first :])
    short = as_batches(DataLoader(tensors(), batch_size=6, drop_last=True), SPEC)
    assert len(short) == sum(len(part) for _, part in short.epoch(1, 4)) == 18


def test_a_loader_shuffles_by_the_seed_and_leaves_dropout_alone(backend):
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True)
    first, second = (as_batches(loader, SPEC, seed=3) for _ in range(2))
    state = torch.get_rng_state()
    one, again = (list(batches.epoch(2, 8)) for batches in (first, second))
    assert torch.equal(torch.get_rng_state(), state)
    for (x, y), (u, v) in zip(one, again, strict=True):
        np.testing.assert_array_equal(x, u)
        np.testing.assert_array_equal(y, v)
    assert not np.array_equal(one[0][0], next(first.epoch(3, 8))[0])
    assert not np.array_equal(one[0][0], next(as_batches(loader, SPEC, seed=4).epoch(2, 8))[0])
    expect_equal(weights(backend, loader), weights(backend, Noisy()))


def test_a_training_on_a_loader_resumes_to_the_bit(backend, tmp_path):
    loader, steps = DataLoader(Noisy(), batch_size=4, shuffle=True), []
    wanted = weights(backend, loader)

    def note(event):
        steps.extend([1] * (event["event"] == "step"))

    stopping = States(tmp_path, every=1, stopping=lambda: len(steps) == 4)
    with pytest.raises(Stopped):
        weights(backend, loader, states=stopping, report=note)
    expect_equal(weights(backend, loader, states=States(tmp_path)), wanted)


def test_loaders_of_unknown_length_or_order_are_refused(backend, tmp_path):
    own = DataLoader(tensors(), batch_size=4, shuffle=True, generator=torch.Generator())
    with pytest.raises(DataError, match="cannot be resumed in the same order"):
        weights(backend, own, states=States(tmp_path))
    for data, said in (
        (DataLoader(Endless(), batch_size=4), "of a known number of examples"),
        (Endless(), "found Endless"),
        (DataLoader(tensors(), batch_size=None), "of a known number of examples"),
        (
            DataLoader(tensors(), sampler=DistributedSampler(tensors(), num_replicas=2, rank=0)),
            "leave the sampler out",
        ),
        (DataLoader([{"x": 1}] * 4, batch_size=2), r"expected batches of \(inputs, labels\), found dict"),
    ):
        with pytest.raises(DataError, match=said):
            nt_torch.train(SPEC, RECIPE, data, device="cpu")
