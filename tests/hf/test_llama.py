"""LLaMA against transformers' own: logits, files both ways, parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import nt_torch
from nt_core import EnsembleSpec, Independent, MultiHead, Single
from nt_core.reference import forward
from nt_models.huggingface import load_llama, read_llama_config
from nt_torch.checkpoint import restore

LENGTH = 13
STRUCTURES = (Single(), MultiHead(split=1, heads=3), MultiHead(split=0, heads=2), Independent(count=2))


def pretrained(**changes: Any) -> LlamaForCausalLM:
    """Make a small LLaMA of transformers in which no weight has the value it usually starts with."""
    sizes = {
        "vocab_size": 37,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.dim() == 1))
    return model.eval()


@torch.no_grad()
def logits_of(model: LlamaForCausalLM, tokens: torch.Tensor) -> np.ndarray[Any, Any]:
    return model(tokens).logits.numpy()


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randint(0, 37, (5, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: f"{s.kind}{s.members}")
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_every_member_has_the_pretrained_logits(
    tmp_path: Path, tokens: torch.Tensor, kv_heads: int, structure: Any
) -> None:
    theirs = pretrained(
        num_key_value_heads=kv_heads,
        rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
        rms_norm_eps=1e-4,
    )
    theirs.save_pretrained(tmp_path)
    spec = EnsembleSpec(graph=read_llama_config(tmp_path), structure=structure)
    loaded = load_llama(tmp_path, spec)
    expected = np.broadcast_to(logits_of(theirs, tokens), (spec.members, 5, LENGTH, 37))
    assert np.abs(expected).max() > 1
    in_torch = restore(loaded)
    with torch.no_grad():
        np.testing.assert_allclose(in_torch(tokens).numpy(), expected, rtol=1e-5, atol=1e-5)
    in_numpy = forward(spec.layout, loaded.values, tokens.numpy())
    np.testing.assert_allclose(in_numpy, expected, rtol=1e-5, atol=1e-5)
