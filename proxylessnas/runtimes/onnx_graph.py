"""Models and single operations as ONNX models, in milliseconds where ``torch.onnx`` takes seconds.

A table needs dozens of models, and ``torch.onnx.export`` takes six to eight seconds for each. Our models
consist of few kinds of node, so these are written here one by one, exactly as the exporter writes them (a
test compares the two): BatchNorm folded into ``Conv``, ReLU6 as ``Clip``, ReLU as ``Relu``, pooling as
``ReduceMean``, the classifier as ``Gemm``. Registered operations, other modules and tree-structured models do
go through ``torch.onnx``, a registered operation once a shape and process.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from ..arch.arch import Arch
from ..arch.op_key import CLASSIFIER, STEM, OpKey
from ..errors import ExportError, LatencyError, ProxylessError, first_line, missing_extra
from ..models.layers import ConvLayer, LinearLayer, OpLayers, ResidualBlock, SqueezeExcite, folded
from ..models.proxylessnas import ProxylessNAS
from ..utils.files import read_bytes
from .base import ModelSpec
from .modules import PoolAndClassify, build_model
from .settings import Settings

Proto = Any  # an onnx.ModelProto

#: Version of the operator set of every model that is made here; read by ONNX Runtime 1.14 (2023) and later.
OPSET = 18
IR_VERSION = 8
INPUT, OUTPUT = "x", "y"

#: Random weights that all large weights of a file repeat; a prime number, so that no channel equals another.
_PATTERN = 4099
_LARGE = 256

#: (token, shape of the input, output channels, stride, dtype) -> exported registered operation.
_exported: dict[tuple[object, ...], Proto] = {}


def whole_model_onnx(spec: ModelSpec, batch_size: int = 1, dtype: str = "float32") -> bytes:
    """Return a model, or whatever else a spec names, as a serialized ONNX model with random weights.

    Args:
        spec: of kind "arch", "op", "module" (which keeps its weights), or "file" (an ``.onnx`` file, which is
            returned).
        batch_size: images a call; fixed in the model, as in the eager models it is compared with.
        dtype: of weights, input and output: "float32" or "float16"; or "int8", see
            :func:`~proxylessnas.runtimes.onnx_int8.plain_int8`.

    Returns:
        A model of :data:`OPSET` with all weights inside, input "x" [batch_size, channels, height, width] and
        output "y".

    Raises:
        LatencyError: ``torch.onnx`` cannot export the module.
        MissingExtraError: onnx (or, for what needs ``torch.onnx``, onnxscript; for "int8", ONNX Runtime) is
            not installed.
    """
    if spec.kind == "file":
        try:
            return read_bytes(spec.text)
        except OSError as e:
            raise LatencyError(f"{spec.text}: {e.strerror or e}") from e
    if dtype not in ("float32", "float16", "int8"):
        raise LatencyError(f"ONNX models are written in float32, float16 or int8, not {dtype}")
    own = "float32" if dtype == "int8" else dtype
    settings = Settings(batch_size=batch_size, dtype=own, memory_format="contiguous")
    model, example = build_model(spec, settings)
    # A module is perhaps a model of ours with a part exchanged: the exporter sees what is there.
    proto = module_onnx(model, example) if spec.kind == "module" else model_onnx(model, example, reuse=True)
    if dtype == "int8":
        from .onnx_int8 import plain_int8

        # The neighbours of an operation give and take 8-bit numbers; images and logits are none.
        ends = {STEM: (OUTPUT,), CLASSIFIER: (INPUT,)}
        inside = ends.get(OpKey.parse(spec.text).op, (INPUT, OUTPUT)) if spec.kind == "op" else ()
        proto = plain_int8(proto, example, in_bytes=inside)
    return proto.SerializeToString()


def op_onnx(key: Any, batch_size: int = 1) -> bytes:
    """Return one operation of a space as a serialized ONNX model.

    Args:
        key: an :class:`~proxylessnas.arch.op_key.OpKey`, or its text.
        batch_size: images a call.

    Raises:
        LatencyError: the text is not that of a key, or a registered operation cannot be exported.
        MissingExtraError: onnx is not installed.
    """
    key = OpKey.parse(key) if isinstance(key, str) else key
    spec = ModelSpec("op", str(key), (key.in_channels, key.size, key.size))
    return whole_model_onnx(spec, batch_size)


def is_plain(model: nn.Module) -> bool:
    """Tell a model whose nodes are all written here, but for those of registered operations."""
    return isinstance(model, ProxylessNAS) and model.global_pool == "avg" and model.num_classes > 0


def model_onnx(
    model: nn.Module, example: Tensor, *, reuse: bool = False, opset: int = OPSET, open_batch: bool = False
) -> Proto:
    """Return a model or an operation with its weights as an ONNX model.

    Args:
        model: in evaluation mode, as this package built it; :func:`module_onnx` takes any other.
        example: an input, [N, C, H, W]; its shape and dtype become the model's.
        reuse: a registered operation of a shape that was exported before may come back with the weights it
            had then, which saves half a second each.
        opset: version of the operator set, at least :data:`OPSET`.
        open_batch: leave the number of images open, under the name "batch".

    Raises:
        LatencyError: ``torch.onnx`` cannot export the module.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    # Put together of pieces, registered operations would each have a batch and operators of their own.
    pieces = (open_batch or opset != OPSET) and has_registered(model)
    if pieces or not (is_plain(model) or isinstance(model, (ConvLayer, ResidualBlock, PoolAndClassify))):
        return module_onnx(model, example, opset=opset, open_batch=open_batch)
    graph = _Graph(example, opset, open_batch)
    if isinstance(model, ProxylessNAS):
        assert isinstance(model.arch, Arch)  # says the class
        tokens = [block.token.removesuffix("!") for block in model.arch.blocks]
        graph.layer(model.first_conv, "stem")
        for i, block in enumerate(model.blocks):
            assert isinstance(block, ResidualBlock)  # ModuleList does not tell
            graph.block(block, f"block{i}", tokens[i] if reuse else None)
        graph.layer(model.feature_mix_layer, "last")
        assert isinstance(model.classifier, LinearLayer)  # as there are classes
        graph.head(model.classifier.linear)
    elif isinstance(model, PoolAndClassify):
        graph.head(model.classifier.linear)
    elif isinstance(model, ConvLayer):
        graph.layer(model, "op")
    elif isinstance(model, ResidualBlock):
        graph.block(model, "op", None)
    return graph.model()


