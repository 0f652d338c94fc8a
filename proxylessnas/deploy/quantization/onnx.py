"""INT8 in ONNX files, with ranges that we choose."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runtimes.onnx_graph import Proto, import_onnx
from ...runtimes.onnx_int8 import WEIGHTED, is_depthwise, observed, quantised
from ..bundle import ModelBundle
from ..formats.base import exporting
from ..formats.onnx import FORMAT
from ..formats.split_depthwise import MOST_WEIGHTS
from ..settings import ExportOptions
from .schemes import Scheme

_AT_ONCE = 4  # images a run: all activations of a run are in memory


def schemes(target_isa: str) -> list[str]:
    """Return the names of the schemes to try for a target."""
    names = ["minmax+correct", "mse+correct", "mse+correct+floatfirst", "mse+compensate+correct+floatfirst"]
    return ["minmax", *names] if target_isa == "vnni" else [f"{name}+7bit" for name in names]


def paired_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights that are not those of depthwise convolutions; see :class:`~.backends.Backend`."""
    onnx = import_onnx()
    graph = onnx.load(str(path)).graph
    made_by = {output: node for node in graph.node for output in node.output}
    constants = {value.name: value for value in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type not in WEIGHTED:
            continue
        dequantised = made_by.get(node.input[1])
        value = constants.get(dequantised.input[0]) if dequantised is not None else None
        if value is None or value.data_type != onnx.TensorProto.INT8:  # it stays in float32
            continue
        if is_depthwise(node, value):
            continue
        assert dequantised is not None
        axis = next((entry.i for entry in dequantised.attribute if entry.name == "axis"), 1)
        found[node.name] = torch.from_numpy(onnx.numpy_helper.to_array(value).copy()).movedim(axis, 0)
    return found


def write(
    bundle: ModelBundle, path: Path, batches: Sequence[Tensor], scheme: Scheme, options: ExportOptions
) -> None:
    """Write an int8 file; see :class:`~.backends.Backend`."""
    onnx = import_onnx()
    exact = path.with_name(f"{path.stem}-exact.onnx")
    FORMAT.write(bundle, exact, options)
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(exact)))
    exact.unlink()
    at_once = options.batch_size or _AT_ONCE
    inputs = [
        part for x in batches for part in x.split(at_once) if len(part) == at_once or not options.batch_size
    ]
    with exporting(f"{bundle.name}: ONNX Runtime cannot quantise the model"):
        ranges = observed(proto, inputs, scheme.rule)
        made = quantised(proto, ranges, weight_bits=scheme.weight_bits, floats=_excluded(proto, scheme))
    onnx.helper.set_model_props(made, {**bundle.metadata(), "int8": scheme.name})
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())


def _excluded(proto: Proto, scheme: Scheme) -> list[str]:
    """Return the names of the nodes that stay in float32."""
    nodes = list(proto.graph.node)
    names: list[str] = []
    weighted = [node for node in nodes if node.op_type in WEIGHTED]
    if scheme.float_wide:
        names += [node.name for node in weighted if _is_wide(node)]
    if scheme.float_first:
        ours = [node.name for node in nodes if node.name.startswith(("stem.", "block0."))]
        names += ours or [weighted[0].name]
    return names


def _is_wide(node: Any) -> bool:
    known = {attribute.name: attribute for attribute in node.attribute}
    return node.op_type == "Conv" and known["group"].i > 1 and prod(known["kernel_shape"].ints) > MOST_WEIGHTS
