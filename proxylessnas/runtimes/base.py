"""Base classes of a runtime and of a model that it has loaded, and what it is asked to load."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import LatencyError, missing_extra
from .files import check_runtime
from .registry import runtimes
from .settings import Settings


class Session:
    """A loaded model with an input of the right size.

    Where a runtime ``has_parts``, sessions of models from an architecture also have ``parts_ms(runs)``: for
    each operation, stem to classifier, ``(text of its key, ms of each run)``.
    """

    def run(self) -> None:
        """Run one forward pass of the whole batch; return when its output is there."""
        raise NotImplementedError

    def times_ms(self, runs: int) -> list[float] | None:
        """Time ``runs`` forward passes by the device's own clock; None where the caller's clock is right."""
        return None

    def close(self) -> None:
        """Free everything."""
        self.__dict__.clear()


class Runtime:
    """One way to run models: a module of this package that has one as ``RUNTIME`` adds it.

    Such a module imports neither its library nor torch before they are used, so that it is found fast.

    Attributes:
        name: as users give it.
        module: what of its library is imported; None for torch.
        needs: packages that must be there, other than torch.
        extra: of this package, which brings them.
        suffixes: of the exported files that it reads.
        dtypes: that it computes in, on each device that it runs on.
        has_parts: whether it can time each operation inside a whole model.
        kit_loader: what loads its files in a latency kit; None if a kit has none for it. The class is copied
            there alone, to run on Python 3.8 without this package. ``FILES`` is the name of the files, which
            have the runtime's first suffix, ``NEEDS`` what a device needs to run them, ``CPU`` the provider
            that computes on the CPU, as this package does.
    """

    name: str
    module: str | None = None
    needs: tuple[str, ...] = ()
    extra: str | None = None
    suffixes: tuple[str, ...] = ()
    dtypes: Mapping[str, tuple[str, ...]] = {"cpu": ("float32",)}
    has_parts = False
    kit_loader: type[Any] | None = None

    def missing(self) -> str | None:
        """Return what to do before it can be used, the pip line mostly; None if all is there.

        Nothing is imported.
        """
        missing = any(importlib.util.find_spec(package) is None for package in self.needs)
        return f"pip install 'proxylessnas[{self.extra}]'" if missing else None

    def library(self, module: str | None = None) -> Any:
        """Import its library, or another module of it than the usual.

        Raises:
            MissingExtraError: it is not installed or broken.
        """
        try:
            return import_module(module or str(self.module))
        except Exception as e:  # a broken install, or one for another torch, raises anything
            raise missing_extra(self._distribution, f"the runtime {self.name!r}", extra=self.extra) from e

    @property
    def _distribution(self) -> str:
        return str(self.module).partition(".")[0].replace("_", "-")

    def versions(self) -> dict[str, str]:
        """Return the versions of the libraries it runs on.

        Raises:
            MissingExtraError: one is not installed.
        """
        from importlib import metadata

        if self.module is None:
            return {"torch": metadata.version("torch")}
        self.library()
        try:
            return {self._distribution: metadata.version(self._distribution)}
        except metadata.PackageNotFoundError:
            return {self._distribution: "unknown"}

    def device_name(self, settings: Settings) -> str | None:
        """Return the name of an accelerator; None for the CPU."""
        return None

    def check(self, settings: Settings) -> None:
        """Refuse a device or a dtype that it does not run.

        Raises:
            LatencyError: it does not; the message names runtimes that do.
        """
        device, dtype = settings.device, settings.dtype
        if dtype in self.dtypes.get(device, ()):
            return
        fits = [repr(name) for name, other in runtimes().items() if dtype in other.dtypes.get(device, ())]
        own = " or ".join(f"{' and '.join(dtypes)} on {where}" for where, dtypes in self.dtypes.items())
        raise LatencyError(
            f"runtime {self.name!r} measures {own}, not {dtype} on {device}: use runtime {' or '.join(fits)}"
        )

    def load(self, spec: ModelSpec, settings: Settings) -> Session:
        """Load a model; what is no file is exported first where the runtime takes files.

        Raises:
            LatencyError: the model, the device or the dtype is not one it runs.
            MissingExtraError: its library, or what an export needs, is not installed.
        """
        self.check(settings)
        if spec.kind == "file":
            check_runtime(spec.text, self.name)
        return self._load(spec, settings)

    def _load(self, spec: ModelSpec, settings: Settings) -> Session:
        raise NotImplementedError

    def kit_file(self, spec: ModelSpec, batch_size: int, dtype: str = "float32") -> bytes:
        """Return a model, with random weights, as a file for a latency kit; ``dtype`` is one of its own."""
        raise NotImplementedError

    def kit_module(self) -> str:
        """Return the Python file with which a kit's ``run.py`` loads the files."""
        assert self.kit_loader is not None
        source = inspect.getsource(self.kit_loader).replace(self.kit_loader.__name__, "Loader")
        return f'"""Loads files in {self.name}."""\n\nfrom __future__ import annotations\n\n\n{source}'


@dataclass(frozen=True)
class ModelSpec:
    """A model, or one operation of it.

    Attributes:
        kind: "arch" (``text`` is ``str(arch)``), "op" (``text`` is that of an operation's key), "module"
            (``text`` is the path of a pickled ``nn.Module``) or "file" (that of an exported file, see
            :mod:`~proxylessnas.runtimes.files`).
        text: see ``kind``.
        input_size: (channels, height, width) of one image; for "op" that of the operation's input.
        num_classes: outputs of the classifier of an "arch"; None takes the architecture's.
    """

    kind: str
    text: str
    input_size: tuple[int, int, int]
    num_classes: int | None = None

    @property
    def label(self) -> str:
        """What it is called in messages."""
        return Path(self.text).name if self.kind in ("file", "module") else f"the {self.kind}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**dataclasses.asdict(self), "input_size": list(self.input_size)}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> ModelSpec:
        """Undo :meth:`to_dict`."""
        return ModelSpec(**{**data, "input_size": tuple(data["input_size"])})
