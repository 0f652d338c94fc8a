"""Writes a kit: a folder with which a device without PyTorch measures a search space (``python run.py``)."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...arch.op_key import space_keys
from ...arch.space import SearchSpace
from ...errors import LatencyError, shown
from ...runtimes.base import ModelSpec
from ...utils.files import sync_folder
from ..random_models import random_models
from ..validate import check_count
from .results import KIT_FORMAT, KIT_VERSION, kit_runtimes

_FOLDERS = {"op": "blocks", "arch": "nets"}

_README = """\
Latency kit: {blocks} operations and {models} whole models of the search space "{space}", batch {batch}.

1. Copy this folder to the device to be measured. It needs Python 3.8 or later, numpy, and {runtimes}.
2. Close other programs, plug in the charger, and run

       python run.py --threads 1

   `python run.py --help` shows what else can be set: runtime, threads, provider, how long. It takes some
   minutes, prints the time left, and sends nothing anywhere. Stopped, the same command resumes from there.
3. Copy results.json back and make a table of it where proxylessnas is installed:

       proxylessnas latency import results.json --kit FOLDER -o table.json

Files: manifest.json says what each model is and its SHA-256, which run.py checks. The weights are random
numbers, in the ONNX files a short pattern that the runtime repeats when it loads them: good for measuring,
not for use.
"""


def _check_formats(formats: tuple[str, ...], dtype: str) -> None:
    """Refuse formats that no kit has, or has not in a dtype."""
    known = kit_runtimes()
    if not formats or len({*formats}) != len(formats) or not set(formats) <= known.keys():
        raise LatencyError(f"formats are {' and '.join(known)}, not {shown(formats)}")
    for name in formats:
        if dtype not in known[name].dtypes["cpu"]:
            can = " and ".join(known[name].dtypes["cpu"])
            raise LatencyError(f"a kit's {name} files are of {can}, not {shown(dtype)}")


def write_kit(
    space: SearchSpace,
    folder: str | os.PathLike[str],
    *,
    formats: tuple[str, ...] = ("onnx",),
    nets: int = 48,
    batch_size: int = 1,
    seed: int = 0,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a folder with which another device can measure a search space.

    It holds a file an operation (``blocks/``), whole random models to fit a table on and to evaluate it with
    (``nets/``), ``manifest.json``, a ``run.py`` that needs no PyTorch with its modules, and a ``README.txt``.
    ONNX files are small, a few megabytes in all. ExecuTorch programs hold all weights and take up to ten
    seconds each.

    Args:
        space: the search space.
        folder: is made; the folder above it must be there.
        formats: "onnx", "executorch" or both.
        nets: whole models; fewer, if the space has fewer.
        batch_size: images a call.
        seed: of the random models.
        dtype: "float32", or for ONNX files "int8".
        progress: called with (files written, files in all).

    Returns:
        The folder.

    Raises:
        LatencyError: the folder is there already or cannot be written, a value is wrong, or a registered
            operation cannot be exported.
        MissingExtraError: onnx, or executorch for that format, is not installed.
    """
    check_count("nets", nets, 0, 10_000)
    check_count("batch_size", batch_size, 1, 65_536)
    _check_formats(formats, dtype)
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LatencyError(f"{target} is there already; name a new folder")
    # Beside its place until it is whole: half a kit would be measured for nothing.
    unfinished = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        unfinished.mkdir()
        head = {"batch_size": batch_size, "dtype": dtype}
        _fill(unfinished, space, formats, list(_contents(space, nets, seed)), head, progress)
        if target.exists():
            target.rmdir()
        os.replace(unfinished, target)
        sync_folder(target.parent)
    except OSError as e:
        raise LatencyError(f"{target} cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


@dataclasses.dataclass(frozen=True)
class _Item:
    """A thing to be measured: its record in the manifest, and what it is."""

    record: dict[str, Any]
    spec: ModelSpec
    number: int


def _contents(space: SearchSpace, nets: int, seed: int) -> Iterator[_Item]:
    for i, key in enumerate(space_keys(space)):
        spec = ModelSpec("op", str(key), (key.in_channels, key.size, key.size))
        yield _Item({"id": f"block-{i:03d}", "label": str(key), "key": str(key)}, spec, i)
    size = (space.in_channels, space.resolution, space.resolution)
    for i, choices in enumerate(random_models(space, nets, seed=seed) if nets else ()):
        spec = ModelSpec("arch", str(space.arch(choices)), size)
        yield _Item({"id": f"net-{i:03d}", "label": f"model {i}", "picks": list(choices)}, spec, i)


def _fill(
    folder: Path,
    space: SearchSpace,
    formats: tuple[str, ...],
    items: list[_Item],
    head: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:
    for name in _FOLDERS.values():
        (folder / name).mkdir()
    runtimes = {name: kit_runtimes()[name] for name in formats}
    for done, item in enumerate(items):
        files = item.record["files"] = {}
        for name, runtime in runtimes.items():
            content = runtime.kit_file(item.spec, **head)
            path = f"{_FOLDERS[item.spec.kind]}/{item.number:03d}{runtime.suffixes[0]}"
            (folder / path).write_bytes(content)
            files[name] = {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        item.record["input"] = [head["batch_size"], *item.spec.input_size]
        if progress is not None:
            progress(done + 1, len(items))
    manifest = {
        "format": KIT_FORMAT,
        "version": KIT_VERSION,
        "date": datetime.date.today().isoformat(),
        "made_by": f"proxylessnas {__version__}",
        "space": space.to_dict(),
        **head,
        "programs": list(formats),
        "items": [item.record for item in items],
    }
    readme = _README.format(
        blocks=sum(item.spec.kind == "op" for item in items),
        models=sum(item.spec.kind == "arch" for item in items),
        space=space.name,
        batch=head["batch_size"],
        runtimes=" or ".join(runtime.kit_loader.NEEDS for runtime in runtimes.values() if runtime.kit_loader),
    )
    texts = {"manifest.json": json.dumps(manifest, indent=1) + "\n", "README.txt": readme}
    for name, text in {**texts, **programs(formats)}.items():
        (folder / name).write_text(text, encoding="utf-8")


def programs(formats: tuple[str, ...]) -> dict[str, str]:
    """Return the Python files of a kit by name: what runs, what it needs of this package, and the loaders."""
    package = resources.files(__name__.partition(".")[0])
    parts = {"run.py": "latency/kit/runner.py", "machine.py": "runtimes/machine.py"}
    found = {name: package.joinpath(source).read_text(encoding="utf-8") for name, source in parts.items()}
    loaders = [kit_runtimes()[name] for name in formats]
    return {**found, **{f"runtime_{runtime.name}.py": runtime.kit_module() for runtime in loaders}}
