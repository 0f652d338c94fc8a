"""Runs in the Python that has litert-torch: a ``.tflite`` file in 8 bits, by LiteRT's own quantiser.

The ranges are ours (:mod:`.ranges`); the quantiser's own are moving averages of what it sees.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..formats.split_depthwise import SplitDepthwise
from .ranges import Observed

_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D")


def quantise_file(
    path: Path, rule: str, inputs: Path, float_convs: int, float_adds: int, float_wide: int
) -> None:
    """Replace a float32 file by one with 8-bit weights and activations.

    Convolutions and sums are static, int8, each output channel with a scale of its own. The classifier's
    input is rounded anew for each image, so that the logits stay in float32, as does the file's input.

    Args:
        path: the file.
        rule: of the ranges, see :data:`.ranges.RULES`.
        inputs: ``.npy`` file of the calibration inputs, float32 [N, H, W, C].
        float_convs: how many of the first convolutions stay in float32, with all before them.
        float_adds: 1 if the sums of the shortcuts do.
        float_wide: 1 if depthwise convolutions do that are written as sums.
    """
    import numpy as np
    from ai_edge_quantizer import qtyping, quantizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

    watched = _interpreter(path)
    operations = watched._get_ops_details()
    kept = _first(operations, float_convs)
    names = {tensor["index"]: tensor["name"] for tensor in watched.get_tensor_details()}
    made = quantizer.Quantizer(str(path))
    op, off = qtyping.TFLOperationName, quantizer.AlgorithmName.NO_QUANTIZE
    made.add_static_config(".*", op.ALL_SUPPORTED, 8, 8)
    made.add_dynamic_config(".*", op.FULLY_CONNECTED, 8)
    for outside in (op.INPUT, op.OUTPUT, *((op.ADD,) if float_adds else ())):
        made.update_quantization_recipe(".*", outside, algorithm_key=off)
    if float_wide:
        made.update_quantization_recipe(SplitDepthwise.__name__, op.ALL_SUPPORTED, algorithm_key=off)
    for operation in kept:
        for index in operation["outputs"]:
            made.update_quantization_recipe(
                f"^{re.escape(names[index])};", op.ALL_SUPPORTED, algorithm_key=off
            )
    ranges = {
        name: {"min": np.full((1, 1, 1, 1), low, np.float32), "max": np.full((1, 1, 1, 1), high, np.float32)}
        for name, (low, high) in _observed(watched, operations, np.load(inputs), rule).items()
    }
    draft = path.with_suffix(".draft")
    draft.write_bytes(made.quantize(ranges, enable_progress_report=False).quantized_model)
    os.replace(draft, path)


def _interpreter(path: Path) -> Any:
    """Return an interpreter that keeps every tensor."""
    from ai_edge_litert import interpreter  # type: ignore[import-not-found,import-untyped,unused-ignore]

    return interpreter.Interpreter(
        str(path), experimental_preserve_all_tensors=True, num_threads=os.cpu_count() or 1,
        experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )  # fmt: skip


def _first(operations: list[dict[str, Any]], convs: int) -> list[dict[str, Any]]:
    """Return the operations up to and including so many convolutions."""
    seen = 0
    for i, operation in enumerate(operations):
        if seen == convs:
            return operations[:i]
        seen += operation["op_name"] in _WEIGHTED
    return operations


def _observed(
    watched: Any, operations: list[dict[str, Any]], inputs: Any, rule: str
) -> dict[str, tuple[float, float]]:
    """Return the range of everything that is computed, by name."""
    import numpy as np
    import torch

    entry = watched.get_input_details()[0]
    batch = int(entry["shape_signature"][0])
    at_once = batch if batch > 0 else 1
    watched.resize_tensor_input(entry["index"], [at_once, *inputs.shape[1:]])
    watched.allocate_tensors()
    made = {entry["index"], *(index for operation in operations for index in operation["outputs"])}
    tensors = [t for t in watched.get_tensor_details() if t["index"] in made and t["dtype"] == np.float32]
    seen = {tensor["name"]: Observed() for tensor in tensors}

    def visit(look: Callable[[Observed, torch.Tensor], None]) -> None:
        for x in _batches(inputs, at_once):
            watched.set_tensor(entry["index"], x)
            watched.invoke()
            for tensor in tensors:
                look(seen[tensor["name"]], torch.from_numpy(watched.get_tensor(tensor["index"])))

    visit(Observed.see)
    visit(Observed.count)
    return {name: values.range(rule) for name, values in seen.items()}


def _batches(inputs: Any, size: int) -> Iterator[Any]:
    for start in range(0, len(inputs) - size + 1, size):
        yield inputs[start : start + size]
