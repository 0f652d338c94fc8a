"""Measure the models of this folder on this device and write results.json.

    python run.py

Needs Python 3.8 or later, numpy, and onnxruntime (or executorch). Nothing is sent anywhere. It may be stopped
at any time: the same command goes on where it was.
"""

# This file is copied into every kit as run.py, beside machine_load.py and machine_name.py: no imports but
# these, no syntax or functions newer than Python 3.8.
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
from importlib import import_module, metadata
from typing import Any, Callable, Dict, List, Optional, Tuple

FORMAT = "proxylessnas latency results"
VERSION = 1
PROGRAMS = {"onnxruntime": "onnx", "executorch": "executorch"}
CPU = "CPUExecutionProvider"
FOLDER = os.path.dirname(os.path.abspath(__file__))


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
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


def parse(argv: Optional[List[str]]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default: 1)")
    parser.add_argument("--runtime", choices=sorted(PROGRAMS), default="onnxruntime")
    parser.add_argument("--provider", default=CPU, help="of ONNX Runtime, such as XnnpackExecutionProvider")
    parser.add_argument("--output", help="file to write (default: results.json, beside this program)")
    parser.add_argument(
        "--device-name", help="as the table should call this device (default: what it says itself)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="visits to each file (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.2, help="of timed runs a visit (default: 0.2)")
    parser.add_argument("--runs", type=int, default=5, help="timed runs a visit at least (default: 5)")
    parser.add_argument("--force", action="store_true", help="measure anew although there are results")
    options = parser.parse_args(argv)
    for name, low in (("threads", 1), ("rounds", 1), ("runs", 1), ("seconds", 0)):
        if not low <= getattr(options, name) <= 1000:
            parser.error(f"--{name} must be from {low} to 1000")
    options.output = os.path.abspath(options.output or os.path.join(FOLDER, "results.json"))
    return options


def read_kit(folder: str, kind: str) -> Tuple[Dict[str, Any], str]:
    """Return (manifest, its digest) after checking every file.

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
    if kind not in manifest["programs"]:
        raise Problem(
            f"this kit has no files for this runtime; it was written for {', '.join(manifest['programs'])}"
        )
    for item in manifest["items"]:
        record = item["files"][kind]
        try:
            with open(os.path.join(folder, record["path"]), "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
        except OSError as e:
            raise Problem(f"{record['path']} cannot be read: {e.strerror}; copy the whole kit again") from e
        if digest != record["sha256"]:
            raise Problem(f"{record['path']} is damaged; copy the kit again")
    return manifest, hashlib.sha256(content).hexdigest()


class OnnxRuntime:
    """Loads ONNX files."""

    def __init__(self, options: argparse.Namespace) -> None:
        try:
            onnxruntime = import_module("onnxruntime")
        except ImportError as e:
            raise Problem(f"onnxruntime is missing: pip install onnxruntime ({e})") from e
        self.numpy = import_module("numpy")  # comes with it
        self.backend, self.threads, self.provider = onnxruntime, options.threads, options.provider
        known = onnxruntime.get_available_providers()
        if self.provider not in known:
            raise Problem(f"this onnxruntime has no provider {self.provider!r}; it has {', '.join(known)}")
        self.versions = {"onnxruntime": onnxruntime.__version__}

    def load(self, path: str, shape: List[int]) -> Callable[[], None]:
        """Return a function that runs the file once."""
        settings = self.backend.SessionOptions()
        settings.intra_op_num_threads = self.threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        wanted = [self.provider] + ([CPU] if self.provider != CPU else [])
        session = self.backend.InferenceSession(path, settings, providers=wanted)
        if session.get_providers()[0] != self.provider:
            raise Problem(f"{self.provider} could not be started")
        values = self.numpy.random.RandomState(0).standard_normal(shape).astype("float32")
        binding = session.io_binding()
        binding.bind_cpu_input(session.get_inputs()[0].name, values)
        for output in session.get_outputs():
            binding.bind_output(output.name)

        def run() -> None:
            session.run_with_iobinding(binding)

        return run


class ExecuTorch:
    """Loads ExecuTorch programs."""

    def __init__(self, options: argparse.Namespace) -> None:
        try:
            torch = import_module("torch")
            portable_lib = import_module("executorch.extension.pybindings.portable_lib")
        except ImportError as e:
            raise Problem(f"executorch is missing: pip install executorch ({e})") from e
        self.torch, self.backend = torch, portable_lib
        portable_lib._unsafe_reset_threadpool(options.threads)
        if portable_lib._threadpool_get_thread_count() != options.threads:
            raise Problem(f"ExecuTorch cannot use {options.threads} threads here")
        try:
            self.versions = {"executorch": metadata.version("executorch")}
        except metadata.PackageNotFoundError:
            self.versions = {"executorch": "unknown"}

    def load(self, path: str, shape: List[int]) -> Callable[[], None]:
        """Return a function that runs the file once."""
        module = self.backend._load_for_executorch(path)
        values = (self.torch.randn(*shape),)

        def run() -> None:
            module.forward(values, clone_outputs=False)

        return run


def beside(name: str) -> Any:
    """Return a module that lies beside this file."""
    sys.path.insert(0, FOLDER)  # Python may have been told to leave it out
    try:
        return import_module(name)
    except ImportError as e:
        raise Problem(f"{name}.py is missing; copy the whole kit again ({e})") from e


class Watch:
    """Tells what disturbed a visit."""

    def __init__(self) -> None:
        self.module, self.load = beside("machine_load"), None  # type: Any, Any

    def start(self) -> None:
        """Start to watch, unless the visit before was too short to tell: both are watched together then."""
        self.load = self.load or self.module.OtherLoad()

    def stop(self, ms: List[float]) -> Dict[str, Any]:
        """Return others' share of all processors, if the system tells, and reasons to distrust the runs."""
        share = self.load.share()
        if share is not None:
            self.load = None
        low, middle, high = statistics.quantiles(ms, n=4, method="inclusive") if len(ms) > 1 else ms * 3
        return {"other_load": share, "noise": self.module.disturbances((high - low) / middle, share)}


def measurement(run: Callable[[], None], options: argparse.Namespace) -> Tuple[List[float], int]:
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
    """Keeps every visit in a file from the moment it was made, so that nothing is measured twice."""

    def __init__(self, path: str, head: Dict[str, Any]) -> None:
        self.path, self.head = path, head
        self.measurements: Dict[Tuple[int, str], Dict[str, Any]] = {}
        if os.path.exists(path):
            self._read()
        self.file = open(path, "a", encoding="utf-8")
        if not self.measurements and not os.path.getsize(path):
            self._write(head)

    def _read(self) -> None:
        with open(self.path, "rb") as file:
            lines = file.read().split(b"\n")
        whole, rest = lines[:-1], lines[-1]
        if rest:  # the last line was being written when the program was stopped
            with open(self.path, "r+b") as file:
                file.truncate(sum(len(line) + 1 for line in whole))
        try:
            records = [json.loads(line.decode("utf-8")) for line in whole]
            for record in records[1:]:
                record["ms"], record["warmup"], record["other_load"], record["noise"]
                self.measurements[record["round"], record["id"]] = record
        except (ValueError, KeyError, TypeError) as e:
            raise Problem(f"{self.path} is damaged; remove it to start anew") from e
        if records and records[0] != self.head:
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
        """Keep a visit."""
        self.measurements[record["round"], record["id"]] = record
        self._write(record)


class Reporter:
    """Tells how far it is: one line that changes on a terminal, now and then a new one elsewhere."""

    def __init__(self, done: int, total: int) -> None:
        self.first, self.total, self.start, self.shown = done, total, time.monotonic(), 0.0
        self.terminal = sys.stdout.isatty()

    def show(self, done: int, text: str) -> None:
        """Show the state after a visit."""
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
    kind = PROGRAMS[options.runtime]
    manifest, digest = read_kit(FOLDER, kind)
    loaders: Any = {"onnx": OnnxRuntime, "executorch": ExecuTorch}
    runtime = loaders[kind](options)
    own_name, watch = beside("machine_name").device_name(), Watch()
    head = {
        "format": FORMAT, "version": VERSION, "unit": "ms", "kit_sha256": digest, "runtime": options.runtime,
        "provider": options.provider if kind == "onnx" else "", "threads": options.threads,
        "batch_size": manifest["batch_size"], "dtype": "float32", "own_name": own_name,
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
        print(f"going on: {len(journal.measurements)} of {reporter.total} visits are there")
    for number, name in plan:
        item = items[name]
        try:
            watch.start()
            run = runtime.load(os.path.join(FOLDER, item["files"][kind]["path"]), item["input"])
            ms, warmup = measurement(run, options)
            noise = watch.stop(ms)
        except (Problem, MemoryError):
            raise
        except Exception as e:
            raise Problem(f"{item['files'][kind]['path']} cannot be run: {e}") from e
        del run  # one file in memory at a time
        journal.add({"round": number, "id": name, "ms": ms, "warmup": warmup, **noise})
        reporter.show(len(journal.measurements), f"{sorted(ms)[len(ms) // 2]:.3f} ms  {item['label']}")
    if reporter.terminal:
        print()
    write_results(options.output, journal, items)
    noisy = sum(bool(record["noise"]) for record in journal.measurements.values())
    print(f"wrote {options.output}; {noisy} of {reporter.total} visits were disturbed, it says by what")
    return 0


def write_results(path: str, journal: Journal, items: Dict[str, Any]) -> None:
    """Write the results file; it is there whole or not at all."""
    measured = []
    for name in sorted(items):
        measurements = [journal.measurements[key] for key in sorted(journal.measurements) if key[1] == name]
        runs = [value for measurement in measurements for value in measurement["ms"]]
        row = {"id": name, "median_ms": statistics.median(runs), "runs": len(runs)}
        row["warmup_runs"] = sum(measurement["warmup"] for measurement in measurements)
        row.update(
            (field, [measurement[field] for measurement in measurements])
            for field in ("ms", "other_load", "noise")
        )
        measured.append(row)
    with open(path + ".tmp", "w", encoding="utf-8") as file:
        json.dump(dict(journal.head, items=measured), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)
    journal.file.close()
    os.remove(journal.path)


if __name__ == "__main__":
    sys.exit(main())
