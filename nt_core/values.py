"""Base class of all declared values: frozen, keyword-only, checked at construction, readable as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from nt_core.errors import NeuroTrailsError, SpecError, nearest

Shape = tuple[int, ...]
"""The shape of one example's tensor, or of a weight; never with a batch axis."""


SHOWN: Final = 200
"""Characters of a wrong value that an error shows."""


LARGEST: Final = 1 << 40
"""Largest count, so small that products of a weight's axes are still finite floats."""


def _countable(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    if isinstance(value, int) and value > LARGEST:
        raise ValueError(f"expected a number of at most {LARGEST}")
    return value


Count = Annotated[int, Field(ge=1), BeforeValidator(_countable)]
Members = Annotated[int, Field(ge=1, le=4096), BeforeValidator(_countable)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def by_kind(value: Any) -> Any:
    """Replace a kind's name by the value of that kind with its defaults: ``"erk"`` → ``{"kind": "erk"}``."""
    return {"kind": value} if isinstance(value, str) else value


def kinds_of(union: Any) -> Mapping[str, Any]:
    """Return the classes of a union that ``kind`` tells apart, by their kinds, in its order.

    Args:
        union: ``Annotated[A | B, Field(discriminator="kind")]``.
    """
    classes = get_args(get_args(union)[0])
    return MappingProxyType({each.model_fields["kind"].default: each for each in classes})


class Value(BaseModel):
    """A frozen record whose fields are checked at construction.

    Raises:
        SpecError: a field is unknown, missing or wrong; the message names each, and a near name if any.

    Example:
        >>> class Point(Value):
        ...     x: int = 0
        >>> Point(x=1).replace(x=2)
        Point(x=2)
        >>> Point(y=1)
        Traceback (most recent call last):
        nt_core.errors.SpecError: point.y: unknown key; known: x
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    error_path: ClassVar[str | None] = None
    """Prefix of a field's name in errors; None: the class's name."""

    def __init__(self, /, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            where = type(self).__name__.lower() if self.error_path is None else self.error_path
            raise explain(error, where, type(self)) from None

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy with some fields replaced."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> NeuroTrailsError:
    """Turn a validation error into an error whose lines give place, finding and expectation.

    Args:
        error: of pydantic.
        where: path of the invalid value, ``"topology"`` say; "" at the top of a file.
        model: class of the value, to suggest near names for an unknown key.

    Returns:
        A SpecError with one line for each mistake, or the single error that a validator raised itself.
    """
    mistakes: list[tuple[str, str]] = []
    for mistake in error.errors(include_url=False):
        steps, known = _follow(model, mistake["loc"]) if model else (list(map(str, mistake["loc"])), [])
        path = ".".join(steps)
        cause = mistake.get("ctx", {}).get("error")
        if isinstance(cause, SpecError) and cause.mistakes:
            mistakes += [(f"{path}.{inner}", text) for inner, text in cause.mistakes]
        elif isinstance(cause, NeuroTrailsError):
            return cause
        else:
            mistakes.append(_describe(mistake, path, known))
    lines = [f"{'.'.join(filter(None, [where, path]))}: {text}" for path, text in dict.fromkeys(mistakes)]
    return SpecError("\n".join(lines), mistakes)


def shown(value: object) -> str:
    """Return a value as text for an error, at most a line or two.

    Example:
        >>> shown([1, "a"]), len(shown("a" * 10**6))
        ("[1, 'a']", 200)
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits than Python writes; deeper than it looks
        text = f"a large {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _describe(mistake: Any, path: str, known: list[str]) -> tuple[str, str]:
    found = "" if isinstance(mistake["input"], dict | BaseModel) else f"; found {shown(mistake['input'])}"
    match mistake["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument":
            return path, f"unknown key{nearest(path.rpartition('.')[2], known) if known else ''}"
        case "missing" | "missing_keyword_only_argument":
            return path, "missing; it must be given"
        case "union_tag_not_found" if isinstance(mistake["input"], dict):
            return f"{path}.kind", "missing; it must be given"
        case "union_tag_invalid":
            tag, kinds = mistake["ctx"]["tag"], re.findall(r"'(.*?)'", mistake["ctx"]["expected_tags"])
            return f"{path}.kind", f"no kind {tag!r}{nearest(tag, kinds)}"
        case "union_tag_not_found" | "model_attributes_type" | "model_type" | "dict_type":
            return path, f"expected keys and values{found}"
    said = mistake["msg"].removeprefix("Value error, ")
    return path, f"{said[0].lower()}{said[1:]}{found}"


def _follow(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Follow a mistake's location through a model.

    Returns:
        The steps without the tags of unions, which pydantic adds, and the known fields at the last step.
    """
    steps: list[str] = []
    known: list[str] = []
    candidates: list[type[BaseModel]] = [model]
    for step in location:
        tagged = [m for m in candidates if _tag(m) == step]
        if len(candidates) > 1 and tagged:
            candidates = tagged
            continue
        steps.append(str(step))
        known = [name for m in candidates for name in m.model_fields]
        fields = [m.model_fields[str(step)] for m in candidates if str(step) in m.model_fields]
        candidates = [inner for field in fields for inner in _models_in(field.annotation)]
    return steps, list(dict.fromkeys(known))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _tag(model: type[BaseModel]) -> object:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None


def differences(wanted: Any, found: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the places where two nested plain values differ: path, wanted, found.

    Example:
        >>> list(differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3, "d": 4}}))
        [('b.c', 2, 3), ('b.d', None, 4)]
    """
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*wanted, *found]):
            yield from differences(wanted.get(key), found.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        for i, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from differences(one, other, f"{path}[{i}]")
    elif wanted != found:
        yield path, wanted, found
