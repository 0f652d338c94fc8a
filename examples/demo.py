"""What `make demo` runs: the nets there are, then photos through a real net, if its weights can be had."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from pathlib import Path

import torch

import proxylessnas
from proxylessnas import cli
from proxylessnas.errors import ProxylessError
from proxylessnas.images import load_image

NAME = "proxyless_w025_r112"
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT.parent / "shared" / "data" / "weights"  # a checkout may have weights beside it


def find_weights(weights: proxylessnas.Weights) -> Path | None:
    """Return a verified file: from the cache, the folder beside the checkout, or the network."""
    beside = [FOLDER / url.rpartition("/")[2] for url in weights.sources]
    for path in (None, *beside):
        with contextlib.suppress(ProxylessError):
            found = weights.verify(path)
            print(f"  from {path.parent if path else 'the cache'}: {found.name}, digest verified")
            return found
    try:
        found = weights.fetch()
    except ProxylessError as error:
        print(f"  not in the cache, not in {FOLDER}, and not from the network:")
        print("  " + str(error).replace("\n", "\n  "))
        return None
    print(f"  from the network: {found}, digest verified")
    return found


def milliseconds(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Return the median time of one image, after a warm-up."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        model(image)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


@torch.inference_mode()
def main() -> int:
    os.environ.setdefault("PROXYLESSNAS_TIMEOUT", "10")  # where there is no network, do not wait long for it
    os.environ.setdefault("PROXYLESSNAS_RETRIES", "1")
    print(f"proxylessnas {proxylessnas.__version__}, torch {torch.__version__}\n")
    cli.main(["list"])

    print(f"\nWeights of {NAME}")
    weights = proxylessnas.get_weights(NAME)
    path = find_weights(weights)
    if path is None:
        print("\nNo photo was classified: without weights a net only guesses. Its speed can be shown:")
        for name in proxylessnas.list_models():
            size = proxylessnas.get_weights(name).input_size
            ms = milliseconds(proxylessnas.create_model(name).eval(), torch.rand(1, 3, size, size))
            print(f"  {name:20} {ms:6.1f} ms an image of {size} px, {torch.get_num_threads()} threads")
        return 0
    model = proxylessnas.create_model(NAME, weights=path).eval()
    for photo in sorted((ROOT / "examples" / "photos").glob("*.jpg")):
        image = weights.transforms()(load_image(photo))
        values, indices = model(image.unsqueeze(0)).softmax(dim=1)[0].topk(5)
        ms = milliseconds(model, image.unsqueeze(0))
        print(f"\n{photo.relative_to(ROOT)}  ({ms:.1f} ms)")
        for value, index in zip(values.tolist(), indices.tolist(), strict=True):
            print(f"  {weights.categories[index]:20} {value:6.1%}  {'#' * round(40 * value)}".rstrip())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
