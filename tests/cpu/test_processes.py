"""Engines in other processes: after a fork, from a pickle, from a file that is mapped again."""

import copy
import os
import pickle
import signal

import numpy as np
import pytest

import nt_cpu
from nt_core import CheckpointError, NeuroTrailsError
from nt_core.testing import random_input
from nt_models.tiny import TINY
from tests.cpu.test_inputs import MLP, engine_of

X = random_input(MLP, 9, 0).astype(np.float32)


def in_a_child(answers):
    """Fork, and return whether the child got True in time."""
    if (child := os.fork()) == 0:
        signal.alarm(20)
        try:
            os._exit(not answers())
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_an_engine_with_threads_answers_after_forks():
    engine = engine_of(MLP, batch=2, threads=3)
    truth = engine.heads(X)

    def answers():
        return bool((engine.heads(X) == truth).all())

    assert in_a_child(answers)
    assert answers()
    assert in_a_child(lambda: answers() and in_a_child(answers) and answers())
    assert answers()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
@pytest.mark.parametrize("name", ["wide_resnet", "llama"])
def test_an_engine_made_in_memory_is_copied(name, copied):
    engine = engine_of(TINY[name](), 0.5, batch=3, threads=2)
    x = random_input(engine.spec.graph, 4, 0)
    other = copied(engine)
    np.testing.assert_array_equal(other.heads(x), engine.heads(x))
    np.testing.assert_array_equal(other(x), engine(x))
    assert (other.spec, other.batch, other.threads, other.aggregation) == (
        engine.spec,
        3,
        2,
        engine.aggregation,
    )
    assert other.record is not engine.record or copied is copy.copy


def test_an_engine_of_a_file_is_pickled_by_the_file(tmp_path):
    file = tmp_path / "model.nt"
    nt_cpu.pack(engine_of(MLP), file)
    engine = nt_cpu.load(file, threads=2)
    content = pickle.dumps(engine)
    assert len(content) < len(pickle.dumps(engine_of(MLP)))
    other = pickle.loads(content)
    assert isinstance(other.program.blob, np.memmap)
    assert other.threads == 2
    np.testing.assert_array_equal(other(X), engine(X))
    np.testing.assert_array_equal(copy.deepcopy(other)(X), engine(X))


def test_a_file_that_was_replaced_is_not_taken_for_the_old_one(tmp_path):
    file = tmp_path / "model.nt"
    nt_cpu.pack(engine_of(MLP), file)
    content = pickle.dumps(nt_cpu.load(file))
    nt_cpu.pack(engine_of(MLP, 0.5), file)
    with pytest.raises(CheckpointError, match=r"model\.nt: replaced since the engine was loaded"):
        pickle.loads(content)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"model\.nt: cannot be read"):
        pickle.loads(content)


@pytest.mark.filterwarnings("ignore:nt_cpu")
def test_where_there_are_no_kernels_a_pickle_says_so_or_numpy_computes(monkeypatch):
    native = engine_of(MLP)
    content, truth = pickle.dumps(native), native.heads(X)
    with monkeypatch.context() as patch:
        patch.setattr("nt_cpu.engine.kernels", lambda: None)
        with pytest.raises(NeuroTrailsError, match="kernels are not installed"):
            pickle.loads(content)
        content = pickle.dumps(engine_of(MLP))
        np.testing.assert_allclose(pickle.loads(content).heads(X), truth, rtol=1e-4, atol=1e-6)
    assert pickle.loads(content).kernels == native.kernels
