"""``proxylessnas info``: everything known about a model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..errors import WeightsCorruptError, WeightsNotFoundError
from ._arguments import add_imports, add_json
from ._command import Command
from ._model import named, sha256_of
from ._options import add
from ._output import bold, megabytes, pairs, print_json, printable

if TYPE_CHECKING:
    from ..arch.arch import Arch
    from ..arch.tree import TreeArch
    from ..models.resolve import Resolved
    from ..weights.record import Weights


_OF_WEIGHTS = "params macs input_size dataset license size sha256 git_blob bundled".split()


class Info(Command):
    """Show a model's architecture, size, preprocessing and weights.

    Show everything known about a model of the zoo, or about a file: weights (.safetensors with their
    architecture, or a published .pth) or an architecture (.json, .config: the original net.config; .txt: the
    text that this command prints).
    """

    name = "info"
    order = 20
    example = """\
  $ proxylessnas info proxyless_cpu
  proxyless_cpu
    parameters     4,361,648
    multiply-adds  439,243,864 at 224 x 224 px
    classes        1000 (imagenet)
    ...
"""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        add(parser, "model NAME|FILE", "a model's name, or a file of weights or architecture")
        add_imports(parser)
        add_json(parser)

    def run(self, args: argparse.Namespace) -> int:
        facts = _facts(named(args.model))
        if args.json:
            print_json(facts)
        else:
            _show(facts)
        return 0


def _of_zoo(weights: Weights) -> dict[str, Any]:
    from ..arch.published import PUBLISHED

    return {
        "name": weights.name,
        **_of_arch(PUBLISHED[weights.arch]),
        **{key: getattr(weights, key) for key in _OF_WEIGHTS},
        "preprocessing": weights.preprocessing.to_dict(),
        "metrics": dict(weights.metrics),
        "cache": _cache_state(weights),
        "sources": list(weights.sources),
        **({"training": dict(weights.training)} if weights.training else {}),
    }


def _cache_state(weights: Weights) -> dict[str, str]:
    from ..weights.cache import weights_path

    try:
        return {"state": "sound", "path": str(weights.verify())}
    except WeightsNotFoundError:
        return {"state": "absent", "path": str(weights_path(weights))}
    except WeightsCorruptError as e:
        return {"state": "damaged", "path": str(weights_path(weights)), "problem": str(e)}


def _facts(found: Resolved) -> dict[str, Any]:
    path = found.path
    if found.weights is not None:
        return {**_of_zoo(found.weights), **({"file": str(path)} if path is not None else {})}
    assert path is not None

    import torch

    from ..models.factory import create_model
    from ..models.loading import read_header
    from ..models.profile import profile

    with torch.device("meta"):  # sizes only: an architecture file may ask for any amount of memory
        model = create_model(found.arch)
    stored = read_header(path).preprocessing
    model.preprocessing = stored or model.preprocessing
    counted = profile(model)
    facts = {
        "name": found.name,
        **_of_arch(found.arch),
        "params": counted.params,
        "macs": counted.macs,
        "input_size": model.input_size[1],
        "file": str(path),
    }
    if found.kind == "weights file":
        facts["preprocessing"] = stored.to_dict() if stored else None
        facts["sha256"] = sha256_of(path)
    return facts


def _of_arch(arch: Arch | TreeArch) -> dict[str, Any]:
    stages: list[dict[str, Any]]
    if hasattr(arch, "stages"):
        stages = [{"width": s.width, "stride": s.stride, "ops": s.ops} for s in arch.stages]
    else:
        each = len(arch.words) // arch.num_stages
        stages = [{"cells": " ".join(arch.words[i : i + each])} for i in range(0, len(arch.words), each)]
    return {"num_classes": arch.num_classes, "stages": stages, "arch": str(arch)}


def _show(facts: dict[str, Any]) -> None:
    from ..data.transforms import Preprocessing

    rows = [("file", facts["file"])] if "file" in facts else []
    side = facts["input_size"]
    rows.append(("parameters", f"{facts['params']:,}"))
    rows.append(("multiply-adds", f"{facts['macs']:,} at {side} x {side} px"))
    dataset = f" ({facts['dataset']})" if "dataset" in facts else ""
    rows.append(("classes", f"{facts['num_classes']}{dataset}"))
    if facts.get("preprocessing"):
        p = Preprocessing.from_dict(facts["preprocessing"])
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in (p.mean, p.std))
        rows.append(("input", f"resize {p.resize} ({p.interpolation}), crop {p.input_size} px"))
        rows.append(("normalised by", f"mean {mean}\nstd  {std}"))
    if "metrics" in facts:
        rows += _metrics(facts["metrics"])
    if facts.get("license"):
        rows.append(("licence", facts["license"]))
    for label, key in (("sha256", "sha256"), ("git blob", "git_blob")):
        if facts.get(key):
            rows.append((label, facts[key]))
    if "cache" in facts:
        state = {"sound": "there, checked", "absent": "not there", "damaged": "DAMAGED"}[
            facts["cache"]["state"]
        ]
        size = f" ({megabytes(facts['size'])})" if facts.get("size") else ""
        place = "in the package" if facts.get("bundled") else "in the cache"
        rows.append((place, f"{state}{size}\n{facts['cache']['path']}"))
    if facts.get("sources"):
        rows.append(("sources", "\n".join(facts["sources"])))
    if facts.get("training"):
        rows.append(("trained", _training(facts["training"])))
    print(bold(facts["name"]))
    print(printable(pairs(rows, "  ")))
    print(f"\n{printable(facts['arch'])}")
    if "ops" in facts["stages"][0]:
        print("\nStage(width, stride of its first block, blocks);", end=" ")
        print(*[f"{example};" for example in _examples(facts["stages"])], sep="\n")
        print("-: a skipped block; !: a block without its shortcut")


def _examples(stages: list[dict[str, Any]]) -> list[str]:
    """Return an example of each kind of operation that a model has, but for registered ones."""
    from ..arch.ops import SPECS, parse_token
    from ..arch.ops.spec import OpSpec

    used = [parse_token(token)[0] for stage in stages for token in stage["ops"].split()]
    shown = {op.family: op for op in used if isinstance(op, OpSpec)}
    shown |= {op.family: op for spec in SPECS if (op := spec.parse(spec.example)) and op.family in shown}
    return [f"{op.name}: {op.about}" for op in shown.values()]


def _training(record: dict[str, Any]) -> str:
    lines = [record["command"], f"on {record['data']}, seed {record['seed']}"]
    lines.append(
        f"{record['date']}, {record['minutes']:g} minutes, {record['machine']}, {record['versions']}"
    )
    files = f"recipe: {record['recipe']}, log: {record['log']}"
    lines.append(f"{files} (in the repository; run at commit {record['commit'][:10]})")
    lines.append(f"data: sha256 {record['data_sha256']}")
    step: dict[str, Any] | None = record
    while step:
        before = step.get("before")
        for teacher in step.get("teachers", ()):
            about = f"top-1 {teacher['top1']:g} %, {teacher['minutes']:g} minutes"
            lines.append(f"teacher: {teacher['net']}, {about}")
            if before is None or teacher["command"] != before["command"]:  # which is shown below
                lines[-1] += ", by"
                lines.append(f"  {teacher['command']}")
        if before:
            made = f"{before['date']}, {before['minutes']:g} minutes, at commit {before['commit'][:10]}"
            lines += [f"from weights of {made}, by", f"  {before['command']}"]
        step = before
    return "\n".join(lines)


def _metrics(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for label, key in (("top-1", "top1"), ("top-5", "top5")):
        if metrics.get(key) is not None:
            rows.append((label, f"{metrics[key]:.1f} % ({metrics['status']})"))
    rows = rows or [("top-1", str(metrics.get("status")))]
    if metrics.get("images"):
        rows.append(("", f"of {metrics['images']}"))
    for m in metrics.get("measured", ()):
        figures = f"top-1 {m['top1']:.1f} %, top-5 {m['top5']:.1f} %"
        rows.append(("measured here", f"{figures}\nof {m['n']:,} {m['images']} ({m['date']})"))
    return rows


COMMAND = Info()
