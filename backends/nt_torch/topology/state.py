"""Optimiser state that is elementwise: its element belongs to the weight of the same position.

Only such state can be cleared where a connection is pruned or grown. A tensor of the weight's shape need not
be elementwise: the second moment of SOAP lives in a rotated basis, and Shampoo's preconditioner of a square
weight has the weight's shape.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Set
from typing import Any, Final

import torch
from torch import Tensor

from nt_torch.network.remask import remask_
from nt_torch.processes.shards import local

_ADAM = "exp_avg exp_avg_sq max_exp_avg_sq"

KNOWN: Final[Mapping[str, Mapping[str, str]]] = {
    "torch": {
        "ASGD": "ax",
        "Adadelta": "square_avg acc_delta",
        "Adafactor": "variance",
        "Adagrad": "sum=initial_accumulator_value",
        "Adam": _ADAM,
        "AdamW": _ADAM,
        "Adamax": "exp_avg exp_inf",
        "Muon": "momentum_buffer",
        "NAdam": "exp_avg exp_avg_sq",
        "RAdam": "exp_avg exp_avg_sq",
        "RMSprop": "square_avg momentum_buffer grad_avg",
        "Rprop": "prev step_size=lr",
        "SGD": "momentum_buffer",
    },
    "torchao": dict.fromkeys(
        ("Adam8bit", "Adam4bit", "AdamFp8", "AdamW8bit", "AdamW4bit", "AdamWFp8"), _ADAM
    ),
    "schedulefree": {
        "AdamWScheduleFree": "z exp_avg_sq",
        "RAdamScheduleFree": "z exp_avg_sq",
        "SGDScheduleFree": "z",
    },
    "timm": {
        "Lookahead": "lookahead_slow_buff",
    },
    "heavyball": {
        "AdamW": "update_by_adam_exp_avg update_by_adam_exp_avg_sq",
        "LaProp": "update_by_laprop_exp_avg update_by_laprop_exp_avg_sq",
        "Muon": "nesterov_ema_momentum",
        "SFAdamW": "scale_by_exp_avg_sq_exp_avg_sq update_by_schedule_free_z",
    },
    "pytorch_optimizer": {
        "ADOPT": "exp_avg exp_avg_sq",
        "AdEMAMix": "exp_avg exp_avg_sq exp_avg_slow",
        "AdaBelief": "exp_avg exp_avg_var max_exp_avg_var",
        "AdaMax": "exp_avg exp_inf",
        "AdamP": "exp_avg exp_avg_sq",
        "AdamS": "exp_avg exp_avg_sq",
        "Adan": "exp_avg exp_avg_sq exp_avg_diff previous_grad",
        "DiffGrad": "exp_avg exp_avg_sq previous_grad",
        "Grams": "exp_avg exp_avg_sq",
        "LARS": "momentum_buffer",
        "Lamb": "exp_avg exp_avg_sq",
        "LaProp": "exp_avg exp_avg_sq",
        "Lion": "exp_avg",
        "Lookahead": "slow_momentum",
        "MADGRAD": "grad_sum_sq s x0",
        "MARS": "exp_avg exp_avg_sq last_grad",
        "Muon": "momentum_buffer exp_avg exp_avg_sq",
        "NovoGrad": "moments",
        "PNM": "pos_momentum neg_momentum",
        "Prodigy": "s p0 exp_avg exp_avg_sq",
        "QHAdam": "exp_avg exp_avg_sq",
        "SGDP": "momentum",
        "SOAP": "exp_avg",
        "SWATS": "exp_avg exp_avg_sq",
        "ScheduleFreeAdamW": "z exp_avg_sq",
        "ScheduleFreeSGD": "z",
        "SignSGD": "momentum_buffer",
        "StableAdamW": "exp_avg exp_avg_sq",
        "Tiger": "exp_avg",
        "Yogi": "exp_avg=initial_accumulator exp_avg_sq=initial_accumulator",
    },
}
"""Package → class → names of its elementwise state; ``name=option``: its value at birth, if that is not 0.

Found by permuting the elements of a weight and of its gradients: elementwise state is permuted alike.
"""

ATTRIBUTE: Final = "elementwise_state"
"""Attribute by which an optimiser's class declares its elementwise state: names, or name → value at birth."""