def has_registered(model: nn.Module) -> bool:
    """Tell whether there is a registered operation in a model."""
    ops = [m.mobile_inverted_conv for m in model.modules() if isinstance(m, ResidualBlock)]
    return any(op is not None and not isinstance(op, OpLayers) for op in ops)


def import_onnx() -> Any:
    """Return the onnx package.

    Raises:
        MissingExtraError: it is not installed or broken.
    """
    try:
        return import_module("onnx")
    except Exception as e:  # a broken install raises anything
        raise missing_extra("onnx", "writing ONNX models", extra="onnx") from e


class _Graph:
    """Collects nodes in a chain: each call appends to what came before."""

    def __init__(self, example: Tensor, opset: int, open_batch: bool) -> None:
        self.onnx = import_onnx()
        self.dtype = example.dtype
        self.shape = tuple(example.shape)  # of the value that the next node takes
        self.open_batch = open_batch
        self.value = INPUT
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.opsets = {"": opset}
        self.constants: set[str] = set()
        self.kind = self.onnx.helper.np_dtype_to_tensor_dtype(_numpy(example.new_zeros(1)).dtype)
        self.input = self._info(INPUT)

    def _info(self, name: str) -> Any:
        shape = ("batch", *self.shape[1:]) if self.open_batch else self.shape
        return self.onnx.helper.make_tensor_value_info(name, self.kind, shape)

    def _constant(self, name: str, values: Tensor) -> str:
        self.constants.add(name)
        self.initializers.append(self.onnx.numpy_helper.from_array(_numpy(values), name))
        return name

    def _node(
        self, kind: str, inputs: list[str], name: str, shape: tuple[int, ...], **attributes: Any
    ) -> None:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        self.value, self.shape = name, shape

    def layer(self, layer: ConvLayer, name: str) -> None:
        """Append a convolution with its folded BatchNorm and activation."""
        self._conv(layer.conv, *folded(layer.conv, layer.bn), name)
        if layer.act == "relu":
            self._node("Relu", [self.value], f"{name}.relu", self.shape)
        elif layer.act:
            self._node("Clip", [self.value, *self._bounds()], f"{name}.relu6", self.shape)

    def _conv(self, conv: nn.Conv2d, weight: Tensor, bias: Tensor, name: str) -> None:
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        pad = kernel // 2
        batch, _, height, width = self.shape
        height, width = ((side + 2 * pad - kernel) // stride + 1 for side in (height, width))
        inputs = [
            self.value,
            self._constant(f"{name}.weight", weight.to(self.dtype)),
            self._constant(f"{name}.bias", bias.to(self.dtype)),
        ]
        self._node(
            "Conv", inputs, f"{name}.conv", (batch, conv.out_channels, height, width),
            group=conv.groups, pads=[pad] * 4, auto_pad="NOTSET", strides=[stride] * 2, dilations=[1, 1],
            kernel_shape=[kernel] * 2,
        )  # fmt: skip

    def squeeze(self, layer: SqueezeExcite, name: str) -> None:
        """Append a squeeze-and-excite."""
        before, shape = self.value, self.shape
        self._pool(f"{name}.mean", keepdims=1)
        for conv, kind, step in ((layer.reduce, "Relu", "reduce"), (layer.expand, "HardSigmoid", "expand")):
            assert conv.bias is not None  # as it was made with one
            self._conv(conv, conv.weight, conv.bias, f"{name}.{step}")
            numbers = {"alpha": 1 / 6, "beta": 0.5} if kind == "HardSigmoid" else {}
            self._node(kind, [self.value], f"{name}.{step}.{kind.lower()}", self.shape, **numbers)
        self._node("Mul", [before, self.value], f"{name}.mul", shape)

    def _pool(self, name: str, keepdims: int) -> None:
        if "axes" not in self.constants:
            self._constant("axes", torch.tensor([2, 3]))
        shape = self.shape[:2] + (1, 1) * keepdims
        inputs = [self.value, "axes"]
        self._node("ReduceMean", inputs, name, shape, keepdims=keepdims, noop_with_empty_axes=0)

    def _bounds(self) -> list[str]:
        if "zero" not in self.constants:
            self._constant("zero", torch.zeros((), dtype=self.dtype))
            self._constant("six", torch.full((), 6.0, dtype=self.dtype))
        return ["zero", "six"]

    def block(self, block: ResidualBlock, name: str, token: str | None) -> None:
        """Append a block; ``token`` of a registered operation allows taking it from earlier exports."""
        op = block.mobile_inverted_conv
        if op is None:
            return
        before = self.value
        if isinstance(op, OpLayers):
            for child, layer in op.named_children():
                if isinstance(layer, SqueezeExcite):
                    self.squeeze(layer, f"{name}.{child}")
                else:
                    assert isinstance(layer, ConvLayer)  # the only other one
                    self.layer(layer, f"{name}.{child}")
        else:
            self._exported_op(op, name, token)
        if block.shortcut:
            self._node("Add", [before, self.value], f"{name}.add", self.shape)

    def _exported_op(self, op: nn.Module, name: str, token: str | None) -> None:
        example = torch.randn(self.shape).to(self.dtype)
        with torch.no_grad():
            shape = tuple(op(example).shape)
        key = (token, self.shape, shape, self.dtype)
        proto = _exported.get(key) if token else None
        if proto is None:
            proto = module_onnx(op, example)
            if token:
                _exported[key] = proto
        renamed = self.onnx.compose.add_prefix(proto, f"{name}/")
        for opset in renamed.opset_import:
            if self.opsets.setdefault(opset.domain, opset.version) != opset.version:
                raise LatencyError(
                    f"{name}: exported with version {opset.version} of operators {opset.domain!r}"
                )
        graph = renamed.graph
        self._node("Identity", [self.value], graph.input[0].name, self.shape)
        self.nodes.extend(graph.node)
        self.initializers.extend(graph.initializer)
        self.value, self.shape = graph.output[0].name, shape

    def head(self, linear: nn.Linear) -> None:
        """Append global average pooling and the classifier."""
        self._pool("pool", keepdims=0)
        inputs = [self.value, self._constant("classifier.weight", linear.weight.detach())]
        if linear.bias is not None:
            inputs.append(self._constant("classifier.bias", linear.bias.detach()))
        shape = (self.shape[0], linear.out_features)
        self._node("Gemm", inputs, "logits", shape, alpha=1.0, beta=1.0, transA=0, transB=1)

    def model(self) -> Proto:
        """Return the checked model."""
        if self.nodes and list(self.nodes[-1].output) == [self.value]:
            self.nodes[-1].output[0] = OUTPUT
        else:  # no node at all, or an exported operation whose last node is not the one that counts
            self._node("Identity", [self.value], OUTPUT, self.shape)
        helper = self.onnx.helper
        graph = helper.make_graph(self.nodes, "net", [self.input], [self._info(OUTPUT)], self.initializers)
        opsets = [helper.make_opsetid(domain, version) for domain, version in self.opsets.items()]
        ir_version = max(IR_VERSION, helper.find_min_ir_version_for(opsets))
        made = helper.make_model(
            graph, opset_imports=opsets, ir_version=ir_version, producer_name="proxylessnas"
        )
        self.onnx.checker.check_model(made)
        return made


def _numpy(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().numpy()


def module_onnx(model: nn.Module, example: Tensor, *, opset: int = OPSET, open_batch: bool = False) -> Proto:
    """Export any module through ``torch.onnx``.

    Args:
        model: in evaluation mode, with one input and one output.
        example: an input, whose shape and dtype become the model's; with ``open_batch`` of two images or
            more.
        opset: version of the operator set.
        open_batch: leave the number of images open, under the name "batch".

    Raises:
        LatencyError: it cannot be exported.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    try:
        return traced_onnx(model, example, opset, open_batch)
    except ExportError as e:
        raise LatencyError(f"{e}; runtime 'torch' measures any module") from e


def traced_onnx(model: nn.Module, example: Tensor, opset: int, open_batch: bool) -> Proto:
    """As :func:`module_onnx`, for those who want a file and not a latency.

    Raises:
        ExportError: it cannot be exported.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    onnx = import_onnx()
    try:
        import_module("onnxscript")
    except Exception as e:  # a broken install raises anything
        raise missing_extra("onnxscript", "exporting a module through torch.onnx", extra="onnx") from e
    shapes: Any = ({0: torch.export.Dim("batch", min=1)},) if open_batch else None
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # about the exporter's own insides
            program: Any = torch.onnx.export(
                model, (example,), dynamo=True, external_data=False, verbose=False, opset_version=opset,
                input_names=[INPUT], output_names=[OUTPUT], dynamic_shapes=shapes,
            )  # fmt: skip
        proto = program.model_proto
    except ProxylessError:
        raise
    except Exception as e:  # the exporter raises whatever the module's code or its own does
        raise ExportError(f"torch.onnx cannot export {type(model).__name__} ({first_line(e)})") from e
    if proto.functions:
        proto = onnx.inliner.inline_local_functions(proto)
    if len(proto.graph.input) != 1 or len(proto.graph.output) != 1:
        raise ExportError(
            f"{type(model).__name__} has {len(proto.graph.input)} inputs and {len(proto.graph.output)} "
            "outputs; one of each can be exported"
        )
    written = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if written != opset:
        raise ExportError(f"torch.onnx wrote operators of version {written} where {opset} was asked for")
    if open_batch:
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        del proto.graph.value_info[:]  # their batch has a name of the exporter's
    proto.ir_version = max(IR_VERSION, onnx.helper.find_min_ir_version_for(list(proto.opset_import)))
    del proto.metadata_props[:]
    onnx.checker.check_model(proto)
    return proto


def with_repeated_weights(model: Proto) -> Proto:
    """Return a model of which every large weight is cut from one short random pattern, repeated.

    The operators that repeat and cut have constant inputs, so ONNX Runtime computes them when it loads the
    file, and what then runs is the same as with ordinary weights. The files become a hundred times smaller.
    """
    onnx = import_onnx()
    import numpy as np

    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    draw = np.random.default_rng(0)
    patterns = {
        # Of a size that lets values neither grow beyond all bounds nor fade, whatever the layer.
        onnx.TensorProto.FLOAT: (0.1 * draw.standard_normal(_PATTERN)).astype(np.float32),
        onnx.TensorProto.INT8: draw.integers(-64, 65, _PATTERN).astype(np.int8),
    }
    large = [
        t for t in model.graph.initializer
        if len(t.dims) >= 2 and int(np.prod(t.dims)) >= _LARGE and t.data_type in patterns
    ]  # fmt: skip
    if not large:
        return model
    kept = [t for t in model.graph.initializer if t not in large]
    nodes: list[Any] = []
    made: dict[str, Any] = {}
    for kind, pattern in patterns.items():
        longest = max((int(np.prod(t.dims)) for t in large if t.data_type == kind), default=0)
        if longest:
            repeated = f"repeated{kind}"
            repeats = -(-(longest + _PATTERN) // _PATTERN)  # one more, as cuts start anywhere in the first
            own = {f"{repeated}/pattern": pattern, f"{repeated}/times": np.array([repeats], np.int64)}
            nodes.append(helper.make_node("Tile", [*own], [repeated], repeated))
            made |= own
    for i, tensor in enumerate(large):
        name, start = tensor.name, 97 * i % _PATTERN
        made[f"{name}/from"] = np.array([start], np.int64)
        made[f"{name}/to"] = np.array([start + int(np.prod(tensor.dims))], np.int64)
        made[f"{name}/shape"] = np.array(tensor.dims, np.int64)
        cut = [f"repeated{tensor.data_type}", f"{name}/from", f"{name}/to"]
        nodes += [
            helper.make_node("Slice", cut, [f"{name}/cut"], f"{name}/cut"),
            helper.make_node("Reshape", [f"{name}/cut", f"{name}/shape"], [name], f"{name}/make"),
        ]
    small = onnx.ModelProto()
    small.CopyFrom(model)
    del small.graph.initializer[:], small.graph.node[:]
    small.graph.node.extend([*nodes, *model.graph.node])
    small.graph.initializer.extend([*kept, *(numpy_helper.from_array(v, k) for k, v in made.items())])
    onnx.checker.check_model(small)
    return small
