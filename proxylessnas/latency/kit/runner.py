"""Measure the models of this folder on this device and write results.json.

    python run.py

Needs Python 3.8 or later, numpy, and the runtime that the kit was written for. Nothing is sent anywhere. It
may be stopped at any time: the same command resumes where it was.
"""

# This file is copied into every kit as run.py, beside machine.py and a runtime_NAME.py for each runtime: no
# imports but these, no syntax or functions newer than Python 3.8.
# ruff: noqa: SIM115, T201, UP006, UP035, UP045
from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import statistics
import sys
import time
from importlib import import_module
from typing import Any, Callable, Dict, List, Optional, Tuple

FORMAT = "proxylessnas latency results"
VERSION = 1
FOLDER = os.path.dirname(os.path.abspath(__file__))
USUAL = "onnxruntime"


class Problem(Exception):
    """Something the user can mend; shown without a traceback."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; return its exit status."""
    options = parse(argv)
    try:
        return measure(options)
    except Problem as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except OSError as e:
        print(f"error: {e.filename or options.output}: {e.strerror or e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command resumes from here", file=sys.stderr)
        return 130


def parse(argv: Optional[List[str]]) -> argparse.Namespace:
    """Read the command line."""
    known = runtimes()
    usual = USUAL if USUAL in known or not known else known[0]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default: 1)")
    parser.add_argument("--runtime", default=usual, help=f"{' or '.join(known)} (default: {usual})")
    parser.add_argument("--provider", default="", help="of ONNX Runtime, such as XnnpackExecutionProvider")
    parser.add_argument("--output", help="file to write (default: results.json, beside this program)")
    parser.add_argument(
        "--device-name", help="as the table should call this device (default: what it says itself)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each file (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of timed runs each (default: 0.2)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs each at least (default: 5)")
    parser.add_argument("--force", action="store_true", help="measure anew although there are results")
    options = parser.parse_args(argv)
    for name, low in (("threads", 1), ("rounds", 1), ("runs", 1), ("seconds", 0)):
        if not low <= getattr(options, name) <= 1000:
            parser.error(f"--{name} must be from {low} to 1000")
    options.output = os.path.abspath(options.output or os.path.join(FOLDER, "results.json"))
    return options


def runtimes() -> List[str]:
    """Return the runtimes that this kit has files for."""
    names = sorted(name for name in os.listdir(FOLDER) if name.startswith("runtime_"))
    return [name[len("runtime_") : -len(".py")] for name in names if name.endswith(".py")]


def beside(name: str) -> Any:
    """Return a module that lies beside this file."""
    sys.path.insert(0, FOLDER)  # Python may have been told to leave it out
    try:
        return import_module(name)
    except ImportError as e:
        raise Problem(f"{name}.py is missing; copy the whole kit again ({e})") from e


def load_runtime(options: argparse.Namespace) -> Any:
    """Return what loads the files, with its ``versions`` and ``provider``."""
    name = options.runtime
    if name not in runtimes():
        raise Problem(f"this kit has no files for this runtime; it was written for {', '.join(runtimes())}")
    try:
        return beside(f"runtime_{name}").Loader(options.threads, options.provider)
    except ImportError as e:
        raise Problem(f"{name} is missing: pip install {name} ({e})") from e
    except ValueError as e:
        raise Problem(str(e)) from e


