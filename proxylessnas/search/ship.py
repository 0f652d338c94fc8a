"""The INT8 file of the model that a search for INT8 latency ends with: written, proven, evaluated, measured.

This is the one place where a search looks at exports, which it otherwise knows nothing of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import first_line
from ..runtimes.base import ModelSpec
from ..runtimes.registry import runtimes
from ..utils.progress import tell

if TYPE_CHECKING:
    from .evaluate import Measured
    from .setup import SearchSetup

_NAME = "child-int8"
#: The file, its report and, of OpenVINO, its weights.
INT8_FILES = f"{_NAME}*"


def int8_file(
    setup: SearchSetup, model: Path, measured: Callable[[ModelSpec], Measured]
) -> dict[str, Any] | None:
    """Export a model to INT8, if the search's table is one of INT8; return what came of it, as JSON values.

    Only schemes that leave nothing in float32 are tried: of others the table knows no latency. They are
    calibrated on images that the weights were trained on, and the file is evaluated on those held out; no
    accuracy is too low to be reported. Under "note" stands why there is no file.

    Args:
        setup: gives the table and the images.
        model: the weights' file; the INT8 file is written beside it.
        measured: measures the file that a spec names under the table's conditions.
    """
    table = setup.table
    if table is None or table.conditions.dtype != "int8":
        return None
    name, _, provider = table.conditions.runtime.partition(" ")
    runtime, threads = runtimes().get(name), table.conditions.threads or 1
    if runtime is None:
        return {"note": f"not exported: the table is of {name}, which is no runtime of this package"}
    from ..deploy.exporter import export
    from ..deploy.settings import ExportSettings

    tell("note: exporting what was found to INT8, and evaluating the file; this takes a minute or more")
    path = model.with_name(f"{_NAME}{runtime.suffixes[0]}")
    settings = ExportSettings(
        force=True, int8=True, all_int8=True, calibrate=setup.data.train, data=setup.held_out,
        threads=threads, min_agreement=0.0, max_drop=1.0, measure=False,
    )  # fmt: skip
    try:
        report = export(model, path, settings)
        found, size = report.int8, report.bundle.input_size
        file = measured(ModelSpec("file", str(path), size))
    except Exception as e:  # noqa: BLE001 - hours of search are not lost to a failed export
        return {"note": f"not exported: {first_line(e)}"}
    return {
        "file": path.name,
        "scheme": found.scheme,
        "calibration_images": found.calibration_images,
        "images": found.n,
        "agreement": found.agreement,
        **{f"top1_{dtype}": getattr(found, f"top1_{short}") for dtype, short in _DTYPES.items()},
        **{f"ms_{dtype}": getattr(found, f"ms_{short}") for dtype, short in _DTYPES.items()},
        **{f"bytes_{dtype}": getattr(found, f"bytes_{short}") for dtype, short in _DTYPES.items()},
        "threads": found.threads,
        "measured_ms": None if provider else file.ms,
        "measured_note": file.note,
    }


_DTYPES = {"float32": "float", "int8": "int8"}


_BOTH = ("top1", "ms", "bytes")  # figures of the INT8 file and its float32 file


def describe_int8(result: Mapping[str, Any]) -> list[str]:
    """Return in words what a ``result.json`` says of the INT8 file; nothing of a search for another dtype."""
    found = result.get("int8")
    if not found:
        return []
    if "file" not in found:
        return [f"INT8: {found.get('note')}"]
    measured = found["measured_ms"]
    target = (result.get("limits") or {}).get("latency")
    text = f"measured {measured:.3f} ms" if measured else found["measured_note"] or "not measured"
    if measured and target:
        over = measured / target - 1
        text += f", target {target:.3f} ms: " + (f"over by {over:.1%}" if over >= 0.0005 else "kept")
    top1, ms, size = ([found[f"{what}_{dtype}"] for dtype in ("float32", "int8")] for what in _BOTH)
    return [
        f"INT8: {found['file']}, {text}",
        f"float32 -> INT8: top-1 {top1[0]:.2f} -> {top1[1]:.2f} % on {found['images']:,} held-out images; "
        f"files of {size[0] / 1e6:.2f} -> {size[1] / 1e6:.2f} MB, called from Python by turns {ms[0]:.3f} -> "
        f"{ms[1]:.3f} ms (scheme {found['scheme']}, calibrated on {found['calibration_images']} training "
        "images)",
    ]
