"""What `make demo` runs first, without any network: photos through a real model, then it learns digits."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import proxylessnas
from proxylessnas import cli
from proxylessnas.train import Recipe, finetune, open_data
from proxylessnas.train.metrics import Metrics
from proxylessnas.utils.plotting import confusion_png

NAME = "proxyless_cifar10_demo"  # its weights come with the package
PHOTOS = sorted((Path(__file__).resolve().parent / "photos" / "cifar10").glob("*.jpg"))
SHADES = " .:-=+*#%@"
RECIPE = Recipe(
    batch_size=32, learning_rate=0.1, warmup_epochs=0.5, crop="padded", crop_padding=2, flip=False
)


def classify() -> None:
    """Name what is on the photos that come with the repository."""
    model = proxylessnas.create_model(NAME, pretrained=True).eval()
    print(f"\n{NAME} guesses twice what is on a photo, at {model.preprocessing.input_size} pixels a side:")
    model.predict(PHOTOS[0])  # the first call takes longer than the others
    for photo in PHOTOS:
        start = time.perf_counter()
        found = model.predict(photo, top=2)
        ms = 1e3 * (time.perf_counter() - start)
        words = ", ".join(f"{guess.name} {guess.probability:.0%}" for guess in found)
        verdict = "right" if found[0].name == photo.stem.split("_")[0] else "WRONG"
        print(f"  {photo.name:12} {words:32} {verdict} {ms:7.1f} ms with reading the file")


def learn(folder: Path, epochs: int, limit: int | None) -> None:
    """Give the model a new classifier, train it on handwritten digits, and draw what came of it."""
    data = open_data("digits", val_fraction=0.2, limit=limit)
    assert data.val is not None
    print(f"\nThe same model learns {len(data.categories)} digits from {len(data.train):,} handwritten ones")
    result = finetune(NAME, data, RECIPE.replace(epochs=epochs), out=folder)
    if result.model is None:  # Ctrl-C
        raise SystemExit(130)

    model = proxylessnas.create_model(result.model).eval()
    images = [data.val.read(i) for i in range(len(data.val))]
    labels = torch.tensor(data.val.labels)
    with torch.inference_mode():
        logits = model(torch.stack([model.preprocessing.build()(image) for image in images]))
    metrics = Metrics(len(data.categories))
    metrics.add(logits, labels)
    print(f"\nIt reads {metrics.top1:.1f} % of {metrics.n} other digits right, which it was not trained on.")
    for i in (logits.argmax(1) != labels).nonzero()[:1].flatten().tolist():
        for row in images[i][0].tolist():
            print("    " + "".join(2 * SHADES[value * 9 // 255] for value in row))
        print(f"    A {data.categories[labels[i]]}, taken for a {data.categories[logits[i].argmax()]}.")
    confusion_png(metrics.confusion, data.categories, folder / "confusion.png")
    print(f"Figures: {folder / 'confusion.png'} (what it mixes up), {folder / 'curves.png'} (how it learnt)")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the run; default: a new one below runs/")
    parser.add_argument("--epochs", type=int, default=4, help="default 4")
    parser.add_argument("--limit", type=int, help="digits a class; default: all")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # quick enough for this small model, and steady where other programs run
    proxylessnas.keep_freed_pages()  # much faster steps on many virtual machines
    print(f"proxylessnas {proxylessnas.__version__}, torch {torch.__version__}\n")
    cli.main(["list"])
    classify()
    learn(args.out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"), args.epochs, args.limit)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
