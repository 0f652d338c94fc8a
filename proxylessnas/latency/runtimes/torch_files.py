"""Programs that PyTorch reads: exported graphs, machine code of AOTInductor, TorchScript."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import LatencyError, first_line
from ...user_files import open_file
from ..files import is_torchscript, zip_names

#: The file in a ``.pt2`` or ``.pt`` archive that holds what is known of the net, as JSON.
METADATA_FILE = "metadata.json"


def is_machine_code(path: str | os.PathLike[str]) -> bool:
    """Tell a package of AOTInductor from an exported graph."""
    return any("/aotinductor/" in name for name in zip_names(path))


def load_program(path: str | os.PathLike[str]) -> Callable[[Tensor], Any]:
    """Load a ``.pt2`` or ``.pt`` file. It holds a program, which is run: open only files you trust.

    Raises:
        LatencyError: it cannot be loaded.
    """
    path = os.fspath(path)
    try:
        with open_file(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript is deprecated is known
            if Path(path).suffix.lower() == ".pt":
                if not is_torchscript(path):
                    raise LatencyError(f"{path}: is no TorchScript program")
                program: Any = torch.jit.load(path, map_location="cpu")
            elif is_machine_code(path):
                program = torch._inductor.aoti_load_package(path)
            else:
                program = torch.export.load(path).module()
    except OSError as e:
        raise LatencyError(f"{path}: {e.strerror or e}") from e
    except LatencyError:
        raise
    except Exception as e:  # the loaders share no base class
        raise LatencyError(f"{path}: PyTorch cannot load it ({first_line(e)})") from e
    loaded: Callable[[Tensor], Any] = program
    return loaded
