"""Put a trained model into the package: half precision, measured, with its record in the manifest.

    python benchmarks/bundle_weights.py runs/demo --test cifar10/test --command "proxylessnas train ..."
        --data "CIFAR-10, ..." --data-file cifar10.tar.xz --machine "2 cores of ..." --commit ID

`runs/demo` is the folder of the run. Its weights go to `proxylessnas/data/`, its recipe and its table of
epochs to `benchmarks/training/`, and everything that can be measured to `weights_manifest.json`: the accuracy
on the test images is that of the very file that is shipped. With `--goes-on` the run fine-tuned the weights
that are in the package now, or these before they were rounded to half precision; their record is kept.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from proxylessnas import create_model, profile, save_weights  # noqa: E402
from proxylessnas.arch.published import PUBLISHED  # noqa: E402
from proxylessnas.data.categories import categories  # noqa: E402
from proxylessnas.data.folders import labelled_images  # noqa: E402
from proxylessnas.train.evaluate import evaluate  # noqa: E402
from proxylessnas.utils.files import write_atomically  # noqa: E402
from proxylessnas.utils.paths import ASSETS  # noqa: E402
from proxylessnas.weights.registry import read_manifest  # noqa: E402

MANIFEST = ROOT / "weights_manifest.json"
MOST_BYTES = 2_000_000


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    document = json.loads(MANIFEST.read_text(encoding="utf-8"))
    entry = document["weights"][args.name]
    path = ASSETS / entry["filename"]
    sizes = write_half(args.run / "model.safetensors", path, args.name, entry)
    entry.update(sizes)
    print(f"{path.relative_to(ROOT)}: {entry['size']:,} bytes, {entry['params']:,} parameters")
    entry["metrics"] = measure(path, args.test, args.data)
    before = keep_record(entry["training"], args.name) if args.goes_on else None
    more = {"teachers": [teacher_record(path) for path in args.teacher], "before": before}
    entry["training"] = {**record(args), **{key: value for key, value in more.items() if value}}
    text = json.dumps(document, indent=2, ensure_ascii=False)
    # Lists of numbers on one line, as they are written by hand.
    text = re.sub(r"\[\s+([-+.\deE,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    write_atomically(MANIFEST, (text + "\n").encode())
    read_manifest(MANIFEST)[args.name].verify()
    print(
        f"top-1 {entry['metrics']['top1']} %, top-5 {entry['metrics']['top5']} %; the manifest is up to date"
    )
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Put a trained model into the package.")
    parser.add_argument("run", type=Path, help="the folder of the training run")
    parser.add_argument("--name", default="proxyless_cifar10_demo", help="entry of the manifest")
    parser.add_argument("--test", type=Path, required=True, help="folder of test images, a folder a class")
    parser.add_argument("--command", required=True, help="the exact command of the run")
    parser.add_argument("--data", required=True, help="what it was trained on, in words")
    parser.add_argument(
        "--data-file", type=Path, required=True, help="the data's archive, to take its digest"
    )
    parser.add_argument("--machine", required=True, help="what the run took place on")
    parser.add_argument("--commit", required=True, help="git's id of the source that was run")
    parser.add_argument(
        "--goes-on", action="store_true",
        help="the run began with the weights that are in the package: keep their record as the one before",
    )  # fmt: skip
    parser.add_argument(
        "--teacher", type=Path, metavar="JSON", action="append", default=[],
        help="record of a model that it learnt from, as plain_teacher.py writes it; may be repeated",
    )  # fmt: skip
    parser.add_argument("--versions", default=versions(), help="default: those of this environment")
    return parser.parse_args(arguments)


def versions() -> str:
    import torchvision

    python = ".".join(map(str, sys.version_info[:3]))
    return f"python {python}, torch {torch.__version__}, torchvision {torchvision.__version__}"


def write_half(source: Path, path: Path, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """Write the model in half precision; return what the manifest says of its size and input."""
    model = create_model(source).eval()
    known = PUBLISHED[name]
    if dataclasses.replace(model.arch, name=name) != known:
        raise SystemExit(f"error: the model of {source} is not that of published.py:\n{model.arch}\n{known}")
    names = categories(entry["dataset"])
    if model.categories not in ((), names):
        raise SystemExit(f"error: the classes of {source} are {model.categories}, wanted {names}")
    if model.preprocessing is None:
        raise SystemExit(f"error: {source} does not say how its images are prepared")
    model.half()
    if not all(bool(t.isfinite().all()) for t in model.state_dict().values()):
        raise SystemExit("error: a value is too large for half precision")
    save_weights(model, path, {"license": entry["license"]}, categories=names)
    data = path.read_bytes()
    if len(data) > MOST_BYTES:
        raise SystemExit(f"error: {len(data):,} bytes; at most {MOST_BYTES:,} are shipped in the package")
    side = model.preprocessing.input_size
    counted = profile(create_model(path).eval(), (3, side, side))
    preprocessing = model.preprocessing.to_dict()
    return {
        **{key: preprocessing[key] for key in ("input_size", "resize", "mean", "std", "interpolation")},
        "params": counted.params,
        "macs": counted.macs,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def measure(path: Path, test: Path, data: str) -> dict[str, Any]:
    """Return the accuracy of a file on a folder of images, as the manifest says it."""
    model = create_model(path)
    images = labelled_images(test, model.num_classes, names=model.categories)
    found = evaluate(model, images.samples, model.preprocessing.build(), batch_size=100)
    if found.unreadable:
        raise SystemExit("error: unreadable test images: " + "; ".join(found.unreadable[:5]))
    return {
        "top1": round(found.top1, 2),
        "top5": round(found.top5, 2),
        "status": "measured",
        "source": f"measured with the file in the package on {found.n:,} test images of {data}",
    }


def keep_record(training: dict[str, Any], name: str) -> dict[str, Any]:
    """Give the files of the record in the manifest other names, and return it with those."""
    kept, stage, earlier = {**training}, 1, training
    while "before" in earlier:
        stage, earlier = stage + 1, earlier["before"]
    for key in ("recipe", "log"):
        old = ROOT / training[key]
        new = old.with_name(f"{name}_stage{stage}{old.suffix}")
        shutil.copyfile(old, new)
        kept[key] = new.relative_to(ROOT).as_posix()
    return kept


def teacher_record(path: Path) -> dict[str, Any]:
    """Return what the manifest says of a teacher."""
    made = json.loads(path.read_text(encoding="utf-8"))
    return {
        **{key: made[key] for key in ("net", "command", "params", "seed", "minutes")},
        "top1": round(made["test_top1"], 2),
    }


def record(args: argparse.Namespace) -> dict[str, Any]:
    """Return how the weights were made, and keep the recipe and the table of epochs."""
    kept = ROOT / "benchmarks" / "training"
    kept.mkdir(exist_ok=True)
    recipe, table = kept / f"{args.name}.toml", kept / f"{args.name}.csv"
    shutil.copyfile(args.run / "recipe.toml", recipe)
    shutil.copyfile(args.run / "epochs.csv", table)
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    seed = re.search(r"^seed\s*=\s*(\d+)", recipe.read_text(encoding="utf-8"), re.MULTILINE)
    result = json.loads((args.run / "result.json").read_text(encoding="utf-8"))
    last = (args.run / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    print(f"{len(rows)} epochs in {table.relative_to(ROOT)}")
    return {
        "command": args.command,
        "recipe": recipe.relative_to(ROOT).as_posix(),
        "seed": int(seed[1]) if seed else 0,
        "data": args.data,
        "data_sha256": hashlib.sha256(args.data_file.read_bytes()).hexdigest(),
        "log": table.relative_to(ROOT).as_posix(),
        "date": json.loads(last)["time"][:10],
        "minutes": round(result["seconds"] / 60, 1),
        "machine": args.machine,
        "versions": args.versions,
        "commit": args.commit,
    }


if __name__ == "__main__":
    raise SystemExit(main())
