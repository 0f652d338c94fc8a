"""What the tests of images and reports share: runs as their files are, without searching or training."""

from __future__ import annotations

import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from latency_table_tools import little

from proxylessnas import Arch, create_model, save_weights
from proxylessnas.arch.space import SearchSpace
from proxylessnas.arch.spaces import read_space
from proxylessnas.utils.text import csv_text

TINY = read_space("tiny")
#: Elements of HTML that have no end.
VOID = {"meta", "link", "input", "br", "img", "hr"}


def lines_of(
    space: SearchSpace = TINY, steps: int = 30, done: bool = True, **begin: Any
) -> list[dict[str, Any]]:
    """Return the lines of a search's log: an arch step at a time, the first candidates getting probable."""
    found: list[dict[str, Any]] = [
        {
            "time": "2026-01-02T03:04:05.000+00:00", "event": "begin", "step": 0, "epoch": 0,
            "space": space.to_dict(), "columns": list(space.candidate_ops), "algorithm": "gradient",
            "targets": {"latency": 0.8}, "units": {"latency": "ms"}, "range": {"latency": [0.5, 1.1]},
            "table": None, "data": "digits", "pictures": {"weights": 1347, "arch": 450},
            "versions": {"proxylessnas": "0.1.0", "torch": "2.15.0"}, "seed": 0, **begin,
        }
    ]  # fmt: skip
    choices = [0] * len(space.search_blocks)
    for i in range(1, steps + 1):
        figures = {"step": 10 * i, "epoch": 1 + i // 10, "expected": 0.7 + 0.4 / i, "entropy": 1.5 - 0.03 * i}
        figures |= {"skip_share": 0.2, "gradient_norm": 0.01 * i}
        found.append({"event": "arch", "arch_step": i, "loss": 1 / i, **figures, "probs": probs_of(space, i)})
        if i % 10 == 0:
            end = {"picks": choices, "top1": 60.0 + i, "costs": {"latency": 0.75}}
            found.append({"event": "epoch", **figures, "probs": probs_of(space, i), **end})
    if done:
        result = {"arch": str(space.arch(choices, "found")), "picks": choices, "model": "child.safetensors"}
        result |= {
            "top1_held_out": 91.5,
            "costs": {"latency": 0.75, "macs": 1.4, "params": 0.03},
            "seconds": 61.0,
        }
        result |= {"predicted_ms": 0.75, "measured_ms": 0.78, "measured_p10_ms": 0.79, "measured_p90_ms": 0.9}
        result |= {"limits": {"latency": 0.8}, "measured_raw_ms": 0.78, "measured_median_ms": 0.819}
        result |= {"measured_reference_ratio": 1.01, "measured_too_slow": [[0.78, 0.84]]}
        found.append({"event": "done", "step": 10**9, "epoch": 4, **result, "measured_noise": []})
    return found


def probs_of(space: SearchSpace, step: int) -> list[list[float]]:
    """Return probabilities, [blocks][candidates]."""
    rows = []
    for position in space.search_blocks:
        logits = [math.exp(0.1 * step) if k == 0 else 1.0 for k in range(len(position.candidate_ops))]
        row = [round(v / sum(logits), 4) for v in logits]
        rows.append(row + [0.0] * (len(space.candidate_ops) - len(row)))
    return rows


def write_lines(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def search_folder(folder: Path, *, table: bool = True, **changes: Any) -> Path:
    """Return the folder of a search: its log, its space, its table and its model."""
    lines = lines_of(**{"table": "0" * 64 if table else None, **changes})
    write_lines(folder, lines)
    (folder / "space.toml").write_text(TINY.to_toml())
    (folder / "search.toml").write_text('algorithm = "gradient"\ntarget_ms = 0.8\n')
    (folder / "source.json").write_text('{"data": "digits", "limit": null}\n')
    if table:
        little(space=TINY).save(folder / "table.json")
    if lines[-1]["event"] == "done":
        save_weights(create_model(Arch.parse(lines[-1]["arch"])), folder / "child.safetensors")
    return folder


def train_folder(folder: Path, epochs: int = 5, done: bool = True) -> Path:
    """Return the folder of a training run."""
    folder.mkdir(parents=True, exist_ok=True)
    model = create_model("proxyless_cifar10_demo")
    begin = {"net": model.arch.name, "arch": str(model.arch), "given_weights": False, "data": "digits"}
    begin |= {"pictures": {"training": 900, "validation": 100}, "versions": {"torch": "2.15.0"}}
    rows = [
        {"epoch": i, "step": 9 * i, "train_loss": 2 / i, "val_loss": 2.1 / i, "val_top1": 90 - 60 / i,
         "rate": 0.1 / i, "images_per_second": 300.0, "waiting": 0.01, "seconds": 3.0, "memory_mib": 800.0}
        for i in range(1, epochs + 1)
    ]  # fmt: skip
    lines = [{"event": "begin", "step": 0, **begin}, {"event": "note", "step": 0, "text": "<b>a note</b>"}]
    lines += [{"event": "epoch", **row} for row in rows]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (folder / "epochs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "recipe.toml").write_text(
        'epochs = 5\noptimizer = "sgd"  # sgd | adamw | muon\nlearning_rate = 0.2\n'
    )
    if done:
        result = {"finished": True, "model": "model.safetensors", "top1": 78.0, "steps": 45, "seconds": 15.0}
        (folder / "result.json").write_text(json.dumps(result))
        save_weights(
            model, folder / "model.safetensors", metadata={"data": "digits (900 training images, 0)"}
        )
    return folder


BENCH = {
    "peer": "False", "runtime": "torch", "device": "cpu", "threads": "1", "batch": "1",
    "top1_status": "published", "top1_dataset": "imagenet", "device_name": "a machine",
    "versions": "Python 3.11, torch 2.15", "date": "2026-01-02",
}  # fmt: skip


def bench_file(path: Path, models: dict[str, tuple[float, float | str]], **changes: str) -> Path:
    """Write what ``bench --csv`` writes: name to (milliseconds, top-1 or "")."""
    rows = []
    for name, (ms, top1) in models.items():
        times = {"median_ms": ms, "p10_ms": 0.95 * ms, "p90_ms": 1.1 * ms}
        rows.append({**BENCH, **changes, "net": name, **times, "top1": top1, "params": 1, "noise": ""})
    path.write_text(
        csv_text(list(rows[0]), [list(row.values()) for row in rows]), encoding="utf-8", newline=""
    )
    return path


class Page(HTMLParser):
    """An HTML page that is checked while it is read: elements end in order, names are not given twice."""

    def __init__(self, file: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.source = file.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids)), sorted(i for i in self.ids if self.ids.count(i) > 1)[:5]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if given.get("id"):
            self.ids.append(str(given["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a beginning"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def headings(self) -> list[str]:
        return [
            self.source.split(f'id="{i}">')[1].split("<")[0]
            for i in self.ids
            if f'<h2 id="{i}">' in self.source
        ]
