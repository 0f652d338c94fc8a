"""INT8 in OpenVINO's files, by NNCF."""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import needs
from ...models.base import ImageClassifier
from ...runtimes.openvino import RUNTIME
from ..bundle import ModelBundle
from ..formats.base import exporting
from ..formats.onnx import model_proto
from ..formats.openvino import save
from ..formats.split_depthwise import MOST_WEIGHTS
from ..settings import ExportOptions
from .fake_quant import rounded_weight, stays_float
from .schemes import Scheme

#: Our rules by the names NNCF has for them; "mse" is its search for the least squared error on a histogram.
_RULES = {"minmax": "MINMAX", "mse": "HISTOGRAM"}


def schemes(target_isa: str) -> list[str]:
    """Return the names of the schemes to try for a target."""
    names = ["mse+correct", "mse+correct+floatfirst", "mse+compensate+correct+floatfirst"]
    return ["minmax", "mse", *names] if target_isa == "vnni" else [f"{name}+7bit" for name in names]


def paired_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights that are not those of depthwise convolutions; see :class:`~.backends.Backend`."""
    found = {}
    for node, weight, _ in _quantised(RUNTIME.library().Core().read_model(str(path))):
        values = torch.from_numpy(weight.data.copy())
        if node.get_type_name() == "GroupConvolution":
            values = values.flatten(0, 1)
        elif node.get_type_name() == "MatMul" and not node.get_attributes()["transpose_b"]:
            values = values.transpose(-1, -2)
        found[node.get_friendly_name()] = values
    return found


def _quantised(model: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield layers with 8-bit weights, the weights' constant, and that of their scales; no depthwise ones."""
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _WEIGHTED:
            continue
        constant = scales = node
        while constant.get_input_size():
            constant = constant.input_value(1 if constant is node else 0).get_node()
            if constant.get_type_name() == "Multiply":
                scales = constant.input_value(1).get_node()
        if constant.get_element_type().get_type_name() != "i8":  # it stays in float32
            continue
        # The weights of groups are [groups, out, in, ...].
        if node.get_type_name() != "GroupConvolution" or list(constant.shape[1:3]) != [1, 1]:
            yield node, constant, scales


def write(
    bundle: ModelBundle, path: Path, batches: Sequence[Tensor], scheme: Scheme, options: ExportOptions
) -> None:
    """Write an int8 file; see :class:`~.backends.Backend`.

    A model whose biases are not corrected by the scheme gets NNCF's own correction. NNCF's own 7 bits (its
    fix for overflow) put each channel's largest weight between two steps, which no correction foresees:
    7-bit weights are rounded to their steps before it sees them, and what it made of them is put back.
    """
    ov = RUNTIME.library()
    nncf = library()
    size = options.batch_size or 1
    if scheme.weight_bits == 7:
        bundle = dataclasses.replace(bundle, model=_on_steps(bundle.model, scheme))
    images = [part.numpy() for x in batches for part in x.split(size) if len(part) == size]
    nncf.set_log_level(logging.ERROR)
    with exporting(f"{bundle.name}: NNCF cannot quantise the model"):
        exact = path.with_name(f"{path.stem}-exact.onnx")
        exact.write_bytes(model_proto(bundle, options.batch_size).SerializeToString())
        # Not Core.read_model(): that leaves weights behind Reshape, for which NNCF takes a wrong axis, and
        # biases where it does not find them.
        model = ov.convert_model(str(exact))
        exact.unlink()
        made = nncf.quantize(
            model,
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
            fast_bias_correction=False,
            ignored_scope=_ignored(nncf, model, scheme),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=nncf.OverflowFix.DISABLE,
                disable_bias_correction=scheme.correct,
                activations_range_estimator_params=getattr(
                    nncf.quantization.range_estimator.RangeEstimatorParametersSet, _RULES[scheme.rule]
                ),
            ),
        )
        if scheme.weight_bits == 7:
            _to_7_bits(ov, made)
        save(made, path, {**bundle.metadata(), "int8": scheme.name})


@torch.no_grad()
def _on_steps(model: ImageClassifier, scheme: Scheme) -> ImageClassifier:
    """Return a copy of a model whose weights are what a scheme rounds them to."""
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)) and not stays_float(name, layer, scheme):
            layer.weight.copy_(rounded_weight(layer.weight, scheme.weight_steps(layer)))
    return model


def _to_7_bits(ov: Any, model: Any) -> None:
    """Number the steps of 7-bit weights, which NNCF wrote as 8-bit ones, from -64 to 64."""
    for _, weight, scales in list(_quantised(model)):
        for constant, values in (
            (weight, (weight.data * (64 / 127)).round().astype(weight.data.dtype)),
            (scales, scales.data * scales.data.dtype.type(127 / 64)),
        ):
            made = ov.op.Constant(values)
            for reader in constant.output(0).get_target_inputs():
                reader.replace_source_output(made.output(0))


def library() -> Any:
    """Return NNCF.

    Raises:
        MissingExtraError: it is not installed.
    """
    with needs("nncf", "INT8 in OpenVINO's files", extra="openvino"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the versions of torch it was tried with
        return import_module("nncf")


def _ignored(nncf: Any, model: Any, scheme: Scheme) -> Any:
    """Return what stays in float32."""
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() in _WEIGHTED]
    names: list[str] = []
    if scheme.float_first:
        ours = [
            n.get_friendly_name() for n in nodes if n.get_friendly_name().startswith(("stem.", "block0."))
        ]
        names += ours or [nodes[0].get_friendly_name()]
    if scheme.float_wide:
        wide = [n for n in nodes if n.get_type_name() == "GroupConvolution"]
        names += [n.get_friendly_name() for n in wide if prod(n.input(1).get_shape()[-2:]) > MOST_WEIGHTS]
    return nncf.IgnoredScope(names=names)


_WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
