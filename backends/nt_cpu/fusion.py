"""Fusion of operations that one pass over memory can compute together."""

from __future__ import annotations

import numpy as np

from nt_cpu.operations import Network, Operation


def fuse(network: Network) -> None:
    """Fuse operations before and behind products into the products, where nothing else reads their values."""
    for rule in (
        _into_product_before,
        _relu_into_affine,
        _into_products_behind,
        _residual,
        _into_product_before,
    ):
        for operation in list(network.operations):
            if operation in network.operations:
                rule(network, operation)


def _producer(network: Network, name: str) -> Operation:
    return next(each for each in network.operations if each.output == name)


def _only_reader(network: Network, name: str) -> bool:
    return name not in network.logits and len(network.readers(name)) == 1


def _replace(network: Network, gone: Operation, by: str) -> None:
    """Remove an operation; readers of its output read the value ``by`` instead."""
    network.operations.remove(gone)
    for each in network.operations:
        each.inputs = [by if name == gone.output else name for name in each.inputs]
        each.residual = by if each.residual == gone.output else each.residual
    network.logits = [by if name == gone.output else name for name in network.logits]


def _into_product_before(network: Network, affine: Operation) -> None:
    """Fold an affine map of a product's result into the product."""
    if affine.kind != "affine":
        return
    product = _producer(network, affine.inputs[0])
    if product.kind != "product" or product.relu or not _only_reader(network, product.output):
        return
    assert product.weight is not None
    assert affine.scale is not None
    assert affine.shift is not None
    if product.residual is None:
        product.weight = product.weight * affine.scale[:, None, None, None]
        bias = 0 if product.bias is None else product.bias * affine.scale
        product.bias = np.asarray(bias + affine.shift, np.float32)
    elif (affine.scale != 1).any() or affine.shift.any():
        return
    product.relu = affine.relu
    _replace(network, affine, product.output)


def _relu_into_affine(network: Network, relu: Operation) -> None:
    """Fold a ReLU into the affine map before it."""
    if relu.kind != "affine" or not relu.relu:
        return
    affine = _producer(network, relu.inputs[0])
    plain = (
        relu.scale is not None and (relu.scale == 1).all() and relu.shift is not None and not relu.shift.any()
    )
    if affine.kind == "affine" and plain and not affine.relu and _only_reader(network, affine.output):
        affine.relu = True
        _replace(network, relu, affine.output)


def _into_products_behind(network: Network, affine: Operation) -> None:
    """Fold an affine map into the products behind it, if only products read its result."""
    if affine.kind != "affine" or affine.output in network.logits:
        return
    readers = network.readers(affine.output)
    fit = [
        each.kind == "product" and each.scale is None and each.residual != affine.output for each in readers
    ]
    if not all(fit):
        return
    for product in readers:
        product.scale, product.shift, product.pre_relu = affine.scale, affine.shift, affine.relu
    _replace(network, affine, affine.inputs[0])


def _residual(network: Network, add: Operation) -> None:
    """Fold a sum of two values into the product that computes the later of them."""
    if add.kind != "add" or len(add.inputs) != 2:
        return
    order = [each.output for each in network.operations]
    first, last = sorted(add.inputs, key=order.index)
    product = _producer(network, last)
    fits = product.kind == "product" and not product.relu and product.residual is None
    if fits and first != last and _only_reader(network, last):
        product.residual = first
        _replace(network, add, last)
