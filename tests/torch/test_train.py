"""Training, evaluation and checkpoints in PyTorch."""

import numpy as np
import pytest
import torch

import nt_models
import nt_torch
from nt_core import (
    PRESETS,
    CheckpointError,
    DataError,
    EnsembleSpec,
    Features,
    GraphBuilder,
    GraphError,
    Independent,
    MultiHead,
    NotFiniteError,
    OneRun,
    Single,
    SpecError,
)
from nt_core.aggregation import Fitted
from nt_core.checkpoint import load_checkpoint, save_checkpoint
from nt_core.testing import Blobs
from nt_core.training import SGD, Adam, AdamW, LearningRate, Training
from nt_torch.compile import as_numpy

GRAPH = nt_models.mlp(inputs=6, hidden=(16, 16), classes=3)


def train(spec, *, epochs=4, training=None, report=lambda _: None, seed=0, **options):
    spec = spec.replace(plan=OneRun(epochs=epochs))
    training = training or Training(batch_size=30, optimizer=SGD(lr=0.05))
    return nt_torch.train(
        spec,
        training,
        Blobs(),
        seed=seed,
        test=Blobs(60, shuffle=False),
        device="cpu",
        report=report,
        **options,
    )


def short(preset):
    spec = PRESETS[preset](GRAPH)
    if not hasattr(spec.topology, "interval"):
        return spec
    sparsity = spec.topology.sparsity if spec.topology.sparsity <= 0.8 else 0.6  # 0.99 of so few is too much
    return spec.replace(topology=spec.topology.replace(interval=2, sparsity=sparsity))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_saves_and_loads(preset, tmp_path):
    records = []
    spec = short(preset)
    recipe = Training(batch_size=30, optimizer=SGD(lr=0.2))
    trained = train(spec, report=records.append, training=recipe, epochs=10)
    assert trained.steps == 30
    assert trained.examples == 900
    assert trained.metrics.accuracy > 0.6
    events = [record["event"] for record in records]
    assert events[0] == "start"
    assert events.count("epoch") == 10
    assert events.count("step") == 30
    assert ("update" in events) == (spec.topology.kind in {"dynamic", "gradual_pruning"})
    save_checkpoint(tmp_path, nt_torch.checkpoint(trained.model, {"seed": 0}))
    loaded = nt_torch.load(tmp_path)
    x = Blobs(20).inputs
    np.testing.assert_array_equal(nt_torch.predict(loaded, x), nt_torch.predict(trained.model, x))
    active = sum(mask.count for mask in load_checkpoint(tmp_path).masks.values())
    assert active == (sum(spec.counts.values()) if spec.topology.kind != "dense" else 0)
    pairs = [record.get("disagreement_matrix") for record in records if record["event"] == "epoch"]
    assert pairs[-1] == (trained.metrics.disagreement_matrix.tolist() if spec.members > 1 else None)
    first_alone = Fitted(weights=(1.0, *[0.0] * (spec.members - 1)))
    metrics = nt_torch.evaluate(loaded, Blobs(20), aggregation=first_alone)
    assert metrics.accuracy == metrics.member_accuracy[0]


def test_a_loaded_network_of_convolutions_gives_the_same_bits(tmp_path):
    graph = nt_models.wide_resnet(depth=10, width=1, classes=3, size=8, channels=1)

    class Images(Blobs):
        def epoch(self, number, batch_size, first=0):
            for inputs, labels in super().epoch(number, batch_size, first):
                yield np.resize(inputs, (len(inputs), 1, 8, 8)), labels

    spec = PRESETS["neurotrails"](graph).replace(plan=OneRun(steps=3))
    trained = nt_torch.train(spec, Training(batch_size=30), Images(), device="cpu")
    save_checkpoint(tmp_path, nt_torch.checkpoint(trained.model))
    x = np.random.default_rng(0).standard_normal((20, 1, 8, 8)).astype(np.float32)
    wanted = nt_torch.predict(trained.model, x)
    np.testing.assert_array_equal(nt_torch.predict(nt_torch.load(tmp_path), x), wanted)


