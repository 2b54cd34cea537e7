"""Trains on one device and on two, by Keras' own ``DataParallel`` on JAX, and stores masks and weights.

JAX divides a CPU into devices before it does anything else, so this runs in a process of its own::

    python two_devices.py FILE
"""

import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np

import nt_keras
import nt_models
from nt_core import Dynamic, EnsembleSpec, MultiHead

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.normal(size=(24, 6)).astype(np.float32), GENERATOR.integers(0, 3, 24)


def trained(devices):
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))
    spec = EnsembleSpec(
        graph=nt_models.mlp(inputs=6, hidden=(8,), classes=3),
        structure=MultiHead(split=1, heads=2),
        topology=Dynamic(sparsity=0.6, interval=2, drop_fraction=0.5),
    )
    model = nt_keras.compile(spec)
    optimizer = nt_keras.sparse(keras.optimizers.Adam(0.01), model)
    model.compile(optimizer=optimizer, loss=nt_keras.ensemble_loss())
    updates = []
    update = nt_keras.TopologyUpdate(8, report=lambda changed: updates.append(changed.step))
    model.fit(X, Y, batch_size=12, epochs=4, callbacks=[update], shuffle=False, verbose=0)
    assert updates == [2, 4, 6], updates
    (weight,) = {len(each.value.sharding.device_set) for each in model.trainable_variables}
    assert weight == len(devices)
    return {name: (np.asarray(model.array(name)), np.asarray(model.mask(name))) for name in model.masked}


def main(file):
    devices = keras.distribution.list_devices()
    assert len(devices) == 2, devices
    arrays = {}
    for count in (1, 2):
        for name, (weight, mask) in trained(devices[:count]).items():
            assert not weight[~mask].any()
            arrays |= {f"weight {count} {name}": weight, f"mask {count} {name}": mask}
    np.savez(file, **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
