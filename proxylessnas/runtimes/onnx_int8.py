"""ONNX models in 8 bits: ranges seen on inputs, and pairs of ``QuantizeLinear`` and ``DequantizeLinear``.

The graph is the one that ONNX Runtime's own quantiser writes (a test compares the two), in milliseconds where
that takes up to a second: it goes through weights channel by channel in Python. Weights are rounded
symmetrically with a scale an output channel, activations with a scale and a zero point a tensor; what is not
among :data:`KINDS` (the mean over the last map, say) stays in float32, as do logits, which would tie.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from ..errors import needs

Proto = Any  # an onnx.ModelProto

#: Kinds of node that are computed in 8 bits: with weights; such as vanish in the scale of what is before
#: them; such as keep the scale of their input; and others.
WEIGHTED = ("Conv", "Gemm", "MatMul")
_VANISHING = ("Clip", "Relu")
_SAME_SCALE = ("MaxPool", "AveragePool", "Slice", "Split", "Pad", "Reshape", "Transpose")
KINDS = (*WEIGHTED, *_VANISHING, *_SAME_SCALE, "Add", "Concat")

#: Place in a model -> (least, greatest) value that the 8-bit scale covers there.
Ranges = dict[str, tuple[float, float]]
STEPS = 255
_BINS = 2048
_SHRINKS = torch.linspace(1.0, 0.3, 36, dtype=torch.float64)  # what "mse" tries at each end
_MOST_BIAS = (2**31 - 1) / 1.0001


@dataclass
class Observed:
    """Values of one tensor: first their extremes, then, in a second pass, their histogram.

    A scale that covers everything spends most of its 256 steps on rare outliers; one that cuts them off
    rounds the other values more finely. Which of the two costs less differs from tensor to tensor.

    Attributes:
        low, high: extremes so far; zero is always inside, as every 8-bit scale has to hold it exactly.
        counts: [bins] of equal width from ``low`` to ``high``.
    """

    low: float = 0.0
    high: float = 0.0
    counts: Tensor = field(default_factory=lambda: torch.zeros(_BINS, dtype=torch.float64))

    def see(self, values: Tensor) -> None:
        """First pass: widen the extremes."""
        low, high = torch.aminmax(values)
        self.low, self.high = min(self.low, float(low)), max(self.high, float(high))

    def count(self, values: Tensor) -> None:
        """Second pass: count values; all have been seen."""
        if self.high > self.low:
            found = torch.histc(values.float().flatten(), _BINS, self.low, self.high)
            self.counts += found.double()

    def range(self, rule: str) -> tuple[float, float]:
        """Return the least and the greatest value that the scale is to cover; zero lies between.

        Args:
            rule: "minmax" covers everything, "mse" what makes the mean squared error of rounding and clipping
                smallest.
        """
        if rule == "minmax" or not float(self.counts.sum()):
            return self.low, self.high
        edges = torch.linspace(self.low, self.high, _BINS + 1, dtype=torch.float64)
        centres = (edges[:-1] + edges[1:]) / 2
        one = torch.ones(1, dtype=torch.float64)
        lows = self.low * (_SHRINKS if self.low < 0 else one)
        highs = self.high * (_SHRINKS if self.high > 0 else one)
        low, high = (grid.flatten() for grid in torch.meshgrid(lows, highs, indexing="ij"))
        scale = ((high - low) / STEPS).clamp(min=1e-12)[:, None]
        # The zero point is a whole number, as in the file.
        zero = (-low[:, None] / scale).round()
        rounded = ((centres / scale).round() + zero).clamp(0, STEPS).sub(zero) * scale
        best = int(((rounded - centres).square() * self.counts).sum(1).argmin())
        return float(low[best]), float(high[best])


def ranges_of(values: Callable[[], Iterable[tuple[str, Tensor]]], rule: str) -> Ranges:
    """Return the range of each tensor by a rule.

    Args:
        values: called once, or twice where the rule looks at the distribution; gives tensors' names with
            some of their values.
        rule: see :meth:`Observed.range`.
    """
    seen: defaultdict[str, Observed] = defaultdict(Observed)
    for look in (Observed.see, Observed.count)[: 1 if rule == "minmax" else 2]:
        for name, found in values():
            look(seen[name], found)
    return {name: observed.range(rule) for name, observed in seen.items()}


def scale_and_zero(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point of unsigned 8-bit numbers that cover a range with zero in it."""
    scale = (high - low) / STEPS
    if scale < 1e-12:
        return 1.0, 0
    return scale, max(0, min(STEPS, round(-low / scale)))