class OptimizerState:
    """What one optimiser remembers of each weight, and which part of it can be cleared by position.

    Args:
        optimizer: of a class in :data:`KNOWN`, of a subclass, with an attribute ``elementwise_state``, or
            unknown: then nothing is cleared.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        declared = getattr(optimizer, ATTRIBUTE, None)
        kind = next((each for each in type(optimizer).__mro__ if _known(each) is not None), None)
        if declared is None:
            births = (_known(kind) if kind else None) or {}
        else:
            births = declared if isinstance(declared, Mapping) else dict.fromkeys(declared, 0)
        self._births = dict(births)
        self._is_known = declared is not None or kind is type(optimizer)
        self._said = False

    def is_empty(self, weight: Tensor) -> bool:
        """Return whether nothing is remembered of a weight yet."""
        return not self.optimizer.state.get(weight)

    @torch.no_grad()
    def clear(self, weight: Tensor, mask: Tensor) -> None:
        """Set the elementwise state of inactive elements to its value at birth, 0 but for few optimisers."""
        for name, value in self._leaves(weight):
            if name in self._births and value.numel() == weight.numel():
                _set(local(value), local(mask), self._birth(name, weight))

    @torch.no_grad()
    def prove(self, weight: Tensor, mask: Tensor) -> None:
        """Stop clearing state that is not elementwise in a subclass, which may keep it in another basis.

        Called after the first step: state that a masked weight and a masked gradient have left different from
        its value at birth, where nothing is active, depends on other positions.
        """
        if self._is_known:
            return
        for name, value in self._leaves(weight):
            if name in self._births and value.numel() == weight.numel():
                inactive = local(_plain(value)).reshape(-1)[~local(mask).reshape(-1)]
                if bool((inactive != self._birth(name, weight)).any()):
                    del self._births[name]

    def say_what_stays(self) -> None:
        """Warn once of the state of an unknown optimiser, which keeps what pruned connections left there."""
        if self._said or self._is_known:
            return
        for state in self.optimizer.state.values():
            names = {name for name, value in leaves(state) if value.numel() > 1} - set(self._births)
            if names:
                self._said = True
                kind = type(self.optimizer)
                warnings.warn(
                    f"optimizer {kind.__module__}.{kind.__qualname__}: its state {', '.join(sorted(names))} "
                    "is not cleared where connections are pruned and grown, because it is not known to be "
                    "elementwise; weights and gradients are masked. If it is, say so: "
                    f"{kind.__qualname__}.{ATTRIBUTE} = {tuple(sorted(names))!r}",
                    stacklevel=4,
                )
                return

    def _birth(self, name: str, weight: Tensor) -> float:
        birth = self._births[name]
        if not isinstance(birth, str):
            return float(birth)
        groups = self.optimizer.param_groups
        group = next((g for g in groups if any(p is weight for p in g["params"])), groups[0])
        return float(group.get(birth, 0.0))

    def _leaves(self, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
        yield from leaves(self.optimizer.state.get(weight, {}))


def known_classes() -> Set[str]:
    """Return the classes whose elementwise state is known, as ``package.Class``."""
    return {f"{package}.{name}" for package, classes in KNOWN.items() for name in classes}


def _known(kind: type) -> Mapping[str, Any] | None:
    """Return the elementwise state of a class, name → value at birth or the option that has it."""
    found = KNOWN.get(kind.__module__.partition(".")[0], {}).get(kind.__name__)
    if found is None:
        return None
    parts = (each.partition("=") for each in found.split())
    return {name: option or 0 for name, _, option in parts}


def leaves(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the float tensors of a nested state, named by the innermost dictionary, without a number."""
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from leaves(value, re.sub(r"_\d+$", "", key) if isinstance(key, str) else name)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from leaves(value, name)


def _plain(value: Tensor) -> Tensor:
    return value.dequantize() if hasattr(value, "dequantize") and type(value) is not Tensor else value


def _set(value: Tensor, mask: Tensor, birth: float) -> None:
    mask = mask if mask.shape == value.shape else mask.reshape(value.shape)
    if type(value) is not Tensor:  # quantised: its copy_ quantises again, by blocks
        value.copy_(torch.where(mask, _plain(value), birth))
    elif birth == 0:
        remask_(value, mask)
    else:
        value.copy_(torch.where(mask, value, birth))
