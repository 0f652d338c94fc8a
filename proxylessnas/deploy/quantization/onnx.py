"""INT8 in ONNX files, by ONNX Runtime's own quantiser, with ranges that we choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import needs
from ...runtimes.onnx_graph import Proto, import_onnx
from ..bundle import ModelBundle
from ..formats.base import exporting
from ..formats.onnx import FORMAT
from ..formats.split_depthwise import MOST_WEIGHTS
from ..settings import ExportOptions
from .fake_quant import Ranges, ranges_of
from .schemes import Scheme

#: What is computed in 8 bits; everything else (the mean over the last map, say) stays in float32.
_KINDS = (
    "Conv", "Gemm", "MatMul", "Add", "Clip", "Relu", "MaxPool", "AveragePool", "Concat", "Slice", "Split",
    "Pad", "Reshape", "Transpose",
)  # fmt: skip
_WEIGHTED = ("Conv", "Gemm", "MatMul")
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
        if node.op_type not in _WEIGHTED:
            continue
        dequantised = made_by.get(node.input[1])
        value = constants.get(dequantised.input[0]) if dequantised is not None else None
        if value is None or value.data_type != onnx.TensorProto.INT8:  # it stays in float32
            continue
        if _is_depthwise(node, value):
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
    library()
    exact = path.with_name(f"{path.stem}-exact.onnx")
    FORMAT.write(bundle, exact, options)
    proto = onnx.shape_inference.infer_shapes(onnx.load(str(exact)))
    exact.unlink()
    at_once = options.batch_size or _AT_ONCE
    inputs = [
        part for x in batches for part in x.split(at_once) if len(part) == at_once or not options.batch_size
    ]
    with exporting(f"{bundle.name}: ONNX Runtime cannot quantise the model"):
        made = _quantised(proto, _observed(proto, inputs, scheme.rule), scheme)
    onnx.helper.set_model_props(made, {**bundle.metadata(), "int8": scheme.name})
    onnx.checker.check_model(made)
    path.write_bytes(made.SerializeToString())


def library() -> Any:
    """Return ONNX Runtime's quantiser.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs("onnxruntime", "INT8 in ONNX files", extra="onnx"):
        return import_module("onnxruntime.quantization")


def _quantised(proto: Proto, ranges: Ranges, scheme: Scheme) -> Proto:
    import numpy as np

    ort = library()
    quantizer: Any = import_module("onnxruntime.quantization.qdq_quantizer").QDQQuantizer
    data = ort.calibrate.TensorsData(
        ort.CalibrationMethod.MinMax,
        {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()},
    )
    unsigned, signed = (import_onnx().TensorProto.UINT8, import_onnx().TensorProto.INT8)
    whole = {"axis": 0, "quant_type": ort.QuantType.QInt8, "symmetric": True, "reduce_range": False}
    made = quantizer(
        proto,
        per_channel=True,
        reduce_range=scheme.weight_bits == 7,
        weight_qType=signed,
        activation_qType=unsigned,
        tensors_range=data,
        nodes_to_quantize=[],
        nodes_to_exclude=_excluded(proto, scheme),
        op_types_to_quantize=list(_KINDS),
        extra_options={
            # Logits in 8 bits would tie.
            "OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"],
            "TensorQuantOverrides": {name: [whole] for name in _depthwise_weights(proto)},
        },
    )
    made.quantize_model()
    made.model.topological_sort()
    return made.model.model


def _excluded(proto: Proto, scheme: Scheme) -> list[str]:
    """Return the names of the nodes that stay in float32."""
    nodes = list(proto.graph.node)
    names: list[str] = []
    weighted = [node for node in nodes if node.op_type in _WEIGHTED]
    if scheme.float_wide:
        names += [node.name for node in weighted if _is_wide(node)]
    if scheme.float_first:
        ours = [node.name for node in nodes if node.name.startswith(("stem.", "block0."))]
        names += ours or [weighted[0].name]
    return names


def _depthwise_weights(proto: Proto) -> list[str]:
    """Return the names of the weights of depthwise convolutions, which keep 8 bits in every scheme."""
    constants = {value.name: value for value in proto.graph.initializer}
    weighted = [(node, constants.get(node.input[1])) for node in proto.graph.node if node.op_type == "Conv"]
    return [node.input[1] for node, value in weighted if value is not None and _is_depthwise(node, value)]


def _is_depthwise(node: Any, weight: Any) -> bool:
    group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return node.op_type == "Conv" and group == weight.dims[0] > 1 == weight.dims[1]


def _is_wide(node: Any) -> bool:
    known = {attribute.name: attribute for attribute in node.attribute}
    return node.op_type == "Conv" and known["group"].i > 1 and prod(known["kernel_shape"].ints) > MOST_WEIGHTS


def _observed(proto: Proto, inputs: Sequence[Tensor], rule: str) -> Ranges:
    """Return the range of every float32 tensor that is no constant."""
    onnx = import_onnx()
    ort: Any = import_module("onnxruntime")
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    graph = watched.graph
    outputs = {value.name for value in graph.output}
    constants = {value.name for value in graph.initializer}
    floats = [
        value
        for value in graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT and value.name not in constants
    ]
    graph.output.extend(value for value in floats if value.name not in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Fused operations would not show their insides.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(watched.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    entry = session.get_inputs()[0].name

    def values() -> Iterator[tuple[str, Tensor]]:
        for x in inputs:
            yield entry, x
            yield from zip(names, map(torch.from_numpy, session.run(names, {entry: x.numpy()})), strict=True)

    return ranges_of(values, rule)
