"""``config.json`` of a LLaMA in the layout of Hugging Face transformers, and the arguments of ``llama``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from nt_core import CheckpointError, NeuroTrailsError
from nt_core.files import read_json
from nt_core.values import Count, Value

CONFIG: Final = "config.json"
ARGUMENTS: Final = {
    "blocks": "num_hidden_layers",
    "width": "hidden_size",
    "hidden": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "vocabulary": "vocab_size",
    "length": "max_position_embeddings",
    "rotary_base": "rope_theta",
    "eps": "rms_norm_eps",
}
"""Argument of ``llama`` → field of ``config.json``."""

DEFAULT_ROTARY_BASE: Final = 10_000.0


class Rotary(Value, extra="ignore"):
    """Kind of rotary position embedding; only the default kind is supported."""

    rope_type: Literal["default"] = "default"
    type: Literal["default"] = "default"
    rope_theta: float | None = None


class LlamaConfig(Value, extra="ignore"):
    """The fields of ``config.json`` that determine a LLaMA's computation; other fields are ignored.

    A missing field has the default of transformers; sizes must be given. A field with one legal value stands
    for a feature of which ``llama`` computes no other variant.

    Example:
        >>> from nt_models.llama import llama_arguments, llama_tiny
        >>> config = LlamaConfig.of(llama_arguments(llama_tiny()))
        >>> config.num_hidden_layers, config.head_dim, config.arguments() == llama_arguments(llama_tiny())
        (4, 16, True)
    """

    error_path = ""
    model_type: Literal["llama"]
    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Count
    num_attention_heads: Count
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Count
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: Rotary | None = None
    rope_scaling: Rotary | None = None
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    quantization_config: None = None

    @staticmethod
    def of(arguments: Mapping[str, Any]) -> LlamaConfig:
        """Return the config of the network that ``llama`` makes from these arguments."""
        fields = {ARGUMENTS[name]: value for name, value in arguments.items()}
        return LlamaConfig(
            model_type="llama",
            head_dim=fields["hidden_size"] // fields["num_attention_heads"],
            rope_parameters=Rotary(rope_theta=fields["rope_theta"]),
            **fields,
        )

    def arguments(self) -> dict[str, Any]:
        """Return the arguments with which ``llama`` makes this network, at its greatest length."""
        given = {name: getattr(self, field) for name, field in ARGUMENTS.items()}
        return given | {
            "kv_heads": self.num_key_value_heads or self.num_attention_heads,
            "rotary_base": self._rotary_base(),
        }

    def to_json(self) -> dict[str, Any]:
        """Return ``config.json`` for transformers 4 and 5, as float32 without tied embeddings."""
        fields = self.model_dump(exclude={"rope_parameters", "rope_scaling", "quantization_config"})
        return {
            "architectures": ["LlamaForCausalLM"],
            **fields,
            "rope_parameters": {"rope_theta": self._rotary_base(), "rope_type": "default"},
            "torch_dtype": "float32",
            "dtype": "float32",
        }

    def _rotary_base(self) -> float:
        """Return the rotary base from the field of either version of transformers."""
        rotary = self.rope_scaling or self.rope_parameters or Rotary()
        return rotary.rope_theta or self.rope_theta or DEFAULT_ROTARY_BASE


def read_config(folder: Path) -> tuple[LlamaConfig, dict[str, Any]]:
    """Read and check the ``config.json`` of a folder.

    Returns:
        The fields that determine the network's computation, and the file's whole content.

    Raises:
        CheckpointError: the file cannot be read, or describes a network that ``llama`` does not compute;
            the message names every such field with its expected and found values.
    """
    path = folder / CONFIG
    content = read_json(path, "expected a folder that save_pretrained of transformers wrote")
    try:
        config = LlamaConfig(**content)
    except NeuroTrailsError as error:
        raise CheckpointError(
            f"{path}: not a LLaMA that nt_models.llama computes; choose a model of that kind:\n{error}"
        ) from None
    size, left = divmod(config.hidden_size, config.num_attention_heads)
    if left:
        raise CheckpointError(
            f"{path}: num_attention_heads: expected a divisor of hidden_size={config.hidden_size}, found "
            f"{config.num_attention_heads}; correct it"
        )
    if config.head_dim not in (None, size):
        raise CheckpointError(
            f"{path}: head_dim: expected hidden_size / num_attention_heads = {size}, found "
            f"{config.head_dim}; choose a model with such heads"
        )
    return config, content
