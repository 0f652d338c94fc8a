"""Build backend: setuptools, with ``weights_manifest.json`` inside the package only while a wheel is built.

The manifest lives at the top of the repository, where people look for it; an installed package needs it
next to its code. Nothing that a build makes in the tree stays there, not even when the build fails.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *

_ROOT = Path(__file__).resolve().parent.parent
_MANIFEST = _ROOT / "weights_manifest.json"
_COPY = _ROOT / "proxylessnas" / _MANIFEST.name


@contextlib.contextmanager
def _tidy() -> Iterator[None]:
    """Remove the manifest's copy, and what setuptools leaves behind if it was not there before."""
    left = [path for path in (_ROOT / "build", _ROOT / "proxylessnas.egg-info") if not path.exists()]
    try:
        yield
    finally:
        _COPY.unlink(missing_ok=True)
        for path in left:
            shutil.rmtree(path, ignore_errors=True)


def get_requires_for_build_wheel(config_settings: Mapping | None = None) -> list[str]:
    """Return nothing: pyproject.toml says it all."""
    return []


get_requires_for_build_sdist = get_requires_for_build_wheel


def build_wheel(
    wheel_directory: str, config_settings: Mapping | None = None, metadata_directory: str | None = None
) -> str:
    """Build a wheel that holds the manifest as ``proxylessnas/weights_manifest.json``."""
    with _tidy():
        # setuptools would ship whatever an earlier build left in build/lib, deleted modules included
        shutil.rmtree(_ROOT / "build" / "lib", ignore_errors=True)
        shutil.copyfile(_MANIFEST, _COPY)
        return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory: str, config_settings: Mapping | None = None) -> str:
    """Build an sdist: the tree as it is, with the manifest at its top."""
    with _tidy():
        return build_meta.build_sdist(sdist_directory, config_settings)
