"""The backbone or one head as a module: blocks in the order of computation."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from nt_core import GraphError, TopologyError
from nt_core.graph.ops import Op
from nt_core.structure import Part
from nt_core.values import Shape
from nt_torch.network.batched import BATCHED, Batched
from nt_torch.network.lowering import LOWERINGS
from nt_torch.network.recomputation import recomputed

Values = dict[str, Tensor]
"""Tensors by their references."""


@dataclass(frozen=True, slots=True)
class Step:
    """Computation of one op: its batched function, the key and class of its module, inputs and output."""

    op: Op
    batched: Batched
    key: str
    kind: type[nn.Module]
    inputs: tuple[str, ...]
    output: str


Compute = Callable[[Step, list[Tensor]], Tensor]
"""Function that computes an op from its inputs."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Computation of one block.

    Attributes:
        steps: the block's ops, each with the references that are no longer needed after it.
        reads: references of the values that the block reads from outside.
        gives: references of the values that are read outside.
        forgets: references of the values that are not read after the block.
    """

    steps: tuple[tuple[Step, tuple[str, ...]], ...]
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    forgets: tuple[str, ...]

    def take(self, values: Values) -> Values:
        """Return the block's inputs, and remove from ``values`` those that are not read after it."""
        return {ref: values.pop(ref) if ref in self.forgets else values[ref] for ref in self.reads}


class PartModule(nn.Module):
    """The backbone or one head: ops in the order of computation.

    Attributes:
        stages: the part's blocks.
        gives: references of the values that are read outside.
    """

    def __init__(self, part: Part, shapes: Mapping[str, Shape], gives: tuple[str, ...]) -> None:
        super().__init__()
        self.ops = nn.ModuleDict()
        blocks = []
        for block in part.blocks:
            steps = []
            for node in block.nodes:
                key = module_key(block.name, node.name)
                if key in self.ops:
                    raise GraphError(
                        f"block {block.name!r}, op {node.name!r}: PyTorch names it {key!r}, which is taken; "
                        "rename the block: characters other than letters and digits are underscores there"
                    )
                module = LOWERINGS[type(node.op)](node.op, [shapes[ref] for ref in node.inputs])
                self.ops[key] = module
                output = f"{block.name}/{node.name}"
                steps.append(Step(node.op, BATCHED[type(node.op)], key, type(module), node.inputs, output))
            blocks.append(steps)
        self.stages = tuple(_stages(blocks, gives))
        self.gives = gives

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load a state dict, also one of an older version."""
        for name in [name for name in state_dict if name.startswith(prefix) and "/" in name]:
            state_dict[present_name(name)] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, values: Values, *, recompute: bool = False) -> Values:
        """Run all ops, and return the values that are read outside.

        Args:
            values: the part's inputs.
            recompute: whether values inside a block are recomputed in the backward pass.
        """
        return run_stages(
            [self], values, lambda step, inputs: self.ops[step.key](*inputs), recompute=recompute
        )


def run_stages(
    alike: Sequence[PartModule], values: Values, compute: Compute, *, recompute: bool = False
) -> Values:
    """Run all blocks of parts of equal structure, and return the values that are read outside."""
    values = dict(values)
    for stage in alike[0].stages:
        run = partial(_run_stage, stage, compute)
        if recompute:
            modules = [part.ops[step.key] for part in alike for step, _ in stage.steps]
            values |= recomputed(run, stage.take(values), modules)
        else:
            values |= run(stage.take(values))
    return {ref: values[ref] for ref in alike[0].gives}


def _run_stage(stage: Stage, compute: Compute, values: Values) -> Values:
    for step, forgets in stage.steps:
        values[step.output] = compute(step, [values[ref] for ref in step.inputs])
        for ref in forgets:
            del values[ref]
    return {ref: values[ref] for ref in stage.gives}


def own_tensor(owner: nn.Module, attribute: str, name: str) -> Tensor:
    """Return a module's own parameter or buffer.

    Args:
        owner: the module of an op.
        attribute: ``weight`` or ``bias``, say.
        name: the weight's full name, for the error.

    Raises:
        TopologyError: something computes it at each use (weight_norm, spectral_norm, torch.nn.utils.prune, a
            parametrization of one's own), so that a change in place is lost.
    """
    for kept in (owner._parameters, owner._buffers):
        found = kept.get(attribute)
        if found is not None:
            return found
    makers = " and ".join(type(each).__name__ for each in _makers(owner, attribute)) or "something else"
    raise TopologyError(
        f"weight {name!r}: expected a parameter of its {type(owner).__name__}, found {attribute!r} computed "
        f"by {makers}; masks and checkpoints hold a weight's own values: leave weight_norm, spectral_norm, "
        "torch.nn.utils.prune and other parametrizations away from this model"
    )


def _makers(owner: nn.Module, attribute: str) -> Iterator[object]:
    """Yield what computes an attribute: parametrizations, or the hooks that torch.nn.utils once used."""
    if is_parametrized(owner, attribute):
        yield from getattr(owner.parametrizations, attribute)
    for hook in owner._forward_pre_hooks.values():
        if attribute in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None)):
            yield hook


def module_key(block: str, node: str) -> str:
    """Return the name of an op's module: an identifier, because tools write it into code and into paths.

    Example:
        >>> module_key("stage3.1", "conv1"), module_key("1", "conv1")
        ('stage3_1__conv1', '_1__conv1')
    """
    key = re.sub(r"\W", "_", f"{block}__{node}")
    return f"_{key}" if key[0].isdigit() else key


def present_name(name: str) -> str:
    """Return the name in a state dict for one of an older version, in which modules were ``block/op``.

    Example:
        >>> present_name("heads.0.ops.stage3_1/conv1.weight"), present_name("heads.0.ops.stem__conv1.bias")
        ('heads.0.ops.stage3_1__conv1.weight', 'heads.0.ops.stem__conv1.bias')
    """
    return ".".join(module_key(*part.split("/")) if "/" in part else part for part in name.split("."))


def _stages(blocks: list[list[Step]], gives: tuple[str, ...]) -> Iterator[Stage]:
    """Yield blocks with the op and the block after which each value is no longer needed and can be freed."""
    for i, steps in enumerate(blocks):
        later = {ref for each in blocks[i + 1 :] for step in each for ref in step.inputs} | set(gives)
        made = {step.output for step in steps}
        reads = dict.fromkeys(ref for step in steps for ref in step.inputs if ref not in made)
        given = tuple(step.output for step in steps if step.output in later)
        yield Stage(
            steps=tuple(_with_last_uses(steps, set(given))),
            reads=tuple(reads),
            gives=given,
            forgets=tuple(ref for ref in reads if ref not in later),
        )


def _with_last_uses(steps: list[Step], gives: set[str]) -> Iterator[tuple[Step, tuple[str, ...]]]:
    for i, step in enumerate(steps):
        later = {ref for each in steps[i + 1 :] for ref in each.inputs} | gives
        yield step, tuple({ref for ref in step.inputs if ref not in later})
