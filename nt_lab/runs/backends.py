"""Choice of the backend, made without importing a framework; the framework is imported on first use."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from numpy.typing import NDArray

from nt_core.checkpoint import Checkpoint
from nt_core.errors import NeuroTrailsError, nearest
from nt_core.metrics import Metrics
from nt_core.training import Trained

ENGINE_VARIABLE: Final = "KERAS_BACKEND"
"""The environment variable that Keras reads once, when it is first imported."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """The verbs of a backend that the laboratory needs; see ``nt_torch`` for their arguments.

    Attributes:
        name: recorded with every run.
        engine: the framework below Keras, recorded too; None for other backends.
        packages: the packages whose versions are recorded.
        train: (spec, training, data, …) → :class:`nt_core.checkpoint.Trained`.
        checkpoint: model → its portable checkpoint.
        load: (folder, device=…) → model.
        evaluate: (model, data, aggregation=…) → metrics.
        predict: (model, inputs (N, …)) → logits (M, N, …).
        execution: class of the options that say how a model is computed; None: there is no choice.
    """

    name: str
    engine: str | None = None
    packages: tuple[str, ...] = ()
    train: Callable[..., Trained[Any]]
    checkpoint: Callable[[Any], Checkpoint]
    load: Callable[..., Any]
    evaluate: Callable[..., Metrics]
    predict: Callable[[Any, NDArray[Any]], NDArray[Any]]
    execution: Callable[..., Any] | None = None

    def options(self, execution: Mapping[str, Any] | None) -> dict[str, Any]:
        """Return the additional arguments of ``train`` for the wanted execution.

        Args:
            execution: fields of the backend's execution options; None: its defaults.

        Raises:
            NeuroTrailsError: the backend has no choice.
        """
        if execution is None:
            return {}
        if self.execution is None:
            raise NeuroTrailsError(
                f"backend {self.name}: {', '.join(execution)} is a choice of PyTorch's; leave it out, or add "
                "--backend torch"
            )
        return {"execution": self.execution(**execution)}

    def executes(self, execution: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Return all execution options, the defaults of those that are not given; None: there is no choice.

        Args:
            execution: as for :meth:`options`.
        """
        if self.execution is None:
            return None
        return dict(self.execution(**(execution or {})).model_dump(mode="json"))


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Packages that a backend needs; its own package is ``nt_NAME``, its extra has its name.

    Attributes:
        packages: all of them are needed.
        engines: one of them is needed, chosen in this order; empty: the backend computes by itself.
    """

    packages: tuple[str, ...]
    engines: tuple[str, ...] = ()


BACKENDS: Final[Mapping[str, Requirements]] = {
    "torch": Requirements(packages=("torch", "accelerate")),
    "keras": Requirements(packages=("keras",), engines=("tensorflow", "jax", "torch")),
}
"""Backends in the order in which one is chosen by default."""

EXTRAS: Final[Mapping[str, str]] = {"tensorflow": "tensorflow", "jax": "jax", "torch": "keras,torch"}
"""The extras that install Keras together with an engine."""


def choose(name: str | None = None, engine: str | None = None) -> Callable[[], Backend]:
    """Choose a backend by name and check that it can be used; no framework is imported yet.

    Args:
        name: ``"torch"`` or ``"keras"``; None: the first of them that is installed.
        engine: the framework below Keras, ``"tensorflow"``, ``"jax"`` or ``"torch"``; None: the one Keras was
            imported with, else the one that the environment variable ``KERAS_BACKEND`` names, else the first
            that is installed.

    Returns:
        A function that imports the backend when it is called.

    Raises:
        NeuroTrailsError: an unknown name, a package that is not installed, an engine for a backend that has
            none, or Keras was imported with another one already.

    Example:
        >>> choose("pytorch")
        Traceback (most recent call last):
        nt_core.errors.NeuroTrailsError: backend: none is called 'pytorch'; did you mean 'torch'?
    """
    name = name or _default()
    if name not in BACKENDS:
        raise NeuroTrailsError(f"backend: none is called {name!r}{nearest(name, BACKENDS)}")
    needs = BACKENDS[name]
    if needs.engines:
        engine = _engine(engine, needs.engines)
    elif engine is not None:
        raise NeuroTrailsError(
            f"engine {engine!r}: the backend is {name}, and only keras has a choice of engines; "
            "leave --engine out, or add --backend keras"
        )
    packages = needs.packages if engine is None else (*needs.packages, engine)
    missing = [package for package in (f"nt_{name}", *packages) if not installed(package)]
    if missing:
        raise NeuroTrailsError(_what_to_install(name, engine, missing))
    return partial(_make, name, engine, packages)


def installed(package: str) -> bool:
    """Return whether a package can be imported, without importing it.

    Example:
        >>> installed("numpy"), installed("no_such_package")
        (True, False)
    """
    found = find_spec(package)
    return found is not None and found.origin is not None  # a folder that merely has the name has no origin


def _default() -> str:
    for name, needs in BACKENDS.items():
        if all(map(installed, needs.packages)):
            return name
    for name in filter(installed, BACKENDS):
        return name  # installed in part: the error will name the missing package
    raise NeuroTrailsError(
        "backend: expected torch or keras, found neither; pip install 'neurotrails[torch]', "
        "'neurotrails[tensorflow]' or 'neurotrails[jax]'"
    )


def _engine(wanted: str | None, engines: tuple[str, ...]) -> str:
    """Return the engine that Keras shall compute with."""
    loaded = _loaded_engine()
    from_outside = os.environ.get(ENGINE_VARIABLE)
    engine = wanted or loaded or from_outside or next(filter(installed, engines), None)
    if engine is None:
        raise NeuroTrailsError(
            f"backend keras: expected an engine ({', '.join(engines)}), found none; "
            "pip install 'neurotrails[tensorflow]' or 'neurotrails[jax]'"
        )
    if engine not in (*engines, loaded):
        where = "engine" if wanted else f"environment variable {ENGINE_VARIABLE}"
        raise NeuroTrailsError(f"{where}: no engine is called {engine!r}{nearest(engine, engines)}")
    if loaded is not None and (engine != loaded or loaded not in engines):
        raise NeuroTrailsError(
            f"engine: Keras was imported with {loaded!r} already and cannot change to "
            f"{wanted or ' or '.join(engines)}; start a new process"
        )
    return engine


def _loaded_engine() -> str | None:
    keras = sys.modules.get("keras")
    return None if keras is None else str(keras.backend.backend())


def _what_to_install(name: str, engine: str | None, missing: Sequence[str]) -> str:
    extra = EXTRAS[engine] if engine is not None and engine in missing else name
    there = [other for other in BACKENDS[name].engines if installed(other)]
    verb = "is" if len(missing) == 1 else "are"
    return (
        f"backend {name}: {' and '.join(missing)} {verb} not installed; pip install 'neurotrails[{extra}]'"
        + (f", or choose an engine that is: --engine {there[0]}" if missing == [engine] and there else "")
    )


def _make(name: str, engine: str | None, packages: tuple[str, ...]) -> Backend:
    if engine is not None:
        os.environ[ENGINE_VARIABLE] = engine
    package = import_module(f"nt_{name}")
    return Backend(
        name=name,
        engine=engine,
        packages=packages,
        train=package.train,
        checkpoint=package.checkpoint,
        load=package.load,
        evaluate=package.evaluate,
        predict=package.predict,
        execution=getattr(package, "Execution", None),
    )
