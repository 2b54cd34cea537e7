"""The base of every declared value: frozen, keyword-only, checked at birth, readable as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nt_core.errors import NeuroTrailsError, SpecError, nearest

Shape = tuple[int, ...]
"""The shape of one example's tensor, or of a weight; never with a batch axis."""

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Value(BaseModel):
    """A frozen record whose fields are checked when it is made.

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

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(explain(error, type(self).__name__.lower(), type(self))) from None

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy in which some fields differ."""
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | changes)


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """Turn a validation error into lines that say where, what was found and what was expected.

    Args:
        error: what pydantic raised.
        where: the path of the value that was being made, ``"topology"`` say.
        model: the class of that value, to suggest near names for an unknown key.

    Returns:
        One line for each mistake.
    """
    lines = []
    for mistake in error.errors(include_url=False):
        steps = [str(step) for step in mistake["loc"]]
        path = ".".join([where, *steps])
        cause = mistake.get("ctx", {}).get("error")
        if mistake["type"] == "extra_forbidden" and model is not None:
            known = known_keys(model, mistake["loc"][:-1])
            lines.append(f"{path}: unknown key{nearest(steps[-1], known) if known else ''}")
        elif isinstance(cause, NeuroTrailsError):
            lines.append(str(cause))
        elif mistake["type"] == "missing":
            lines.append(f"{path}: missing; it must be given")
        else:
            found = "" if isinstance(mistake["input"], dict) else f"; found {mistake['input']!r}"
            lines.append(f"{path}: {mistake['msg'][0].lower()}{mistake['msg'][1:]}{found}")
    return "\n".join(dict.fromkeys(lines))


def known_keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """List the fields of the value at a path below a model; empty where the path cannot be followed.

    A step that is no field is the tag of a union's member: pydantic puts it into the path.
    """
    if not path:
        return list(model.model_fields)
    field = model.model_fields.get(str(path[0]))
    if field is None:
        return []
    members = _models_in(field.annotation)
    rest = path[1:]
    if len(members) > 1 and rest:
        members = [m for m in members if _tag(m) == rest[0]]
        rest = rest[1:]
    return known_keys(members[0], rest) if members else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models_in(part)]


def _tag(model: type[BaseModel]) -> object:
    return model.model_fields["kind"].default if "kind" in model.model_fields else None
