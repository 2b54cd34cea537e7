"""LLaMA against transformers' own: logits, files both ways, the number of parameters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

import nt_models
import nt_torch
from nt_core import CheckpointError, EnsembleSpec, Independent, MultiHead, Single, Static
from nt_core.cost import cost
from nt_core.graph.ops import Attention
from nt_core.reference import forward
from nt_core.testing.data import random_values
from nt_models.huggingface.config import LlamaConfig as OurConfig
from nt_models.huggingface.config import Rotary
from nt_models.huggingface.folder import load_llama, read_llama_config, save_llama
from nt_models.llama import llama_arguments
from nt_torch.checkpoint import restore

LENGTH, VOCABULARY = 13, 37
STRUCTURES = (Single(), MultiHead(split=1, heads=3), MultiHead(split=0, heads=2), Independent(count=2))


def pretrained(**changes: Any) -> LlamaForCausalLM:
    """Make a small LLaMA of transformers in which no weight has the value it usually starts with."""
    fields = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": LENGTH,
        "rms_norm_eps": 1e-4,
        "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"},
        "bos_token_id": 3,
        "eos_token_id": [4, 5],
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**fields | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1))
    return model.eval()


@torch.no_grad()
def logits_of(model: torch.nn.Module, tokens: torch.Tensor) -> np.ndarray[Any, Any]:
    output = model(tokens)
    return (output if isinstance(output, torch.Tensor) else output.logits).numpy()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (5, LENGTH), generator=torch.Generator().manual_seed(1))


def opened(folder: Path, caplog: pytest.LogCaptureFixture) -> LlamaForCausalLM:
    """Open a folder as its users will; nothing is missing or unexpected, and nobody complains."""
    caplog.clear()
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, LlamaForCausalLM)
    assert not any(info.values()), info
    assert not caplog.records
    return model


def test_complaints_are_heard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Guard the check above: what transformers has to say reaches it."""
    pretrained().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"num_hidden_layers": 4}))
    caplog.clear()
    AutoModelForCausalLM.from_pretrained(tmp_path)
    assert "MISSING" in caplog.text


def assert_same_state(found: LlamaForCausalLM, expected: LlamaForCausalLM) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name].numpy(), tensor.numpy())


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: f"{s.kind}{s.members}")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_every_member_has_the_pretrained_logits(
    tmp_path: Path, tokens: torch.Tensor, kv_heads: int, structure: Any
) -> None:
    theirs = pretrained(num_key_value_heads=kv_heads)
    theirs.save_pretrained(tmp_path)
    spec = EnsembleSpec(graph=read_llama_config(tmp_path), structure=structure)
    loaded = load_llama(tmp_path, spec)
    expected = np.broadcast_to(logits_of(theirs, tokens), (spec.members, 5, LENGTH, VOCABULARY))
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(logits_of(restore(loaded), tokens), expected, rtol=1e-5, atol=1e-5)
    in_numpy = forward(spec.layout, loaded.values, tokens.numpy())
    np.testing.assert_allclose(in_numpy, expected, rtol=1e-5, atol=1e-5)