def read_kit(folder: str, files: str) -> Tuple[Dict[str, Any], str]:
    """Return (manifest, its digest) after checking every file of a runtime.

    A damaged or exchanged file would give a wrong table and no error.
    """
    try:
        with open(os.path.join(folder, "manifest.json"), "rb") as file:
            content = file.read()
        manifest = json.loads(content.decode("utf-8"))
    except (OSError, ValueError) as e:
        raise Problem(f"manifest.json cannot be read: {e}") from e
    if manifest.get("format") != "proxylessnas latency kit" or manifest.get("version") != 1:
        raise Problem("manifest.json is not that of a kit of version 1")
    for item in manifest["items"]:
        record = item["files"][files]
        try:
            with open(os.path.join(folder, record["path"]), "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
        except OSError as e:
            raise Problem(f"{record['path']} cannot be read: {e.strerror}; copy the whole kit again") from e
        if digest != record["sha256"]:
            raise Problem(f"{record['path']} is damaged; copy the kit again")
    return manifest, hashlib.sha256(content).hexdigest()


class Watch:
    """Tells what disturbed a measurement."""

    def __init__(self) -> None:
        self.module, self.load = beside("machine"), None  # type: Any, Any

    def start(self) -> None:
        """Start to watch; go on where the last measurement was too short to tell: for both together then."""
        self.load = self.load or self.module.OtherLoad()

    def stop(self, ms: List[float]) -> Dict[str, Any]:
        """Return others' share of all processors, if the system tells, and reasons to distrust the runs."""
        share = self.load.share()
        if share is not None:
            self.load = None
        return {"other_load": share, "noise": self.module.disturbances(ms, share)}


def timed(run: Callable[[], object], options: argparse.Namespace) -> Tuple[List[float], int]:
    """Time a loaded file after a warm-up; return (milliseconds of each run, warm-up runs)."""
    clock = time.perf_counter
    start, warmup = clock(), 0
    while warmup < 3 or (clock() - start < options.seconds / 2 and warmup < 1000):
        run()
        warmup += 1
    found: List[float] = []
    start = clock()
    while len(found) < options.runs or (clock() - start < options.seconds and len(found) < 200):
        before = clock()
        run()
        found.append(round((clock() - before) * 1000, 6))
    return found, warmup


class Journal:
    """Keeps every measurement in a file from the moment it was made, so that nothing is measured twice."""

    def __init__(self, path: str, head: Dict[str, Any]) -> None:
        self.path, self.head = path, head
        self.measurements: Dict[Tuple[int, str], Dict[str, Any]] = {}
        if os.path.exists(path):
            self._read()
        self.file = open(path, "a", encoding="utf-8")
        if not os.path.getsize(path):
            self._write(head)

    def _read(self) -> None:
        with open(self.path, "r+b") as file:
            *whole, rest = file.read().split(b"\n")
            if rest:  # the last line was being written when the program was stopped
                file.truncate(sum(len(line) + 1 for line in whole))
        try:
            records = [json.loads(line.decode("utf-8")) for line in whole]
            for record in records[1:]:
                record["ms"], record["warmup"], record["other_load"], record["noise"]
                self.measurements[record["round"], record["id"]] = record
        except (ValueError, KeyError, TypeError) as e:
            raise Problem(f"{self.path} is damaged; remove it to start anew") from e
        if records:
            changed = [k for k in self.head if records[0].get(k) != self.head[k] and k != "date"]
            if changed:
                raise Problem(
                    f"{self.path} holds unfinished results of another command ({', '.join(changed)} differ): "
                    "repeat that command, or remove the file to start anew"
                )
            self.head = records[0]

    def _write(self, record: Dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def add(self, record: Dict[str, Any]) -> None:
        """Keep a measurement."""
        self.measurements[record["round"], record["id"]] = record
        self._write(record)


class Reporter:
    """Tells how far it is: one line that changes on a terminal, now and then a new one elsewhere."""

    def __init__(self, done: int, total: int) -> None:
        self.first, self.total, self.start, self.shown = done, total, time.monotonic(), 0.0
        self.terminal = sys.stdout.isatty()

    def show(self, done: int, text: str) -> None:
        """Show the state after a measurement."""
        now = time.monotonic()
        left = (now - self.start) / (done - self.first) * (self.total - done)
        if not self.terminal and done < self.total and now - self.shown < 10:
            return
        self.shown = now
        line = f"{done}/{self.total}  {int(left) // 60}:{int(left) % 60:02d} left  {text}"
        print(f"\r{line[:78]:78}" if self.terminal else line, end="" if self.terminal else "\n", flush=True)


def measure(options: argparse.Namespace) -> int:
    """Measure everything and write the results."""
    if os.path.exists(options.output) and not options.force:
        raise Problem(f"{options.output} is there already; --force measures anew")
    runtime = load_runtime(options)
    manifest, digest = read_kit(FOLDER, runtime.FILES)
    own_name, watch = beside("machine").device_name(), Watch()
    head = {
        "format": FORMAT, "version": VERSION, "unit": "ms", "kit_sha256": digest, "runtime": options.runtime,
        "provider": runtime.provider, "threads": options.threads,
        "batch_size": manifest["batch_size"], "dtype": manifest["dtype"], "own_name": own_name,
        "device_name": options.device_name or own_name,
        "system": platform.platform(), "versions": dict(Python=platform.python_version(), **runtime.versions),
        "rounds": options.rounds, "seconds": options.seconds, "min_runs": options.runs,
        "date": datetime.date.today().isoformat(),
    }  # fmt: skip
    journal = Journal(options.output + ".part", head)
    items = {item["id"]: item for item in manifest["items"]}
    # Rounds in fresh random order: a device that grows warm and slow does so for all files alike.
    plan = []
    for number in range(options.rounds):
        names = sorted(items)
        random.Random(number).shuffle(names)
        plan += [(number, name) for name in names if (number, name) not in journal.measurements]
    reporter = Reporter(len(journal.measurements), options.rounds * len(items))
    if journal.measurements:
        print(f"resumed: {len(journal.measurements)} of {reporter.total} measurements are there")
    for number, name in plan:
        path = items[name]["files"][runtime.FILES]["path"]
        try:
            watch.start()
            run = runtime.load(os.path.join(FOLDER, path), items[name]["input"])
            ms, warmup = timed(run, options)
            noise = watch.stop(ms)
        except (Problem, MemoryError):
            raise
        except Exception as e:
            raise Problem(f"{path} cannot be run: {e}") from e
        del run  # one file in memory at a time
        journal.add({"round": number, "id": name, "ms": ms, "warmup": warmup, **noise})
        reporter.show(len(journal.measurements), f"{statistics.median(ms):.3f} ms  {items[name]['label']}")
    if reporter.terminal:
        print()
    write_results(options.output, journal, items)
    noisy = sum(bool(record["noise"]) for record in journal.measurements.values())
    print(f"wrote {options.output}; {noisy} of {reporter.total} measurements were disturbed, it says by what")
    return 0


def write_results(path: str, journal: Journal, items: Dict[str, Any]) -> None:
    """Write the results file; it is there whole or not at all."""
    rows = []
    for name in sorted(items):
        found = [journal.measurements[key] for key in sorted(journal.measurements) if key[1] == name]
        runs = [ms for one in found for ms in one["ms"]]
        row = {"id": name, "median_ms": statistics.median(runs), "runs": len(runs)}
        row["warmup_runs"] = sum(one["warmup"] for one in found)
        row.update((field, [one[field] for one in found]) for field in ("ms", "other_load", "noise"))
        rows.append(row)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(dict(journal.head, items=rows), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)
    journal.file.close()
    os.remove(journal.path)


if __name__ == "__main__":
    sys.exit(main())
