"""``config.json`` of a LLaMA in the layout of Hugging Face transformers, and the arguments of ``llama``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from nt_core import CheckpointError, NeuroTrailsError, SpecError
from nt_core.files import read_json
from nt_core.graph.ops import AnyRotaryScaling, Attention, LinearScaling
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
    "head_dim": "head_dim",
    "attention_bias": "attention_bias",
    "rotary_scaling": "rope_scaling",
}
"""Argument of ``llama`` → field of ``config.json``."""

DEFAULT_ROTARY_BASE: Final = 10_000.0
MISTRAL_KV_HEADS: Final = 8
MISTRAL_WINDOW: Final = 4096
"""Defaults of transformers' MistralConfig, which other than LlamaConfig's are not None."""

Kind = Literal["default", "linear", "llama3"]


class Rotary(Value, extra="ignore"):
    """Kind of rotary position embedding, by the names of transformers; other kinds are not supported."""

    rope_type: Kind | None = None
    type: Kind | None = None
    rope_theta: float | None = None
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: Count | None = None
    partial_rotary_factor: Literal[1] = 1

    @staticmethod
    def of(base: float, scaling: AnyRotaryScaling | None) -> Rotary:
        """Return the embedding of a base and a scaling."""
        match scaling:
            case None:
                return Rotary(rope_type="default", rope_theta=base)
            case LinearScaling():
                return Rotary(rope_type="linear", rope_theta=base, factor=scaling.factor)
        return Rotary(
            rope_type="llama3",
            rope_theta=base,
            factor=scaling.factor,
            low_freq_factor=scaling.low_turns,
            high_freq_factor=scaling.high_turns,
            original_max_position_embeddings=scaling.original_length,
        )

    @property
    def kind(self) -> Kind:
        """The kind, from the field of any version of transformers."""
        return self.rope_type or self.type or "default"

    def scaling(self) -> dict[str, Any] | None:
        """Return the argument ``rotary_scaling`` of ``llama``.

        Raises:
            SpecError: a number of the scaling is missing.
        """
        if self.kind == "default":
            return None
        needed = SCALING[:1] if self.kind == "linear" else SCALING
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise SpecError(f"rope_scaling: expected {', '.join(missing)} for {self.kind!r}; add them")
        if self.kind == "linear":
            return {"kind": "linear", "factor": self.factor}
        return {
            "kind": "llama3",
            "factor": self.factor,
            "low_turns": self.low_freq_factor,
            "high_turns": self.high_freq_factor,
            "original_length": self.original_max_position_embeddings,
        }


SCALING: Final = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
"""Fields of a scaling; the first alone for a linear one."""


class LlamaConfig(Value, extra="ignore"):
    """The fields of ``config.json`` that determine a LLaMA's computation; other fields are ignored.

    A missing field has the default of transformers; sizes must be given. A field with one legal value stands
    for a feature of which ``llama`` computes no other variant. A Mistral computes as a LLaMA does, where no
    sequence is longer than its window.

    Example:
        >>> from nt_models.llama import llama_arguments, llama_tiny
        >>> config = LlamaConfig.of(llama_arguments(llama_tiny()))
        >>> config.num_hidden_layers, config.head_dim, config.arguments() == llama_arguments(llama_tiny())
        (4, 16, True)
    """

    error_path = ""
    model_type: Literal["llama", "mistral"]
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
    sliding_window: Count | None = None
    tie_word_embeddings: bool = False
    hidden_act: Literal["silu"] = "silu"
    attention_bias: bool = False
    mlp_bias: Literal[False] = False
    quantization_config: None = None

    @staticmethod
    def of(arguments: Mapping[str, Any]) -> LlamaConfig:
        """Return the config of the network that ``llama`` makes from these arguments."""
        fields = {ARGUMENTS[name]: value for name, value in arguments.items() if name != "rotary_scaling"}
        base, scaling = fields["rope_theta"], arguments.get("rotary_scaling")
        checked = Attention(heads=1, kv_heads=1, rotary_base=base, rotary_scaling=scaling).rotary_scaling
        rotary = Rotary.of(base, checked)
        older = {} if checked is None else {"rope_scaling": rotary}
        return LlamaConfig(model_type="llama", rope_parameters=rotary, **older, **fields)

    def arguments(self) -> dict[str, Any]:
        """Return the arguments with which ``llama`` makes this network, at its greatest length."""
        given = {name: getattr(self, field) for name, field in ARGUMENTS.items()}
        heads = MISTRAL_KV_HEADS if self._left_out("num_key_value_heads") else self.num_key_value_heads
        return given | {
            "kv_heads": heads or self.num_attention_heads,
            "head_dim": self.head_dim or self.hidden_size // self.num_attention_heads,
            "attention_bias": self.attention_bias and self.model_type == "llama",
            "rotary_base": self._rotary_base(),
            "rotary_scaling": self._rotary.scaling(),
        }

    @property
    def window(self) -> int | None:
        """Number of tokens that a token sees at most, with itself; None: all before it."""
        if self.model_type == "llama":
            return None
        return MISTRAL_WINDOW if self._left_out("sliding_window") else self.sliding_window

    def to_json(self) -> dict[str, Any]:
        """Return ``config.json`` for transformers 4 and 5, as float32 without tied embeddings."""
        checked = {"partial_rotary_factor"}
        unwritten: Any = {"quantization_config": True, "sliding_window": True}
        unwritten |= {"rope_parameters": checked, "rope_scaling": checked}
        fields = self.model_dump(exclude=unwritten, exclude_none=True)
        return {
            "architectures": ["LlamaForCausalLM"],
            **fields,
            "torch_dtype": "float32",
            "dtype": "float32",
        }

    def _left_out(self, field: str) -> bool:
        """Tell whether a Mistral's config leaves a field to transformers' default."""
        return self.model_type == "mistral" and field not in self.model_fields_set

    @property
    def _rotary(self) -> Rotary:
        """The rotary embedding, from the field of either version of transformers."""
        return self.rope_scaling or self.rope_parameters or Rotary()

    def _rotary_base(self) -> float:
        return self._rotary.rope_theta or self.rope_theta or DEFAULT_ROTARY_BASE


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
    if config.head_dim is None and config.hidden_size % config.num_attention_heads:
        raise CheckpointError(
            f"{path}: num_attention_heads: expected a divisor of hidden_size={config.hidden_size}, found "
            f"{config.num_attention_heads}; correct it, or give head_dim"
        )
    return config, content
