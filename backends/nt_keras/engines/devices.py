"""Devices of models, by the same names on every engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import keras

from nt_core.errors import DataError
from nt_keras.engines.engine import ENGINE


@contextmanager
def on_device(name: str | None) -> Iterator[None]:
    """Make and run models on a device: ``cpu``, ``gpu``, ``gpu:1``; ``cuda`` is another name for ``gpu``.

    Raises:
        DataError: there is no such device.

    Example:
        >>> with on_device("cpu"):
        ...     pass
    """
    if name is None:
        yield
        return
    kind, _, number = name.replace("cuda", "gpu").partition(":")
    if f"{kind}:{number or 0}" not in list_devices():
        raise DataError(f"device {name!r}: {ENGINE} finds {', '.join(list_devices())}; leave the device out")
    # A parameter of PyTorch that is moved to "cpu:0" stops being a parameter.
    with keras.device("cpu" if (ENGINE, kind) == ("torch", "cpu") else f"{kind}:{number or 0}"):
        yield


def list_devices() -> list[str]:
    """Return the names of all devices, as Keras names them.

    Example:
        >>> "cpu:0" in list_devices()
        True
    """
    if ENGINE == "torch":
        import torch

        return ["cpu:0", *(f"gpu:{number}" for number in range(torch.cuda.device_count()))]
    if ENGINE == "tensorflow":
        import tensorflow as tf

        names = [device.name for device in tf.config.list_logical_devices()]
        return [name.lower().removeprefix("/device:") for name in names]
    import jax

    return ["cpu:0", *(f"gpu:{device.id}" for device in jax.devices() if device.platform != "cpu")]


def has_accelerator() -> bool:
    """Return whether there is a device other than CPUs."""
    return any(not name.startswith("cpu") for name in list_devices())


def device_of(model: keras.Model) -> str:
    """Return the kind of device that holds a model's weights.

    Example:
        >>> import nt_core, nt_models, nt_keras
        >>> spec = nt_core.EnsembleSpec(graph=nt_models.mlp(inputs=8, hidden=(16,), classes=3))
        >>> device_of(nt_keras.compile(spec)).startswith(("cpu", "gpu"))
        True
    """
    if not model.weights:
        return "cpu"
    value = model.weights[0].value
    return _short(str(value.devices().pop().platform if ENGINE == "jax" else value.device))


def _short(name: str) -> str:
    return "gpu" if any(kind in name.lower() for kind in ("gpu", "cuda")) else "cpu"
