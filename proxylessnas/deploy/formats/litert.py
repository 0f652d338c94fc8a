"""``.tflite``: LiteRT, formerly TensorFlow Lite, for phones.

Its converter wants an older torch than this package's users have, so it runs in a Python of its own, whose
path is in ``PROXYLESSNAS_LITERT_PYTHON``. The file that comes out needs the small runtime alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import ExportError, LatencyError, MissingExtraError, first_line
from ...models.loading import save_weights
from ...runtimes.litert import RUNTIME, interpreter, resize
from ...utils.subprocesses import find_program
from ..bundle import ModelBundle
from ..settings import ExportOptions
from .base import Format, Program, guarded

#: Names the Python that has litert-torch.
VARIABLE = "PROXYLESSNAS_LITERT_PYTHON"
METADATA, LABELS = "metadata.json", "labels.txt"
_MARK = "PROBLEM: "  # before the line in which litert_convert.py, which runs elsewhere, says what failed
_LONGEST_S = 1800.0
_ADVICE = f"""make it once (2 GB with torch for CPUs) and name it:
  python -m venv litert
  litert/bin/pip install torch==2.13.0
  litert/bin/pip install litert-torch==0.10.0
  export {VARIABLE}="$PWD/litert/bin/python\""""


class LiteRTFormat(Format):
    """LiteRT.

    The file's input is [N, H, W, C], as phones' libraries have images; a program of :meth:`open` takes
    [N, C, H, W] like all others. Behind the model the file is a zip archive with the texts of
    :meth:`~proxylessnas.deploy.bundle.ModelBundle.metadata` as ``metadata.json`` and, if the classes have
    names, ``labels.txt``, where TensorFlow Lite's tools look for it.
    """

    name = "LiteRT"
    suffix = ".tflite"
    options = ("batch_size",)
    fixed_trees = True

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it is run with; the converter has its own."""
        return RUNTIME.versions()

    def check(self, bundle: ModelBundle, options: ExportOptions) -> None:
        """Refuse at once what cannot work."""
        super().check(bundle, options)
        _refuse_own_operations(bundle)
        converter_python()

    def write(self, bundle: ModelBundle, path: Path, options: ExportOptions) -> list[Path]:
        """Write the file and return it; takes a minute."""
        convert(bundle, path, options)
        append_metadata(path, bundle.metadata(), bundle.categories)
        return [path]

    def open(self, path: Path, *, threads: int | None = None) -> Program:
        """Load a file in LiteRT."""
        try:
            loaded = interpreter(path, threads)
        except LatencyError as e:
            raise ExportError(str(e)) from e

        def run(x: Tensor) -> Tensor:
            x = x.permute(0, 2, 3, 1)
            given, found = resize(loaded, tuple(x.shape))
            loaded.set_tensor(given, x.contiguous().numpy())
            loaded.invoke()
            return torch.from_numpy(loaded.get_tensor(found))  # a copy already

        return guarded(run, path, "LiteRT")


def _refuse_own_operations(bundle: ModelBundle) -> None:
    own = [block.token for block in getattr(bundle.model.arch, "blocks", ()) if block.kind == "custom"]
    if own:
        raise ExportError(
            f"{bundle.name}: has operations of your own ({own[0]}), which LiteRT's converter, in another "
            "Python, does not know: export it as .onnx, .xml, .pte or .pt2"
        )


def convert(bundle: ModelBundle, path: Path, options: ExportOptions, int8: Sequence[object] = ()) -> None:
    """Write a model as a ``.tflite`` file without metadata.

    Args:
        bundle: the model.
        path: the file.
        options: ``batch_size`` counts.
        int8: what ``litert_convert.py`` takes for a file in 8 bits.

    Raises:
        ExportError: the converter fails.
        MissingExtraError: there is none.
    """
    _refuse_own_operations(bundle)
    weights = save_weights(bundle.model, path.with_name(f"{path.stem}-for-litert.safetensors"))
    script = Path(__file__).resolve().parents[1] / "litert_convert.py"
    package = script.parents[1]
    _, height, width = bundle.input_size
    numbers = [height, width, options.batch_size or 0]
    try:
        _run([converter_python(), "-I", script, package, weights, path, *numbers, *int8], bundle.name)
    finally:
        weights.unlink(missing_ok=True)


def converter_python() -> str:
    """Return the Python that has the converter.

    Raises:
        MissingExtraError: none is named, or it is not there; the message gives the lines that make one.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if not named:
        raise MissingExtraError(
            f"writing .tflite needs litert-torch in a Python of its own (it wants an older torch); {_ADVICE}"
        )
    found = find_program(os.path.expanduser(named))
    if found is None:
        raise MissingExtraError(f"{VARIABLE} is {named!r}, which is no program; {_ADVICE}")
    return found


def _run(command: list[Any], name: str) -> None:
    # Settings of this Python, its paths above all, are not for the other one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [str(part) for part in command], capture_output=True, text=True, errors="replace",
            timeout=_LONGEST_S, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as e:
        raise ExportError(f"{name}: LiteRT's converter was not done after {_LONGEST_S:.0f} s") from e
    except OSError as e:
        raise ExportError(f"{VARIABLE}: {command[0]} cannot be run: {e.strerror or e}") from e
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
    told = next((line.removeprefix(_MARK) for line in lines if line.startswith(_MARK)), lines[-1])
    if "No module named 'litert_torch'" in told:
        raise MissingExtraError(f"{command[0]} ({VARIABLE}) has no litert-torch; {_ADVICE}")
    raise ExportError(f"{name}: LiteRT's converter failed ({told[:300]})")


def append_metadata(path: Path, metadata: Mapping[str, str], categories: Sequence[str]) -> None:
    """Put texts behind the model, where the runtime does not look, as TensorFlow Lite's tools do."""
    texts = {METADATA: json.dumps(metadata, ensure_ascii=False, indent=1)}
    if categories:
        texts[LABELS] = "".join(f"{label}\n" for label in categories)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for file, text in texts.items():
            archive.writestr(zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a ``.tflite`` file of ours holds.

    Raises:
        ExportError: it holds none.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, str] = json.loads(archive.read(METADATA))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as e:
        raise ExportError(f"{path}: holds no {METADATA} ({first_line(e)})") from e
    return found


FORMAT = LiteRTFormat()