SCALED = {
    "rope_type": "llama3",
    "rope_theta": 20.0,
    "factor": 8.0,
    "low_freq_factor": 0.3,
    "high_freq_factor": 0.9,
    "original_max_position_embeddings": 6,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "llama-3.1": {"rope_parameters": SCALED},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
    "wide heads": {"head_dim": 10},
    "narrow heads": {"head_dim": 2, "num_key_value_heads": 1},
    "biases": {"attention_bias": True},
    "all": {"rope_parameters": SCALED, "head_dim": 10, "attention_bias": True, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_has_the_pretrained_logits_and_is_written_again(
    tmp_path: Path, tokens: torch.Tensor, variant: str, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = pretrained(**VARIANTS[variant])
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = logits_of(theirs, tokens)
    assert np.abs(expected).max() > 1
    loaded = load_llama(
        tmp_path / "theirs",
        EnsembleSpec(graph=read_llama_config(tmp_path / "theirs"), structure=MultiHead(split=1, heads=2)),
    )
    in_numpy = forward(loaded.spec.layout, loaded.values, tokens.numpy())
    for member in (*logits_of(restore(loaded), tokens), *in_numpy):
        np.testing.assert_allclose(member, expected, rtol=1e-5, atol=1e-5)
    save_llama(tmp_path / "ours", loaded, head=2)
    again = opened(tmp_path / "ours", caplog)
    assert_same_state(again, theirs)
    np.testing.assert_array_equal(logits_of(again, tokens), expected)


def test_the_scaling_of_llama_3_1_has_all_three_ranges() -> None:
    """Guard the test above: some frequencies stay, some are divided, some mixed."""
    scaling = Rotary(**SCALED).scaling()
    assert scaling is not None
    op = Attention(heads=1, kv_heads=1, rotary_base=20.0, rotary_scaling=scaling)
    for size in (6, 10):
        exponents = np.arange(0, size, 2) / size
        ratio = 20.0**-exponents / op.frequencies(exponents)
        assert ratio.min() == 1
        assert ratio.max() == 8
        assert ((ratio > 1.001) & (ratio < 7.999)).any()


@pytest.mark.parametrize("window", [None, LENGTH])
def test_a_mistral_without_a_window_has_the_pretrained_logits(
    tmp_path: Path, tokens: torch.Tensor, window: int | None
) -> None:
    torch.manual_seed(0)
    theirs = MistralForCausalLM(
        MistralConfig(
            vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=2 * LENGTH,
            sliding_window=window,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1))
    theirs.eval().save_pretrained(tmp_path)
    loaded = load_llama(tmp_path, EnsembleSpec(graph=read_llama_config(tmp_path, length=LENGTH)))
    np.testing.assert_allclose(
        logits_of(restore(loaded), tokens)[0], logits_of(theirs, tokens), rtol=1e-5, atol=1e-5
    )
    if window:
        with pytest.raises(CheckpointError, match="sliding_window"):
            read_llama_config(tmp_path)


def test_numbers_of_special_tokens_that_nobody_gave_are_none(tmp_path: Path) -> None:
    """Transformers takes 1 and 2 where a config says nothing."""
    spec = EnsembleSpec(graph=nt_models.llama_tiny(vocabulary=VOCABULARY, length=LENGTH))
    save_llama(tmp_path, nt_torch.checkpoint(nt_torch.compile(spec)))
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, None, None)


def test_a_shorter_length_is_the_beginning_of_the_sequences(tmp_path: Path, tokens: torch.Tensor) -> None:
    theirs = pretrained()
    theirs.save_pretrained(tmp_path)
    loaded = load_llama(tmp_path, EnsembleSpec(graph=read_llama_config(tmp_path, length=6)))
    ours = logits_of(restore(loaded), tokens[:, :6])[0]
    np.testing.assert_allclose(ours, logits_of(theirs, tokens)[:, :6], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shard", ["2KB", "20KB", "1GB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_shards_and_short_floats_are_read_to_the_bit(tmp_path: Path, shard: str, dtype: torch.dtype) -> None:
    theirs = pretrained().to(dtype)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "1GB")
    save_llama(tmp_path / "again", load_llama(tmp_path))
    assert_same_state(LlamaForCausalLM.from_pretrained(tmp_path / "again"), theirs.float())


def test_heads_start_from_tied_embeddings(
    tmp_path: Path, tokens: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    theirs = pretrained(tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    spec = EnsembleSpec(graph=read_llama_config(tmp_path), structure=MultiHead(split=1, heads=2))
    loaded = load_llama(tmp_path, spec)
    for member in logits_of(restore(loaded), tokens):
        np.testing.assert_allclose(member, logits_of(theirs, tokens), rtol=1e-5, atol=1e-5)
    save_llama(tmp_path / "untied", loaded, head=2)
    again = opened(tmp_path / "untied", caplog)
    assert not again.config.tie_word_embeddings
    np.testing.assert_array_equal(logits_of(again, tokens), logits_of(theirs, tokens))


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: f"{s.kind}{s.members}")
def test_each_member_is_written_as_a_model_of_its_own(
    tmp_path: Path, tokens: torch.Tensor, structure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Values are arbitrary and differ among heads, as after a training; some are masked."""
    graph = nt_models.llama(
        blocks=3, width=24, hidden=40, heads=4, kv_heads=2, vocabulary=VOCABULARY, length=LENGTH,
        rotary_base=300.0, eps=1e-3,
    )  # fmt: skip
    spec = EnsembleSpec(graph=graph, structure=structure, topology=Static(sparsity=0.5))
    model = nt_torch.compile(spec).eval()
    values = random_values(spec.layout, seed=1, dtype=np.float32)
    with torch.no_grad():
        for name, value in values.items():
            model.array(name).copy_(torch.from_numpy(value))
            if (mask := model.mask(name)) is not None:
                model.array(name).masked_fill_(~mask, 0)
    logits = logits_of(model, tokens)
    for head in range(1, spec.members + 1):
        save_llama(tmp_path / str(head), nt_torch.checkpoint(model), head=head)
        theirs = opened(tmp_path / str(head), caplog)
        assert theirs.dtype == torch.float32
        np.testing.assert_allclose(logits_of(theirs, tokens), logits[head - 1], rtol=1e-5, atol=1e-5)


def test_a_model_comes_back_to_the_bit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    theirs = pretrained()
    theirs.save_pretrained(tmp_path / "theirs")
    spec = EnsembleSpec(
        graph=read_llama_config(tmp_path / "theirs", length=4), structure=MultiHead(split=2, heads=2)
    )
    save_llama(tmp_path / "ours", load_llama(tmp_path / "theirs", spec), head=2)
    again = opened(tmp_path / "ours", caplog)
    assert_same_state(again, theirs)
    for field in (*OurConfig.model_fields, "bos_token_id", "eos_token_id", "pad_token_id"):
        assert getattr(again.config, field, None) == getattr(theirs.config, field, None), field


def test_what_is_written_generates(tmp_path: Path, tokens: torch.Tensor) -> None:
    theirs = pretrained(max_position_embeddings=32, eos_token_id=None, bos_token_id=None, pad_token_id=0)
    theirs.save_pretrained(tmp_path)
    save_llama(tmp_path / "ours", load_llama(tmp_path))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    arguments = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(tokens)}
    torch.testing.assert_close(again.generate(tokens, **arguments), theirs.generate(tokens, **arguments))


@pytest.mark.parametrize("place", ["rope_parameters", "rope_scaling", "rope_theta", None])
def test_every_age_of_config_is_read_as_they_read_it(tmp_path: Path, place: str | None) -> None:
    pretrained().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    del content["rope_parameters"], content["num_key_value_heads"], content["head_dim"]
    if place == "rope_theta":
        content |= {"rope_theta": 500.0, "rope_scaling": None, "torch_dtype": content.pop("dtype")}
    elif place:
        content |= {place: {"rope_theta": 500.0, "rope_type": "default"}}
    path.write_text(json.dumps(content))
    theirs, ours = LlamaConfig.from_pretrained(tmp_path), llama_arguments(read_llama_config(tmp_path))
    assert ours["rotary_base"] == theirs.rope_parameters["rope_theta"] == (500.0 if place else 10_000.0)
    assert ours["kv_heads"] == theirs.num_key_value_heads == 4
    assert ours["eps"] == theirs.rms_norm_eps == 1e-4


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("llama_130m", 134_105_856), ("llama_250m", 247_370_496), ("llama_350m", 367_969_280)],
)
def test_the_number_of_parameters_is_theirs(name: str, parameters: int) -> None:
    graph = nt_models.ARCHITECTURES[name]()
    with torch.device("meta"):
        theirs = LlamaForCausalLM(LlamaConfig(**OurConfig.of(llama_arguments(graph)).to_json()))
    assert theirs.num_parameters() == cost(EnsembleSpec(graph=graph)).parameters_total == parameters


def test_a_checkpoint_of_ours_can_be_written_later(tmp_path: Path, tokens: torch.Tensor) -> None:
    """The token ids lie in the record, which our own checkpoint keeps."""
    from nt_core.checkpoint import load_checkpoint, save_checkpoint

    pretrained().save_pretrained(tmp_path / "theirs")
    loaded = load_llama(tmp_path / "theirs")
    save_checkpoint(tmp_path / "ours", replace(loaded, record={**loaded.record, "steps": 3}))
    save_llama(tmp_path / "again", load_checkpoint(tmp_path / "ours"))
    config = LlamaConfig.from_pretrained(tmp_path / "again")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, [4, 5], None)
