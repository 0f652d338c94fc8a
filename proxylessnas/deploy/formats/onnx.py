"""``.onnx``: ONNX, proven in ONNX Runtime, with preprocessing in the graph if asked for.

The same steps as :class:`~proxylessnas.data.transforms.ClassificationTransform`: ends of a strip cut off,
resize, centre crop, scale to 0..1, normalise. PyTorch resizes bytes with weights rounded to 16 bits, ONNX
Runtime with real ones: a value that lies halfway between two grey values may go the other way, which happens
to 0.1 to 0.4 % of the values of the photos in ``examples`` at 224 and 112 px; no value is off by more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..._version import __version__
from ...data.transforms import _MAX_ASPECT, Preprocessing
from ...errors import ExportError, LatencyError
from ...runtimes.onnx_graph import (
    INPUT,
    OPSET,
    OUTPUT,
    Proto,
    has_registered,
    import_onnx,
    is_plain,
    model_onnx,
    traced_onnx,
)
from ...runtimes.onnxruntime import RUNTIME
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Format, Program, export_errors, guarded

#: Names of the file's input and output.
IMAGES, LOGITS = "images", "logits"


class OnnxFormat(Format):
    """ONNX."""

    name = "ONNX"
    suffix = ".onnx"
    options = ("batch_size", "uint8_input", "opset")

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is written and run with."""
        return {"onnx": str(import_onnx().__version__), **RUNTIME.versions()}

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work."""
        super().check(bundle, options)
        latest = int(import_onnx().defs.onnx_opset_version())
        if options.opset is not None and not OPSET <= options.opset <= latest:
            raise ExportError(
                f"opset {options.opset} cannot be written: {OPSET} to {latest} can, with the installed onnx"
            )
        if options.uint8_input:
            if bundle.preprocessing is None:
                raise ExportError(
                    f"{bundle.name}: --uint8-input (uint8_input=True in Python) puts the preprocessing into "
                    "the file, but the model's is not known: in Python set "
                    "model.preprocessing, which save_weights keeps"
                )
            if bundle.input_size[0] != 3:
                raise ExportError(
                    f"{bundle.name}: --uint8-input (uint8_input=True in Python) takes RGB images; the model "
                    f"takes {bundle.input_size[0]} channels"
                )

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it."""
        onnx = import_onnx()
        proto = model_proto(bundle, options.batch_size, options.opset or OPSET)
        if options.uint8_input:
            assert bundle.preprocessing is not None  # says check()
            add_pixels(proto, bundle.preprocessing, IMAGES)
        proto.producer_name, proto.producer_version = "proxylessnas", __version__
        onnx.helper.set_model_props(proto, bundle.metadata())
        with export_errors(f"{bundle.name}: the ONNX checker refuses the graph"):
            onnx.checker.check_model(proto, full_check=True)
        path.write_bytes(proto.SerializeToString())
        return [path]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in ONNX Runtime, on the CPU."""
        ort = RUNTIME.library()
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only
        options.intra_op_num_threads = threads or 0
        with export_errors(f"{path}: ONNX Runtime cannot load it"):
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return guarded(
            lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), path, "ONNX Runtime"
        )


def model_proto(bundle: ModelBundle, batch_size: int | None, opset: int = OPSET) -> Proto:
    """Return a model as an ONNX model with input "images" and output "logits".

    Args:
        bundle: the model.
        batch_size: images a call; None leaves it open.
        opset: version of ONNX's operators.

    Raises:
        ExportError: the model has an operation that cannot be exported.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    # The exporter takes a batch of one for a constant.
    example = torch.zeros(batch_size or 2, *bundle.input_size)
    model, open_batch = bundle.model, batch_size is None
    try:
        if is_plain(model) and not has_registered(model):
            proto = model_onnx(model, example, opset=opset, open_batch=open_batch)
        else:
            proto = traced_onnx(model, example, opset, open_batch)
    except LatencyError as e:
        raise ExportError(f"{bundle.name}: {e}") from e
    return _renamed(proto, {INPUT: IMAGES, OUTPUT: LOGITS})


def take_bytes(path: Path, bundle: ModelBundle) -> None:
    """Put a model's preprocessing into a file that was written without it, as ``uint8_input`` does.

    Args:
        path: of the file, which is changed.
        bundle: the model, whose preprocessing is known.
    """
    onnx = import_onnx()
    proto = onnx.load(str(path))
    assert bundle.preprocessing is not None  # says check()
    add_pixels(proto, bundle.preprocessing, IMAGES)
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def _renamed(proto: Proto, names: dict[str, str]) -> Proto:
    """Give the values of a graph other names."""
    graph = proto.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    return proto


FORMAT = OnnxFormat()


_PREFIX = "pixels"


def add_pixels(proto: Proto, preprocessing: Preprocessing, name: str) -> None:
    """Put the preprocessing before a graph, whose input then takes uint8 [N, 3, H, W] of any H and W.

    Args:
        proto: a model of operator set 18 or later whose one input is called ``name``; it is changed.
        preprocessing: what the model was trained with.
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
    values = steps("Cast", [strip], "strip_values", to=onnx.TensorProto.FLOAT)
    resized = _resized(steps, values, size, p)

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
    shape = steps.whole("net_input", [0, 3, p.input_size, p.input_size])
    steps.nodes.append(onnx.helper.make_node("Reshape", [values, shape], [inside]))

    nodes = [*steps.nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(steps.constants)
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    dims = [batch.dim_param or batch.dim_value, 3, "height", "width"]
    graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, dims))


def _resized(steps: _Steps, values: str, size: str, p: Preprocessing) -> str:
    """Resize the width, then the height, each rounded to whole grey values, as PyTorch resizes bytes."""
    for k, side in ((1, "width"), (0, "height")):
        index, others = steps.whole(side, [k]), steps.whole(f"{side}_other", [1 - k])
        before = steps("Shape", [values], f"{side}_before", start=2)
        new = steps("Gather", [size, index], f"{side}_new")
        old = steps("Gather", [before, others], f"{side}_kept")
        batch = steps("Shape", [values], f"{side}_batch", end=2)
        whole_size = steps("Concat", [batch, *([old, new] if k else [new, old])], f"{side}_size", axis=0)
        values = steps(
            "Resize", [values, "", "", whole_size], f"{side}_resized",
            mode="linear" if p.interpolation == "bilinear" else "cubic", antialias=int(p.antialias),
            coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.5 if p.antialias else -0.75,
            exclude_outside=int(p.antialias and p.interpolation == "bicubic"),
        )  # fmt: skip
        values = steps("Add", [values, steps.real(f"{side}_half", [0.5])], f"{side}_plus_half")
        values = steps("Floor", [values], f"{side}_floor")
        bounds = [steps.real(f"{side}_{n}", [n], ()) for n in (0.0, 255.0)]
        values = steps("Clip", [values, *bounds], f"{side}_whole")
    return values


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
