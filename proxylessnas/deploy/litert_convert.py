"""Runs in the Python that has litert-torch, which is not the one that runs this package.

    python -I litert_convert.py PACKAGE WEIGHTS OUT HEIGHT WIDTH BATCH [RULE INPUTS CONVS ADDS WIDE]

PACKAGE is the folder of this package, WEIGHTS a file of ``save_weights``, BATCH the images a call, 0 for
any number. With the other five the file is in 8 bits: see :func:`.int8.litert_quantise.quantise_file`. What
fails is told in one line on the standard error, after "PROBLEM: ".
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

MARK = "PROBLEM: "
LARGEST_BATCH = 4096


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


def main(arguments: list[str]) -> int:
    """Convert; return 0, or 1 after one line about the problem."""
    package, weights, out, height, width, batch, *int8 = arguments
    try:
        import_package(Path(package))
        convert(Path(weights), Path(out), int(height), int(width), int(batch))
        if int8:
            from proxylessnas.deploy.quantization.litert_quantize import quantise_file

            rule, inputs, *numbers = int8
            quantise_file(Path(out), rule, Path(inputs), *map(int, numbers))
    except Exception as e:  # noqa: BLE001 - the process ends here, and its caller raises the error
        first = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
        print(f"{MARK}{type(e).__name__}: {first[:300]}", file=sys.stderr)  # noqa: T201 - to the caller
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