def observed(proto: Proto, inputs: Sequence[Tensor], rule: str) -> Ranges:
    """Return the range of every float32 tensor of a model that is no constant, seen in ONNX Runtime.

    Args:
        proto: with the shapes of its tensors; see ``onnx.shape_inference``.
        inputs: [N, C, H, W] each.
        rule: see :meth:`Observed.range`.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    onnx = import_module("onnx")
    with needs("onnxruntime", "INT8 in ONNX models", extra="onnx"):
        ort = import_module("onnxruntime")
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
    model = watched.SerializeToString(), options, ["CPUExecutionProvider"]
    try:
        session = ort.InferenceSession(*model, enable_fallback=0)  # which would print
    except RuntimeError as e:
        if "use_per_session_threads" not in str(e):
            raise
        options.use_per_session_threads = False  # all sessions of this process share one pool
        session = ort.InferenceSession(*model)
    names = [output.name for output in session.get_outputs()]
    entry = session.get_inputs()[0].name

    def values() -> Iterator[tuple[str, Tensor]]:
        for x in inputs:
            yield entry, x
            yield from zip(names, map(torch.from_numpy, session.run(names, {entry: x.numpy()})), strict=True)

    return ranges_of(values, rule)


def plain_int8(proto: Proto, example: Tensor, *, in_bytes: Collection[str] = ()) -> Proto:
    """Return a model in 8 bits as an export writes it by its plain scheme, calibrated on one input.

    Weights have 7 bits, as in files that are exact on all x86 processors; a model with 8 takes as long.

    Args:
        proto: in float32.
        example: an input, [N, C, H, W].
        in_bytes: names of input and output, or one of them, that are 8-bit numbers themselves: an operation
            alone is then what it is between its neighbours.
    """
    proto = import_module("onnx").shape_inference.infer_shapes(proto)
    return quantised(proto, observed(proto, [example], "minmax"), in_bytes=in_bytes)


def quantised(
    proto: Proto,
    ranges: Ranges,
    *,
    weight_bits: int = 7,
    floats: Collection[str] = (),
    in_bytes: Collection[str] = (),
) -> Proto:
    """Return a float32 model with 8-bit weights and activations.

    Args:
        proto: with the shapes of its tensors; is not changed.
        ranges: of all tensors that are no constants, as :func:`observed` returns them.
        weight_bits: 8, or 7; depthwise convolutions have 8 in any case.
        floats: names of nodes that stay in float32.
        in_bytes: see :func:`plain_int8`.
    """
    return _Rounded(proto, ranges, weight_bits, floats, in_bytes).model()


def is_depthwise(node: Any, weight: Any) -> bool:
    """Tell a depthwise convolution by its node and the constant that is its weight."""
    group = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
    return node.op_type == "Conv" and group == weight.dims[0] > 1 == weight.dims[1]


def weight_axis(node: Any) -> int:
    """Return the axis of the output channels in the weight of a node."""
    if node.op_type == "Conv":
        return 0
    transposed = any(entry.name == "transB" and entry.i for entry in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else 1


class _Rounded:
    """A copy of a model that is rewritten: first what is rounded is found out, then the nodes are written."""

    def __init__(
        self,
        proto: Proto,
        ranges: Ranges,
        weight_bits: int,
        floats: Collection[str],
        in_bytes: Collection[str],
    ) -> None:
        self.onnx = import_module("onnx")
        self.made = self.onnx.ModelProto()
        self.made.CopyFrom(proto)
        graph = self.made.graph
        self.ranges, self.weight_bits, self.in_bytes = dict(ranges), weight_bits, in_bytes
        self.constants = {value.name: value for value in graph.initializer}
        self.ends = {value.name: value for value in (*graph.input, *graph.output)}
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.rounded: dict[str, str] = {}  # activation -> that whose scale it has
        self.weighted: list[str] = []  # names of nodes whose weights are rounded
        self.scales: dict[str, Any] = {}  # activation or weight -> its scale
        self.made_by = {output: node for node in graph.node for output in node.output}
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.vanished: set[str] = set()
        for name in in_bytes:
            self._round(name)
        for node in graph.node:
            if node.op_type in KINDS and node.name not in floats:
                self._look_at(node)

    # ---- what is rounded

    def _look_at(self, node: Any) -> None:
        kind, first = node.op_type, node.input[0]
        if kind in WEIGHTED:
            self._round(first)
            if node.input[1] in self.constants:
                self.weighted.append(node.name)
            else:
                self._round(node.input[1])
            if kind == "Conv":
                self._round(node.output[0])
        elif kind in _VANISHING:
            if first in self.rounded:
                if self.readers[first] == 1 and first not in self.ends:
                    self.rounded.pop(first)
                    self.vanished.add(node.name)
                    self.made_by[first].output[0] = node.output[0]
                    self.made_by[node.output[0]] = self.made_by[first]
                self._round(node.output[0])
        elif kind in _SAME_SCALE:
            if kind in ("Split", "Pad"):
                self._round(first)
            if first in self.rounded:
                self.rounded |= dict.fromkeys(node.output, self.rounded[first])
        else:
            for name in (*node.input, *node.output):
                self._round(name)

    def _round(self, name: str) -> None:
        constant = self.constants.get(name)
        if constant is not None and constant.data_type == self.onnx.TensorProto.FLOAT:
            values = self.onnx.numpy_helper.to_array(constant)
            self.ranges[name] = min(0.0, float(values.min())), max(0.0, float(values.max()))
        if name in self.ranges:
            self.rounded.setdefault(name, name)

    # ---- what is written

    def model(self) -> Proto:
        """Return the rewritten model."""
        graph = self.made.graph
        nodes = list(graph.node)
        for name in (*(value.name for value in graph.input), *self.constants):
            if name in self.rounded:
                self._pair(name, made=False)
        for node in nodes:
            if node.name not in self.vanished:
                self._write(node)
        read = {name for node in self.nodes for name in node.input}
        read -= {name for node in self.nodes for name in node.output}
        kept = [value for name, value in self.constants.items() if name in read]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*kept, *self.initializers.values()])
        self.onnx.checker.check_model(self.made)
        return self.made

    def _write(self, node: Any) -> None:
        activation = node.input[0]
        weights = list(node.input[1:]) if node.name in self.weighted else []
        if weights:
            node.input[1] = self._weight(node, activation, *weights)
            if len(weights) > 1:
                node.input[2] = self._bias(activation, *weights)
        for i, name in enumerate(node.input):
            if name in self.rounded and not (i and weights):
                node.input[i] = f"{name}_DequantizeLinear_Output"
        self.nodes.append(node)
        for i, name in enumerate(node.output):
            if name in self.rounded:
                node.output[i] = self._pair(name, made=True)

    def _pair(self, name: str, *, made: bool) -> str:
        """Write the two nodes that round an activation, and return what the node that makes it is to call it.

        Args:
            name: of the activation, for those who read it without rounding.
            made: by a node; else it is the model's input, or a constant.
        """
        scale = self._activation_scale(self.rounded[name])
        source, whole, back = name, f"{name}_QuantizeLinear_Output", f"{name}_DequantizeLinear_Output"
        if made and name in self.ends:
            source, back = f"{name}_QuantizeLinear_Input", name
        in_bytes = name in self.in_bytes
        if in_bytes:
            self.ends[name].type.tensor_type.elem_type = self.onnx.TensorProto.UINT8
            whole = name
        node = self.onnx.helper.make_node
        if made or not in_bytes:
            self.nodes.append(node("QuantizeLinear", [source, *scale], [whole], f"{name}_Quantize"))
        if not (made and in_bytes):
            self.nodes.append(node("DequantizeLinear", [whole, *scale], [back], f"{name}_Dequantize"))
        return source

    def _activation_scale(self, name: str) -> tuple[str, str]:
        import numpy as np

        if name not in self.scales:
            low, high = np.array(self.ranges[name], np.float32).tolist()
            scale, zero = scale_and_zero(low, high)
            self.scales[name] = np.float32(scale)
            self._constant(f"{name}_scale", self.scales[name])
            self._constant(f"{name}_zero_point", np.uint8(zero))
        return f"{name}_scale", f"{name}_zero_point"

    def _weight(self, node: Any, activation: str, name: str, bias: str | None = None) -> str:
        """Write a weight in 8 bits, and return what it is called when read."""
        import numpy as np

        whole, back = f"{name}_quantized", f"{name}_DequantizeLinear_Output"
        if name in self.scales:  # another node has it, too
            return back
        axis = weight_axis(node)
        values = self._values(name)
        steps = 127 if self.weight_bits == 8 or is_depthwise(node, self.constants[name]) else 64
        each = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        scale = np.abs(each).max(1).astype(np.float64) / steps
        scale[scale < np.finfo(np.float32).tiny] = 1.0
        if bias is not None:
            # A bias is rounded to steps of the product of both scales, in 32 bits, which it must not leave.
            least = np.abs(self._values(bias).astype(np.float64)) / _MOST_BIAS
            scale = np.maximum(scale, least / float(self._scale_of(activation)))
        scale = scale.astype(np.float32)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        self.scales[name] = scale
        self._constant(whole, (values / scale.reshape(shape)).round().clip(-128, 127).astype(np.int8))
        self._constant(f"{name}_scale", scale)
        self._constant(f"{name}_zero_point", np.zeros(len(scale), np.int8))
        self._dequantised(whole, name, back, axis)
        return back

    def _bias(self, activation: str, weight: str, name: str) -> str:
        """Write a bias in 32 bits, in steps of the product of both scales, and return what it is called."""
        import numpy as np

        own = name
        while f"{own}_quantized" in self.initializers:  # another node has it, too, with other scales
            own += "_"
        scale = self._scale_of(activation) * self.scales[weight]
        whole = f"{own}_quantized"
        values = (self._values(name).astype(np.float64) / scale).round()
        self._constant(whole, values.clip(-(2**31), 2**31 - 1).astype(np.int32))
        self._constant(f"{whole}_scale", scale)
        self._constant(f"{whole}_zero_point", np.zeros(len(scale), np.int32))
        self._dequantised(whole, whole, own, 0)
        return own

    def _dequantised(self, whole: str, name: str, back: str, axis: int) -> None:
        inputs = [whole, f"{name}_scale", f"{name}_zero_point"]
        node = self.onnx.helper.make_node("DequantizeLinear", inputs, [back], f"{name}_Dequantize", axis=axis)
        self.nodes.append(node)

    def _scale_of(self, activation: str) -> Any:
        self._activation_scale(self.rounded[activation])
        return self.scales[self.rounded[activation]]

    def _values(self, constant: str) -> Any:
        return self.onnx.numpy_helper.to_array(self.constants[constant])

    def _constant(self, name: str, values: Any) -> None:
        import numpy as np

        self.initializers[name] = self.onnx.numpy_helper.from_array(np.asarray(values), name)