def test_the_same_seed_is_the_same_run_to_the_bit():
    first, second, other = (train(short("neurotrails"), seed=seed).model.state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


def test_training_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(short("neurotrails"))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.are_deterministic_algorithms_enabled()


def test_members_of_a_full_ensemble_train_as_if_alone():
    """A mean over members would divide each one's gradient by M."""
    together = train(EnsembleSpec(graph=GRAPH, structure=Independent(count=3))).model
    alone = train(EnsembleSpec(graph=GRAPH, structure=Single())).model
    for placed in alone.spec.layout.weights:
        np.testing.assert_allclose(
            as_numpy(together.array(placed.name)), as_numpy(alone.array(placed.name)), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("optimizer", [SGD(lr=0.2), Adam(lr=0.01), AdamW(lr=0.01)], ids=lambda o: o.kind)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_optimizers_precisions_accumulation_and_clipping(optimizer, precision):
    recipe = Training(batch_size=30, accumulation=3, optimizer=optimizer, precision=precision, clip_norm=1.0)
    trained = train(short("neurotrails"), training=recipe, epochs=12)
    assert trained.steps == 36
    assert trained.metrics.accuracy > 0.5
    for name in trained.model.masked:
        assert (trained.model.array(name)[~trained.model.mask(name)] == 0).all()


def test_accumulation_must_divide_the_batch():
    with pytest.raises(SpecError, match="divisor of batch_size=64, found 3"):
        Training(batch_size=64, accumulation=3)


def test_accumulated_batches_train_as_whole_ones():
    whole = train(short("neurotrails"), training=Training(batch_size=30, optimizer=SGD(lr=0.05)))
    parts = train(
        short("neurotrails"), training=Training(batch_size=30, accumulation=3, optimizer=SGD(lr=0.05))
    )
    for name in whole.model.masked:
        np.testing.assert_allclose(
            as_numpy(parts.model.array(name)), as_numpy(whole.model.array(name)), rtol=1e-3, atol=1e-4
        )


def test_accumulation_changes_nothing_where_the_last_batch_is_short():
    recipe = {"batch_size": 64, "optimizer": SGD(lr=0.05, momentum=0.0)}
    whole, parts = (
        train(short("single"), training=Training(accumulation=n, **recipe), epochs=3).model for n in (1, 16)
    )
    for placed in whole.spec.layout.weights:
        np.testing.assert_allclose(
            as_numpy(parts.array(placed.name)), as_numpy(whole.array(placed.name)), rtol=1e-4, atol=1e-6
        )


def test_half_precision_on_a_cpu_is_an_error_instead_of_nothing():
    with pytest.raises(DataError, match="float16 needs a GPU"):
        train(short("single"), training=Training(batch_size=30, precision="float16"))


def test_blocks_that_pytorch_could_not_tell_apart_are_an_error():
    net = GraphBuilder(Features(count=4))
    for name in ("a.b", "a_b"):
        with net.block(name) as b:
            b.out = b.linear(b.inp, 4, name="fc")
    with net.classifier() as b:
        b.out = b.linear(b.inp, 2)
    with pytest.raises(GraphError, match="block 'a_b', op 'fc': PyTorch names it 'a_b/fc', which is taken"):
        nt_torch.compile(EnsembleSpec(graph=net.build()))


@pytest.mark.parametrize("label", [-1, 10, -100])
def test_a_label_outside_the_classes_is_an_error(label):
    with pytest.raises(DataError, match="expected classes from 0 to 9"):
        nt_torch.ensemble_loss(torch.zeros(3, 2, 10), torch.tensor([1, label]))


def test_a_model_with_values_where_it_is_inactive_is_not_saved_as_another(tmp_path):
    model = nt_torch.compile(short("neurotrails"))
    with torch.no_grad():
        model.array(model.masked[0]).add_(0.1)
    with pytest.raises(CheckpointError, match="inactive elements are not 0"):
        save_checkpoint(tmp_path, nt_torch.checkpoint(model))


def test_doubles_are_predicted_as_floats():
    model = nt_torch.compile(short("neurotrails"))
    assert nt_torch.predict(model, np.zeros((2, 6))).shape == (3, 2, 3)


def test_the_learning_rate_follows_its_schedule():
    records = []
    recipe = Training(
        batch_size=30,
        optimizer=SGD(lr=0.1),
        learning_rate=LearningRate(schedule="steps", milestones=(0.5,), factor=0.1),
    )
    train(short("single"), training=recipe, report=records.append)
    rates = [record["lr"] for record in records if record["event"] == "epoch"]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_a_plan_in_steps_stops_there():
    trained = nt_torch.train(
        short("neurotrails").replace(plan=OneRun(steps=7)), Training(batch_size=30), Blobs(), device="cpu"
    )
    assert trained.steps == 7
    assert trained.examples == 210


def test_a_loss_that_is_not_finite_says_what_to_do():
    with pytest.raises(
        NotFiniteError, match=r"step 2: the norm of its gradient is nan .* Lower the learning rate"
    ):
        train(short("single"), training=Training(batch_size=30, optimizer=SGD(lr=1e20)))


def test_nothing_to_train_on():
    spec = short("single").replace(plan=OneRun(epochs=1))
    with pytest.raises(DataError, match="at least one training example"):
        nt_torch.train(spec, Training(), Blobs(0), device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "xla", "meta"])
def test_a_device_that_is_not_there(device, tmp_path):
    spec = short("single").replace(plan=OneRun(epochs=1))
    with pytest.raises(DataError, match=f"device '{device}'.*use cpu"):
        nt_torch.train(spec, Training(), Blobs(), device=device)
    save_checkpoint(tmp_path, nt_torch.checkpoint(nt_torch.compile(spec)))
    with pytest.raises(DataError, match=f"device '{device}'.*use cpu"):
        nt_torch.load(tmp_path, device=device)


def test_a_tracker_that_is_not_there():
    with pytest.raises(DataError, match="tracker 'tensorbord'"):
        train(short("single"), trackers=["tensorbord"])


def test_a_tracker_writes(tmp_path):
    train(short("neurotrails"), trackers=["tensorboard"], folder=tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_evaluation_leaves_the_mode_and_weights_alone():
    model = nt_torch.compile(PRESETS["treenet"](nt_models.mlp(inputs=6, hidden=(8,), classes=3, norm=True)))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    metrics = nt_torch.evaluate(model, Blobs(50, shuffle=False), batch_size=7)
    assert metrics.count == 50
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_images_in_another_layout_are_an_error():
    graph = nt_models.wide_resnet(depth=10, width=1, classes=10, size=8, channels=3)
    model = nt_torch.compile(EnsembleSpec(graph=graph))
    with pytest.raises(DataError, match=r"expected shape \(batch, 3, 8, 8\), found \(2, 8, 8, 3\)"):
        model(torch.zeros(2, 8, 8, 3))


def test_targets_of_another_shape_are_an_error():
    with pytest.raises(DataError, match=r"expected shape \(4,\)"):
        nt_torch.ensemble_loss(torch.zeros(3, 4, 10), torch.zeros(5, dtype=torch.long))


def test_loss_is_the_mean_or_sum_over_members():
    logits, targets = torch.randn(3, 4, 10), torch.tensor([1, 2, 3, 4])
    each = torch.stack([torch.nn.functional.cross_entropy(head, targets) for head in logits])
    assert nt_torch.ensemble_loss(logits, targets) == pytest.approx(float(each.mean()), rel=1e-6)
    assert nt_torch.ensemble_loss(logits, targets, reduction="sum") == pytest.approx(
        float(each.sum()), rel=1e-6
    )


def test_a_checkpoint_of_another_spec_is_an_error(tmp_path):
    model = nt_torch.compile(EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=2)))
    save_checkpoint(tmp_path, nt_torch.checkpoint(model))
    other = EnsembleSpec(graph=GRAPH, structure=MultiHead(split=1, heads=3))
    with pytest.raises(CheckpointError, match="another spec: weight 'head3/"):
        load_checkpoint(tmp_path, expected=other)


def test_masked_models_go_through_state_dict_deepcopy_and_torch_compile():
    import copy

    model = nt_torch.compile(short("neurotrails"), seed=1).eval()
    x = torch.from_numpy(Blobs(4).inputs)
    wanted = model(x)
    other = nt_torch.compile(short("neurotrails"), seed=2).eval()
    other.load_state_dict(model.state_dict())
    for same in (other, copy.deepcopy(model), torch.compile(model, backend="eager", fullgraph=True)):
        assert torch.equal(same(x), wanted)
