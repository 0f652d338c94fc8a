"""INT8 in ExecuTorch's files, by torchao's quantisation of exported programs and XNNPACK's quantiser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ExportError, LatencyError
from ...runtimes.executorch import RUNTIME, lower_exported
from ..bundle import ModelBundle
from ..formats.base import exporting
from ..formats.executorch import LARGEST_BATCH, write_program
from ..formats.split_depthwise import SplitDepthwise, split_depthwise
from ..settings import ExportOptions
from .fake_quant import in_float_part
from .schemes import Scheme


def schemes(target_isa: str) -> list[str]:
    """Return the names of the schemes to try: the same for any target."""
    return ["mse+correct+floatfirst+floatwide", "mse+compensate+correct+floatfirst+floatwide"]


def paired_weights(path: Path) -> None:
    """Return None: which of XNNPACK's kernels run on which processor has not been looked at."""


def write(
    bundle: ModelBundle, path: Path, batches: Sequence[Tensor], scheme: Scheme, options: ExportOptions
) -> None:
    """Write an int8 file; see :class:`~.backends.Backend`.

    The classifier's input is rounded anew for each image, so that the logits stay in float32.
    """
    if scheme.weight_bits != 8:
        raise ExportError(f"XNNPACK's quantiser has no scheme {scheme.name!r}: it takes weights of 8 bits")
    model: nn.Module = bundle.model
    if scheme.float_wide:
        model = split_depthwise(model)
    sums = {name for name, module in model.named_modules() if isinstance(module, SplitDepthwise)}
    quantizer, prepare, convert = _quantizer(scheme, sums)
    fixed = options.batch_size
    shapes = None if fixed else ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},)
    example = torch.zeros(fixed or 2, *bundle.input_size)
    images = [part for x in batches for part in x.split(fixed or len(x)) if len(part) == (fixed or len(x))]
    with exporting(f"{bundle.name}: torchao cannot quantise the model"):
        graph = torch.export.export(model, (example,), dynamic_shapes=shapes).module()
        graph = prepare(graph, quantizer)
        for x in images:
            graph(x)
        exported = torch.export.export(convert(graph), (example,), dynamic_shapes=shapes)
    try:
        lowered = lower_exported(exported, bundle.name, {**bundle.metadata(), "int8": scheme.name})
    except LatencyError as e:
        raise ExportError(f"{bundle.name}: {e}") from e
    write_program(lowered, bundle.name, path)


def _quantizer(
    scheme: Scheme, float_names: AbstractSet[str] = frozenset()
) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
    """Return XNNPACK's quantiser for a scheme, and torchao's two steps.

    Args:
        scheme: the scheme.
        float_names: modules that stay in float32 as well.

    Raises:
        MissingExtraError: executorch, or the torchao it brings, is not installed.
    """
    ours = RUNTIME.library("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    pt2e = RUNTIME.library("torchao.quantization.pt2e")
    steps = RUNTIME.library("torchao.quantization.pt2e.quantize_pt2e")
    static = ours.get_symmetric_quantization_config(is_per_channel=True)
    if scheme.rule == "minmax":
        spec = static.output_activation
        plain = type(spec)(
            dtype=spec.dtype, quant_min=spec.quant_min, quant_max=spec.quant_max, qscheme=spec.qscheme,
            is_dynamic=False, observer_or_fake_quant_ctr=pt2e.MinMaxObserver.with_args(eps=2**-12),
        )  # fmt: skip
        static = type(static)(plain, plain, static.weight, static.bias, static.is_qat)
    dynamic = ours.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    aten = torch.ops.aten
    quantizer = ours.XNNPACKQuantizer()
    for op in (aten.conv2d.default, aten.add.Tensor):
        quantizer.set_operator_type(op, static)
    quantizer.set_operator_type(aten.linear.default, dynamic)

    def in_8_bits(node: Any) -> bool:
        return not any(name in float_names or in_float_part(name, scheme) for name in _modules(node))

    quantizer.set_filter_function(in_8_bits)
    return quantizer, steps.prepare_pt2e, steps.convert_pt2e


def _modules(node: Any) -> list[str]:
    """Return the names of the modules that a node of an exported program comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(name).removeprefix("L['self'].") for name, _ in stack.values()]
