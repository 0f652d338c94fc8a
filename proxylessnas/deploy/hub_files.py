"""Files of repositories on the Hugging Face Hub, by its own library, and its errors as ours."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from .._version import __version__
from ..errors import OfflineError, ProxylessError, WeightsFetchError, WeightsNotFoundError, missing_extra
from ..utils.text import shown_reason

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LIBRARY = "proxylessnas"


def hub_library() -> Any:
    """Return the package huggingface_hub.

    Raises:
        MissingExtraError: it is not installed or broken.
    """
    try:
        for module in ("constants", "errors"):  # not always imported with it
            import_module(f"huggingface_hub.{module}")
        return import_module("huggingface_hub")
    except Exception as e:  # a broken install raises anything
        raise missing_extra("huggingface_hub", "the Hugging Face Hub", extra="hub") from e


def download(
    repo: str,
    revision: str | None,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
    offline: bool,
) -> Path:
    """Return the folder of the Hub's cache that holds both files of one and the same commit."""
    parts = repo.split("/")
    if len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~") or "\\" in repo:
        raise WeightsNotFoundError(f"{repo}: no such folder, and not OWNER/NAME of a repository")
    hub = hub_library()
    options: dict[str, Any] = {
        "token": token,
        "cache_dir": cache_dir,
        "local_files_only": offline,
        "library_name": LIBRARY,
        "library_version": __version__,
    }
    with hub_errors(repo, offline):
        folder = Path(hub.hf_hub_download(repo, WEIGHTS, revision=revision, **options)).parent
        # By the commit, which is the folder's name: the branch may have moved meanwhile.
        with contextlib.suppress(hub.errors.EntryNotFoundError):
            hub.hf_hub_download(repo, CONFIG, revision=folder.name, **options)
    return folder


@contextlib.contextmanager
def hub_errors(repo: str, offline: bool = False) -> Iterator[None]:
    """Turn the Hub's errors, of many lines each, into one line of ours."""
    hub = hub_library()
    errors = hub.errors
    try:
        yield
    except errors.GatedRepoError as e:
        raise WeightsFetchError(f"{repo}: access must be asked for on the Hub's page of it") from e
    except errors.RepositoryNotFoundError as e:
        raise WeightsNotFoundError(
            f"{repo}: neither a folder nor a repository on the Hub (or a private one: log in, or pass token=)"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise WeightsNotFoundError(f"{repo}: has no such revision") from e
    except errors.LocalEntryNotFoundError as e:
        if offline or hub.constants.HF_HUB_OFFLINE:
            raise OfflineError(f"{repo}: not in the Hub's cache, and the network is forbidden") from e
        raise WeightsFetchError(
            f"{repo}: not in the Hub's cache, and the Hub cannot be reached ({_reason(e)})"
        ) from e
    except errors.EntryNotFoundError as e:
        raise WeightsNotFoundError(f"{repo}: no {WEIGHTS} in it") from e
    except errors.OfflineModeIsEnabled as e:
        raise OfflineError(f"{repo}: HF_HUB_OFFLINE forbids the network") from e
    except errors.HFValidationError as e:
        raise WeightsNotFoundError(f"{repo}: no valid name of a repository ({_reason(e)})") from e
    except ProxylessError:
        raise
    except Exception as e:  # of whichever HTTP library it uses
        raise WeightsFetchError(f"{repo}: the Hub: {_reason(e)}") from e


def _reason(error: BaseException) -> str:
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    text = next((line.strip() for line in str(deepest).splitlines() if line.strip()), "")
    return shown_reason(text)[:200] or type(deepest).__name__
