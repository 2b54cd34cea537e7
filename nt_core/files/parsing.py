"""Parsing of untrusted JSON and YAML: plain values within bounds, or an error."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

import yaml

MOST_DEPTH: Final = 64
"""Largest nesting depth of mappings and lists."""

MOST_DIGITS: Final = 100
"""Largest number of characters of a whole number."""


class ParseError(ValueError):
    """Raised for text that is no JSON or YAML of this package, even if the format's library accepts it."""


def parse_json(text: str | bytes) -> Any:
    """Parse JSON without doubled keys, nesting deeper than 64, and whole numbers of over 100 characters.

    Raises:
        ParseError: the text is not JSON, or has one of these.

    Example:
        >>> parse_json('{"a": [1, 2.5]}')
        {'a': [1, 2.5]}
        >>> parse_json('{"a": 1, "a": 2}')
        Traceback (most recent call last):
        nt_core.files.parsing.ParseError: the key 'a' stands twice; leave one out
    """
    try:
        value = json.loads(text, object_pairs_hook=_single_keys, parse_int=_whole_number)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ParseError(str(error)) from None
    _expect_shallow(value)
    return value


def parse_yaml(text: str) -> Any:
    """Parse the YAML of spec files, within the bounds of :func:`parse_json`.

    ``5e-4`` is a number, as in YAML 1.2. Aliases, tags and doubled keys are errors, because a small file
    shall not become a large value or a call.

    Raises:
        ParseError: the text is not YAML, or has one of these.

    Example:
        >>> parse_yaml("[0.8, 5e-4, erk]")
        [0.8, 0.0005, 'erk']
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise _too_deep() from None
    except (yaml.YAMLError, ValueError) as error:
        raise ParseError(str(error)) from None


def to_yaml(value: Any) -> str:
    """Return a value as YAML that :func:`parse_yaml` reads."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def _single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ParseError(f"the key {key!r} stands twice; leave one out")
    return found


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ParseError(f"expected whole numbers of at most {MOST_DIGITS} digits, found {text[:12]}…")
    return int(text)


def _too_deep() -> ParseError:
    return ParseError(f"nested deeper than {MOST_DEPTH}; expected a few levels")


def _expect_shallow(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        level = [inner for each in level for inner in _inside(each)]
    if level:
        raise _too_deep()


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


class _Loader(yaml.SafeLoader):
    """Loader that reads 5e-4 as a number and refuses doubled keys, aliases, tags, depth, and long numbers."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node that is no alias, has no tag, and is not nested too deeply."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _error("aliases (*name) are not read; write it out", event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _error("tags (!name) are not read; leave it out", event)
        if self.depth > MOST_DEPTH:
            raise _error(f"nested deeper than {MOST_DEPTH}", event)
        self.depth += 1
        found = super().compose_node(parent, index)
        self.depth -= 1
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a mapping without doubled keys."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _error("expected a name as key", key)
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise _error(f"the key {key.value!r} stands twice; leave one out", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Make a whole number of few digits, none of them to the base 60."""
        if len(node.value) > MOST_DIGITS or ":" in node.value:
            raise _error(f"expected whole numbers of at most {MOST_DIGITS} digits; quote what is text", node)
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        """Make a number to the base 10."""
        if ":" in node.value:
            raise _error("expected a number to the base 10; quote what is text", node)
        return float(super().construct_yaml_float(node))


def _error(message: str, where: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Dumper that quotes text which the loader would read as a number."""


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
