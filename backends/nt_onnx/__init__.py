"""Export of trained ensembles to ONNX for other runtimes; needs the package ``onnx``, no framework.

Example:
    >>> import tempfile, nt_core, nt_models, nt_onnx
    >>> spec = nt_core.PRESETS["full_ensemble"](nt_models.mlp(inputs=8, hidden=(16,), classes=3))
    >>> values = dict(nt_core.initial_values(spec.layout, seed=0))
    >>> nt_onnx.export((spec, values), tempfile.mkdtemp() + "/model.onnx")
"""

from nt_onnx.model import export

__all__ = ["export"]
