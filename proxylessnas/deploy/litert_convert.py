"""Converts to LiteRT: runs in the Python that has litert-torch, not in the one that runs this package.

    python -I litert_convert.py PACKAGE WEIGHTS OUT HEIGHT WIDTH BATCH [RULE INPUTS CONVS WIDE]

PACKAGE is the folder of this package, WEIGHTS a file of ``save_weights``, BATCH the images a call, 0 for
any number. With the other four the file is in 8 bits: see :func:`quantise_file`. What fails is reported in
one line on the standard error, after "PROBLEM: ".
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MARK = "PROBLEM: "
LARGEST_BATCH = 4096
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D")


def import_package(folder: Path) -> None:
    """Import this package alone: beside it may be a whole site-packages of another Python's libraries."""
    spec = importlib.util.spec_from_file_location(
        folder.name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[folder.name] = module
    spec.loader.exec_module(module)


def convert(weights: Path, out: Path, height: int, width: int, batch: int) -> None:
    """Write a model as a ``.tflite`` file; its input is [N, H, W, C] float32, as phones have images."""
    import litert_torch  # type: ignore[import-not-found,unused-ignore]
    import torch
    from torch import Tensor, nn

    from proxylessnas import create_model
    from proxylessnas.deploy.formats.split_depthwise import split_depthwise

    class ChannelsLast(nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: Tensor) -> Any:
            x = images.permute(0, 3, 1, 2)
            if self.model.global_pool != "avg":
                return self.model(x)
            # The same, but as LiteRT has its maps: otherwise it would turn the last one round first.
            return self.model.classifier(self.model.forward_features(x).permute(0, 2, 3, 1).mean((1, 2)))

    model: Any = split_depthwise(create_model(weights)).requires_grad_(False)
    example = torch.zeros(batch or 2, height, width, model.in_chans)
    shapes = None if batch else ({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},)
    # Torch asks whether a batch is below 16 to choose between these two, which would limit the file to that.
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        edge_model = litert_torch.convert(ChannelsLast(model).eval(), (example,), dynamic_shapes=shapes)
    edge_model.export(str(out))


def quantise_file(path: Path, rule: str, inputs: Path, float_convs: int, float_wide: int) -> None:
    """Replace a float32 file by one with 8-bit weights and activations, by LiteRT's own quantiser.

    The ranges are ours; the quantiser's own are moving averages of what it sees.

    Convolutions and sums are static, int8, each output channel with a scale of its own. The classifier's
    input is rounded anew for each image, so that the logits stay in float32, as does the file's input.

    Args:
        path: the file.
        rule: of the ranges, see :data:`~.schemes.RULES`.
        inputs: ``.npy`` file of the calibration inputs, float32 [N, H, W, C].
        float_convs: how many of the first convolutions stay in float32, with all before them.
        float_wide: 1 if depthwise convolutions do that are written as sums.
    """
    import numpy as np
    from ai_edge_quantizer import qtyping, quantizer  # type: ignore[import-not-found,import-untyped,unused-ignore]

    from proxylessnas.deploy.formats.split_depthwise import SplitDepthwise

    watched = _interpreter(path)
    operations = watched._get_ops_details()
    kept = _first(operations, float_convs)
    names = {tensor["index"]: tensor["name"] for tensor in watched.get_tensor_details()}
    made = quantizer.Quantizer(str(path))
    op, off = qtyping.TFLOperationName, quantizer.AlgorithmName.NO_QUANTIZE
    made.add_static_config(".*", op.ALL_SUPPORTED, 8, 8)
    made.add_dynamic_config(".*", op.FULLY_CONNECTED, 8)
    for outside in (op.INPUT, op.OUTPUT):
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

    from proxylessnas.runtimes.onnx_int8 import ranges_of

    entry = watched.get_input_details()[0]
    batch = int(entry["shape_signature"][0])
    at_once = batch if batch > 0 else 1
    watched.resize_tensor_input(entry["index"], [at_once, *inputs.shape[1:]])
    watched.allocate_tensors()
    made = {entry["index"], *(index for operation in operations for index in operation["outputs"])}
    tensors = [t for t in watched.get_tensor_details() if t["index"] in made and t["dtype"] == np.float32]

    def values() -> Iterator[tuple[str, torch.Tensor]]:
        for start in range(0, len(inputs) - at_once + 1, at_once):
            watched.set_tensor(entry["index"], inputs[start : start + at_once])
            watched.invoke()
            for tensor in tensors:
                yield tensor["name"], torch.from_numpy(watched.get_tensor(tensor["index"]))

    return ranges_of(values, rule)


def main(arguments: list[str]) -> int:
    """Convert; return 0, or 1 after one line about the problem."""
    package, weights, out, height, width, batch, *int8 = arguments
    try:
        import_package(Path(package))
        convert(Path(weights), Path(out), int(height), int(width), int(batch))
        if int8:
            rule, inputs, *numbers = int8
            quantise_file(Path(out), rule, Path(inputs), *map(int, numbers))
    except Exception as e:  # noqa: BLE001 - the process ends here, and its caller raises the error
        first = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
        print(f"{MARK}{type(e).__name__}: {first[:300]}", file=sys.stderr)  # noqa: T201 - to the caller
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
