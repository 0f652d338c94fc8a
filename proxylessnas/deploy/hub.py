"""Models in folders and repositories as the Hugging Face Hub has them.

A folder holds ``model.safetensors`` (which ``create_model`` opens on its own), ``config.json`` (what people
and the Hub read, and may edit) and ``README.md``, the model card.

    >>> from proxylessnas import create_model
    >>> folder = save_pretrained(create_model("proxyless_cifar10_demo", pretrained=True), "my_model")
    >>> model = from_pretrained("my_model")
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .._version import __version__
from ..arch.arch import Arch
from ..data.transforms import Preprocessing
from ..errors import (
    DataError,
    ExportError,
    OfflineError,
    ProxylessError,
    WeightsCorruptError,
    WeightsFetchError,
    WeightsNotFoundError,
)
from ..models.base import POOLS, ImageClassifier, unwrapped
from ..models.factory import create_model
from ..models.loading import save_weights
from ..train.evaluate import Evaluation
from ..utils.checks import is_int
from ..utils.files import decode, read_bytes
from ..utils.paths import is_offline
from ..utils.text import shown_reason
from .model_card import LIBRARY, hub_library, model_card
from .settings import PushSettings

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_MOST_CONFIG_BYTES = 1 << 20


def save_pretrained(
    model: ImageClassifier,
    folder: str | os.PathLike[str],
    *,
    name: str | None = None,
    license: str | None = None,
    measured: Evaluation | None = None,
) -> Path:
    """Write a model to a folder that :func:`from_pretrained` opens again, bit for bit.

    The folder appears, or its files change, when everything is written. A ``README.md`` that is there is
    kept, and so are all other files.

    Args:
        model: any model of this package.
        folder: where to; it is made if need be, its parent must be there.
        name: title of the model card; None takes the model's.
        license: SPDX identifier of the weights for the model card; None takes that of the published weights,
            if the model has just these.
        measured: accuracy for the model card, see :func:`~proxylessnas.deploy.model_card.model_card`.

    Returns:
        The folder.

    Raises:
        TypeError: not a model of this package.
        ExportError: the folder cannot be written.
        MissingExtraError: huggingface_hub (for the model card) or safetensors is not installed.
    """
    model = unwrapped(model)
    if not isinstance(model, ImageClassifier):
        raise TypeError(f"save_pretrained takes a model of this package, not a {type(model).__name__}")
    folder = Path(folder)
    title = name or model.name or folder.resolve().name
    try:
        with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=f".{folder.name}-") as made:
            config = json.dumps(_config(model, title), indent=2, ensure_ascii=False) + "\n"
            card = model_card(model, title, license=license, measured=measured)
            for file, text in ((CONFIG, config), (CARD, card)):
                (Path(made) / file).write_text(text, encoding="utf-8")
            save_weights(model, Path(made) / WEIGHTS)
            folder.mkdir(exist_ok=True)
            for file in (CARD, CONFIG, WEIGHTS):
                if file != CARD or not (folder / CARD).exists():
                    os.replace(Path(made) / file, folder / file)
    except OSError as e:
        raise ExportError(f"{folder}: cannot be written: {e.strerror or e}") from e
    return folder


def _config(model: ImageClassifier, title: str) -> dict[str, Any]:
    """Return what ``config.json`` says; the keys that other libraries have too are named as theirs."""
    config: dict[str, Any] = {
        "library_name": LIBRARY,
        "library_version": __version__,
        "architecture": title,
        "arch": str(model.arch),
        "num_classes": model.num_classes,
        "in_chans": model.in_chans,
        "global_pool": model.global_pool,
    }
    if model.preprocessing:
        config["preprocessing"] = model.preprocessing.to_dict()
    if model.categories:
        config["id2label"] = {str(i): label for i, label in enumerate(model.categories)}
    if model.wnids:
        config["wnids"] = list(model.wnids)
    return config


def from_pretrained(
    folder_or_repo: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> ImageClassifier:
    """Open a model of a folder, or of a repository on the Hub, in evaluation mode.

    A repository is looked up in the Hub's cache and fetched if need be; ``HF_HUB_OFFLINE`` and
    ``PROXYLESSNAS_OFFLINE`` forbid that. Where ``config.json`` and the header of ``model.safetensors``
    differ, as after somebody edited the labels, the former counts.

    Args:
        folder_or_repo: a folder, or ``"owner/name"`` if there is no such folder.
        revision: of the repository: a branch, tag or commit.
        token: of the Hub, for private repositories; None takes the one that is logged in.
        cache_dir: of downloads; None takes the Hub's own.
        local_files_only: take what the cache has, without asking the network.

    Raises:
        WeightsNotFoundError: no such folder or repository, or a file is missing in it.
        OfflineError, WeightsFetchError: the repository is not in the cache, and the network is forbidden, or
            the Hub cannot be reached or refused.
        WeightsCorruptError: ``config.json`` is malformed.
        ProxylessError: as for :func:`~proxylessnas.create_model`.
        MissingExtraError: huggingface_hub is not installed, for a repository.
    """
    folder = Path(folder_or_repo)
    if not folder.is_dir():
        offline = local_files_only or is_offline()
        folder = _download(str(folder_or_repo), revision, token, cache_dir, offline)
    elif revision is not None:
        raise ProxylessError(f"{folder}: a folder has no revisions (revision={revision!r})")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise WeightsNotFoundError(f"{folder_or_repo}: no {WEIGHTS} in it")
    config = _read_config(folder / CONFIG)
    with _malformed(folder / CONFIG):
        odd = [key for key, ok in _OPTIONS.items() if key in config and not ok(config[key])]
        if odd:
            raise ValueError(f"{odd[0]} is {config[odd[0]]!r}")
        options = {key: config[key] for key in _OPTIONS if key in config}
        known = config.get("preprocessing")
        preprocessing = Preprocessing.from_dict(known) if known else None
        categories = _labels(config.get("id2label") or {})
        wnids = _names(config.get("wnids") or [])
        arch = Arch.parse(_text(config["arch"])) if "arch" in config else None
    model = create_model(arch or weights, weights=weights, **options).eval()
    with _malformed(folder / CONFIG):
        for key, names in (("id2label", categories), ("wnids", wnids)):
            if names and len(names) != model.num_classes:
                raise ValueError(f"{key} has {len(names)} entries, the model {model.num_classes} classes")
    title = config.get("architecture")
    model.name = title if isinstance(title, str) else model.name
    model.preprocessing = preprocessing or model.preprocessing
    model.categories = categories or model.categories
    model.wnids = wnids or model.wnids
    return model


_OPTIONS = {
    "num_classes": lambda v: is_int(v, 0),
    "in_chans": lambda v: is_int(v, 1),
    "global_pool": lambda v: v in POOLS,
}


@contextlib.contextmanager
def _malformed(file: Path) -> Iterator[None]:
    """Turn errors about values of ``config.json`` into one that names the file."""
    try:
        yield
    except (ValueError, TypeError, DataError) as e:
        raise WeightsCorruptError(f"{file}: {e}") from e


def _read_config(file: Path) -> Mapping[str, Any]:
    try:
        config = json.loads(decode(read_bytes(file, _MOST_CONFIG_BYTES)))
    except FileNotFoundError:
        return {}  # the header of the weights says enough
    except OSError as e:
        raise WeightsCorruptError(f"{file}: cannot be read: {e.strerror or e}") from e
    except (ValueError, RecursionError) as e:
        raise WeightsCorruptError(f"{file}: not JSON ({e})") from e
    if not isinstance(config, Mapping):
        raise WeightsCorruptError(f"{file}: holds no mapping")
    return config


def _labels(mapping: Any) -> tuple[str, ...]:
    if not isinstance(mapping, Mapping) or sorted(mapping) != sorted(map(str, range(len(mapping)))):
        raise ValueError('id2label must map "0", "1" and so on to names')
    return _names([mapping[str(i)] for i in range(len(mapping))])


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError("labels and wnids must be texts")
    return tuple(values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("arch must be a text")
    return value


def push_to_hub(
    model: ImageClassifier,
    repo: str,
    settings: PushSettings | None = None,
    *,
    name: str | None = None,
    license: str | None = None,
    measured: Evaluation | None = None,
    token: str | None = None,
) -> str:
    """Write a model to a repository on the Hub, which is made if need be, in one commit.

    A model card that is there is kept.

    Args:
        model: any model of this package.
        repo: ``"owner/name"``.
        settings: of the commit; None takes the defaults.
        name: title of the model card; None takes the repository's.
        license: as for :func:`save_pretrained`.
        measured: as for :func:`save_pretrained`.
        token: of the Hub, with the right to write; None takes the one that is logged in.

    Returns:
        The address of the commit.

    Raises:
        OfflineError: the network is forbidden.
        WeightsFetchError, WeightsNotFoundError: the Hub cannot be reached, or refused.
        MissingExtraError: huggingface_hub or safetensors is not installed.
    """
    asked, hub = settings or PushSettings(), hub_library()
    if is_offline():
        raise OfflineError(f"{repo}: PROXYLESSNAS_OFFLINE forbids the network")
    api = hub.HfApi(token=token, library_name=LIBRARY, library_version=__version__)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "net"
        save_pretrained(model, folder, name=name or repo.split("/")[-1], license=license, measured=measured)
        with _hub_errors(repo):
            repo = api.create_repo(repo, private=asked.private, exist_ok=True).repo_id
            kept = [CARD] if api.file_exists(repo, CARD, revision=asked.revision) else None
            commit = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message=asked.message or f"Model of proxylessnas {__version__}",
                revision=asked.revision,
                create_pr=asked.create_pr,
                ignore_patterns=kept,
            )
    return str(commit.commit_url)


def _download(
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
    with _hub_errors(repo, offline):
        folder = Path(hub.hf_hub_download(repo, WEIGHTS, revision=revision, **options)).parent
        # By the commit, which is the folder's name: the branch may have moved meanwhile.
        with contextlib.suppress(hub.errors.EntryNotFoundError):
            hub.hf_hub_download(repo, CONFIG, revision=folder.name, **options)
    return folder


@contextlib.contextmanager
def _hub_errors(repo: str, offline: bool = False) -> Iterator[None]:
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
