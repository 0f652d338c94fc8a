"""Preprocessing as part of an ONNX graph: uint8 pictures of any size in, what the net wants out.

The same steps as :class:`~proxylessnas.transforms.ClassificationTransform`: ends of a mere strip cut off,
resize, centre crop, scale to 0..1, normalise. PyTorch resizes bytes with weights rounded to 16 bits, ONNX
Runtime with real ones: a value that lies halfway between two grey values may go the other way, which happens
to 0.1 to 0.4 % of the values of the photos in ``examples`` at 224 and 112 px; no value is off by more.
"""

from __future__ import annotations

from typing import Any

from ..latency.onnx_net import Proto, import_onnx
from ..transforms import _MAX_ASPECT, Preprocessing

_PREFIX = "pixels"


def add_pixels(proto: Proto, preprocessing: Preprocessing, name: str) -> None:
    """Put the preprocessing before a graph, whose input then takes uint8 [N, 3, H, W] of any H and W.

    Args:
        proto: a model of operator set 18 or later whose one input is called ``name``; it is changed.
        preprocessing: what the net was trained with.
        name: of the input, before and after.
    """
    onnx = import_onnx()
    graph, p = proto.graph, preprocessing
    steps = _Steps(onnx)
    inside = f"{_PREFIX}.normalised"
    for node in graph.node:
        node.input[:] = [inside if value == name else value for value in node.input]

    # In whole numbers: both sides as [height, width].
    axes = steps.whole("axes", [2, 3])
    two = steps.whole("two", [2])
    sides = steps("Shape", [name], "sides", start=2)
    short = steps("ReduceMin", [sides], "short", keepdims=1)
    kept = steps(
        "Min", [sides, steps("Mul", [short, steps.whole("aspect", [_MAX_ASPECT])], "longest")], "kept"
    )
    start = steps("Div", [steps("Sub", [sides, kept], "ends"), two], "start")
    strip = steps("Slice", [name, start, steps("Add", [start, kept], "end"), axes], "strip")
    scaled = steps("Mul", [kept, steps.whole("resize", [p.resize])], "scaled")
    size = steps("Div", [scaled, short], "size")
    # First the width, then the height, each rounded to whole grey values: as PyTorch resizes bytes.
    values = steps("Cast", [strip], "strip_values", to=onnx.TensorProto.FLOAT)
    for k, side_name in ((1, "width"), (0, "height")):
        index = steps.whole(side_name, [k])
        others = steps.whole(f"{side_name}_other", [1 - k])
        before = steps("Shape", [values], f"{side_name}_before", start=2)
        new = steps("Gather", [size, index], f"{side_name}_new")
        old = steps("Gather", [before, others], f"{side_name}_kept")
        pair = [old, new] if k else [new, old]
        whole_size = steps(
            "Concat",
            [steps("Shape", [values], f"{side_name}_batch", end=2), *pair],
            f"{side_name}_size",
            axis=0,
        )
        values = steps(
            "Resize", [values, "", "", whole_size], f"{side_name}_resized",
            mode="linear" if p.interpolation == "bilinear" else "cubic", antialias=int(p.antialias),
            coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.5 if p.antialias else -0.75,
            exclude_outside=int(p.antialias and p.interpolation == "bicubic"),
        )  # fmt: skip
        values = steps("Add", [values, steps.real(f"{side_name}_half", [0.5])], f"{side_name}_plus_half")
        values = steps("Floor", [values], f"{side_name}_floor")
        bounds = [steps.real(f"{side_name}_{n}", [n], ()) for n in (0.0, 255.0)]
        values = steps("Clip", [values, *bounds], f"{side_name}_whole")
    resized = values

    # Half of an odd number is rounded to the even side, as Python's round() does.
    side = steps.whole("side", [p.input_size])
    spare = steps("Cast", [steps("Sub", [size, side], "spare")], "spare_float", to=onnx.TensorProto.FLOAT)
    half = steps("Round", [steps("Mul", [spare, steps.real("half", [0.5])], "spare_half")], "margin_float")
    margin = steps("Cast", [half], "margin", to=onnx.TensorProto.INT64)
    crop = steps("Slice", [resized, margin, steps("Add", [margin, side], "crop_end"), axes], "crop")

    values = steps("Div", [crop, steps.real("white", [255.0])], "scaled_values")
    values = steps("Sub", [values, steps.real("mean", p.mean, (1, 3, 1, 1))], "centred")
    values = steps("Div", [values, steps.real("std", p.std, (1, 3, 1, 1))], "whitened")
    # Tells those who read the graph what the sides are.
    steps.nodes.append(
        onnx.helper.make_node(
            "Reshape", [values, steps.whole("net_input", [0, 3, p.input_size, p.input_size])], [inside]
        )
    )

    nodes = [*steps.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(steps.constants)
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    shape = [batch.dim_param or batch.dim_value, 3, "height", "width"]
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, shape))


class _Steps:
    """Collects nodes and constants; each call returns the name of a node's output."""

    def __init__(self, onnx: Any) -> None:
        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        name = f"{_PREFIX}.{name}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def whole(self, name: str, values: list[int]) -> str:
        return self._constant(name, "INT64", values, (len(values),))

    def real(self, name: str, values: Any, shape: tuple[int, ...] = (1,)) -> str:
        return self._constant(name, "FLOAT", values, shape)

    def _constant(self, name: str, kind: str, values: Any, shape: tuple[int, ...]) -> str:
        name = f"{_PREFIX}.{name}"
        kind = getattr(self.onnx.TensorProto, kind)
        self.constants.append(self.onnx.helper.make_tensor(name, kind, shape, list(values)))
        return name
