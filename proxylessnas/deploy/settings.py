"""The settings of this room's functions: of exports, of :func:`.optimize` and of commits to the Hub."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ExportError
from ..runtimes.settings import MOST_IMAGES, MOST_THREADS
from ..utils.checks import Range
from ..utils.config import Config, option

TARGETS = ("any", "avx2", "vnni")
_SHARE, _COUNT = Range(0, 1), Range(0, 10_000)
_BATCH, _PIXELS, _THREADS = Range(1, MOST_IMAGES), Range(1, 4096), Range(1, MOST_THREADS)
PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class ExportOptions(Config):
    """How a file is to be written; a format refuses what it cannot do.

    Raises:
        ExportError: a value is wrong.
    """

    what = "options of the file"
    error = ExportError

    # fmt: off
    batch_size: int | None = option(None, _BATCH, "images a call; None takes any number, where the "
        "format can", group="file")
    uint8_input: bool = option(False, None, ".onnx: the file takes uint8 images [N, 3, H, W] of any size, "
        "and resizes, crops and normalises them itself")
    opset: int | None = option(None, Range(1, 1000), ".onnx: version of the operators; None takes the "
        "exporter's own")
    aot: bool = option(False, None, ".pt2: machine code for this kind of machine (AOTInductor)")
    threads: int | None = option(None, _THREADS, "that --aot makes the code for, and that the latency is "
        "measured with; None takes torch's number")
    # fmt: on


@dataclass(frozen=True)
class ExportSettings(ExportOptions):
    """What is exported, how its file is written, how INT8 is chosen, and how it is proven.

    Raises:
        ExportError: a value is wrong, or values do not fit together.
    """

    what = "export settings"

    # fmt: off
    force: bool = option(False, None, "replace a file that is there")
    weights: PathLike | None = option(None, None, "weights: .safetensors or .pth", group="model",
        metavar="FILE")
    untrained: bool = option(False, None, "random weights, to measure a model")
    input_size: int | None = option(None, _PIXELS, "side of the input, px; None takes the model's own")
    int8: bool = option(False, None, "8-bit weights and activations; for .onnx, .xml, .pte and .tflite",
        group="INT8")
    calibrate: Any = option(None, None, "images like those that the model will see: a folder or files, 8 at "
        "least, 50 or more will do", metavar="DIR")
    data: Any = option(None, None, "labelled images to evaluate it with, as for eval; None takes "
        "those of the calibration that are held out", metavar="DIR")
    target_isa: str | None = option(None, TARGETS, "x86 processors that it must compute the same on: without "
        "VNNI, with it, or both; None takes any", metavar="ISA")
    all_int8: bool = option(False, None, ".onnx, .xml: leave no part of the model in float32, as latency "
        "tables of INT8 have it")
    min_agreement: float | None = option(None, _SHARE, "share of the images that must keep their class; None "
        "takes 0.9", metavar="P")
    max_drop: float | None = option(None, _SHARE, "share of the labelled images that may be lost; None "
        "takes 0.02", metavar="P")
    qat_epochs: int = option(0, _COUNT, "first fine-tune the model so many epochs with the rounding in it")
    qat_data: PathLike | None = option(None, None, "labelled images for that; not those of --data",
        metavar="DIR")
    images: Any = option(None, None, "a folder or files to compare on; None takes some that are here",
        group="proof", metavar="DIR")
    tolerance: float | None = option(None, Range(0, 1, open_low=True), "how far an output may be off, times "
        "the largest output (1 at least); None takes 1e-4, with uint8 input 0.02")
    measure: bool = option(True, None, "measure the latency of the model and of the file, by turns, for some "
        "seconds (INT8 is compared with float32 all the same)")
    # fmt: on

    @property
    def options(self) -> ExportOptions:
        """What the file alone is written with."""
        own = {field.name: getattr(self, field.name) for field in fields(ExportOptions)}
        return ExportOptions(**{**own, "threads": self.threads if self.aot else None})

    def conflicts(self) -> list[str]:
        """Return what does not fit together."""
        found = []
        if self.untrained and self.weights is not None:
            found.append("`untrained` leaves the weights random: it does not go with `weights`")
        names = (
            "calibrate", "data", "target_isa", "all_int8", "min_agreement", "max_drop", "qat_epochs",
            "qat_data",
        )  # fmt: skip
        given = [f"`{name}`" for name in names if getattr(self, name) not in (None, 0)]
        if given and not self.int8:
            found.append(f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} for `int8`")
        if self.int8 and self.calibrate is None:
            found.append("`int8` needs `calibrate=DIR`, a folder of images like those the model will see")
        if (self.qat_epochs > 0) != (self.qat_data is not None):
            found.append("`qat_epochs` and `qat_data` go together")
        return found


@dataclass(frozen=True)
class OptimizeSettings(Config):
    """What :func:`~proxylessnas.deploy.optimize` makes, and what it may try.

    Raises:
        ExportError: a value is wrong.
    """

    what = "settings"
    error = ExportError

    # fmt: off
    batch_size: int | None = option(None, _BATCH, "images a call; None takes the example's number, else 1")
    input_size: int | None = option(None, Range(1, 65_536), "side of an image, px; None takes the example's, "
        "else that of the model")
    threads: int | None = option(None, _THREADS, "that the process will use; None takes torch's present "
        "number. It becomes part of compiled code: if you give one, call torch.set_num_threads with it")
    allow_bf16: bool = option(True, None, "try bfloat16, which is taken only if min_agreement is met and "
        "it is faster")
    tolerance: float = option(1e-3, Range(0, 86_400), "largest difference of an output in float32, as a "
        "share of the largest output (at least 1)")
    min_agreement: float = option(0.99, Range(0, 86_400), "least share of the images whose largest output "
        "must be the same")
    compile: str = option("auto", ("auto", "always", "never"), "auto tries what this machine can compile, "
        "always raises where it cannot, never does without")
    seconds: float = option(1.0, Range(0, 86_400), "spent on timing each candidate")
    # fmt: on


@dataclass(frozen=True)
class PushSettings(Config):
    """How a model is put into a repository of the Hub.

    Raises:
        ExportError: a value is wrong.
    """

    what = "settings of the commit"
    error = ExportError

    # fmt: off
    private: bool | None = option(None, None, "whether a new repository is private; None takes the owner's "
        "default")
    revision: str | None = option(None, None, "branch to write to; None takes the main one")
    message: str | None = option(None, None, "of the commit")
    create_pr: bool = option(False, None, "propose the change instead of making it")
    # fmt: on
