"""Values in types that JSON can hold, written as strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from nt_core.errors import DataError


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return strict JSON: numbers that are not finite become null, NumPy numbers become Python numbers.

    Raises:
        DataError: as :func:`plain`.

    Example:
        >>> to_json({"perplexity": math.inf, "accuracy": 0.5})
        '{"perplexity": null, "accuracy": 0.5}'
    """
    return json.dumps(plain(value), indent=indent, allow_nan=False)


def plain(value: Any, where: str = "record") -> Any:
    """Return a value in types that JSON can hold; see :func:`to_json`.

    Scalars and arrays of NumPy, and tensors with a ``tolist``, become numbers and lists of them.

    Args:
        value: mappings, sequences, text, numbers, booleans, None, in any nesting.
        where: origin of the value, for errors.

    Raises:
        DataError: a value of another type, or two keys of one mapping that are the same text.

    Example:
        >>> import numpy as np
        >>> plain({"steps": np.int64(3), "lr": (np.float32(0.5), float("nan"))})
        {'steps': 3, 'lr': [0.5, None]}
        >>> plain({"when": object})
        Traceback (most recent call last):
        nt_core.errors.DataError: record.when: expected text, numbers, lists or mappings, found type; \
convert it first
    """
    if isinstance(value, Mapping):
        found = {str(key): plain(inner, f"{where}.{key}") for key, inner in value.items()}
        if len(found) < len(value):
            raise DataError(f"{where}: two of its keys are the same text; rename one")
        return found
    if isinstance(value, list | tuple):
        return [plain(inner, f"{where}[{place}]") for place, inner in enumerate(value)]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise DataError(
        f"{where}: expected text, numbers, lists or mappings, found {type(value).__name__}; convert it first"
    )
