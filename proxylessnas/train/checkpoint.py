"""Checkpoints of a run: what they hold, how they are written and read, and how a run resumes from one.

``last.pt`` is the newest, ``previous.pt`` the one before it, ``best.pt`` the best so far by validation
accuracy, ``epoch-0010.pt`` one that is kept for good. Each is complete or not there, holds everything that a
run resumes from, and is read without running code from it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import io
import os
import random
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .._version import __version__
from ..errors import CheckpointError, ProxylessError, first_line
from ..utils import torch_files
from ..utils.distributed import Processes
from ..utils.files import read_bytes, sync_folder, write_atomically
from .sampler import Position, mix64
from .settings import Settings

if TYPE_CHECKING:
    from .step import WeightStep

FORMAT, VERSION = "proxylessnas training checkpoint", 1
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
_NEXT = "next.pt"
_KEYS = ("position", "model", "optimizer", "recipe", "arch", "data", "rng")

#: What helps against numbers that are not finite.
ADVICE = 'Try a lower learning_rate, clip_norm = 1, or amp = "off"'

State = dict[str, Any]


class Run(Protocol):
    """What a run has to have to be saved and resumed: a :class:`~.trainer.Trainer`, or a searcher.

    ``model`` is a module, ``recipe`` has a ``seed`` and ``to_dict``, ``data`` a ``name`` and a
    ``fingerprint``.
    """

    settings: Settings
    processes: Processes
    device: torch.device
    checkpoints: Any
    position: Position
    step: WeightStep
    optimizer: torch.optim.Optimizer
    model: Any
    recipe: Any
    data: Any


# ---- files


def save(folder: Path, state: Mapping[str, Any], *, best: bool = False, keep_as: str | None = None) -> None:
    """Write a checkpoint as the last one; the one before it stays until this one is complete.

    Args:
        folder: of the run's checkpoints.
        state: tensors, numbers, strings, lists and dicts.
        best: it is the best so far, too.
        keep_as: another name to keep it under.

    Raises:
        CheckpointError: it cannot be written (a full disk); what was there before is still there.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **state}, buffer)
    data = buffer.getbuffer()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # The last one comes last: it says which the best is, so that one must be there.
        for name in ([BEST] if best else []) + ([keep_as] if keep_as else []):
            write_atomically(folder / name, data)
        write_atomically(folder / _NEXT, data)
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder / LAST, folder / PREVIOUS)
        os.replace(folder / _NEXT, folder / LAST)
        sync_folder(folder)
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            need = f"the disk is full ({len(data) / 1e6:.1f} MB are needed): free some space"
        else:
            need = f"{e.strerror or e}: make the folder writable"
        raise CheckpointError(
            f"{folder}: the checkpoint of step {state['position']['global_step']} cannot be written; {need} "
            "and run the same command again, it resumes from the checkpoint before"
        ) from e


def load(path: Path) -> State:
    """Read one checkpoint.

    Raises:
        CheckpointError: it is cut short, damaged, not a checkpoint of a run, or of another version.
    """
    try:
        data = read_bytes(path)
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror or e})") from e
    try:
        state = torch_files.load(data)
        with zipfile.ZipFile(io.BytesIO(data)) as parts:  # torch itself does not compare the check sums
            broken = parts.testzip()
        if broken is not None:
            raise CheckpointError(f"{path}: damaged ({broken} has another check sum)")
    except CheckpointError:
        raise
    except Exception as e:  # zipfile and the unpickler raise nearly anything on damaged bytes
        reason = first_line(e, 200)
        raise CheckpointError(f"{path}: cut short, damaged or not a checkpoint ({reason})") from e
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of a training run")
    version = state.get("version")
    if version != VERSION:
        found = version if isinstance(version, int) else type(version).__name__  # whatever it may hold
        raise CheckpointError(
            f"{path}: written by another version of this package (format {found}, this one reads {VERSION})"
        )
    missing = [key for key in _KEYS if key not in state]
    position = state.get("position")
    if not missing and not (isinstance(position, dict) and isinstance(position.get("global_step"), int)):
        missing = ["the step"]
    if missing:
        raise CheckpointError(f"{path}: incomplete; {', '.join(missing)} missing")
    return state


def newest(folder: Path) -> tuple[State | None, list[str]]:
    """Return the newest sound checkpoint (None if there never was one), and what is wrong with others.

    Raises:
        CheckpointError: there are checkpoints, but none is sound.
    """
    problems: list[str] = []
    found: State | None = None
    for name in (_NEXT, LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = load(path)
        except CheckpointError as e:
            problems.append(str(e))
            continue
        if found is None or state["position"]["global_step"] > found["position"]["global_step"]:
            found = state
        if found is not None and name == LAST:
            break  # what came before it is older
    if found is None and problems:
        raise CheckpointError(
            "no checkpoint of this run is sound:\n  "
            + "\n  ".join(problems)
            + f"\n  put a good copy there, or remove {folder} to start from the beginning"
        )
    return found, problems


# ---- the state of a run


def check_finite(run: Run, *states: Mapping[str, Tensor]) -> None:
    """Check the numbers in some state dicts: an update can spoil them after a good loss.

    Raises:
        ProxylessError: they are not finite, in any process.
    """
    tensors = [t for state in states for t in state.values() if t.is_floating_point()]
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(tensors, float("inf"))])
    if run.processes.any_of(not bool(norms.isfinite().all())):
        raise ProxylessError(
            f"the weights are not finite (NaN or infinite) after step {run.position.global_step - 1}; "
            f"the last good checkpoint is kept in {run.checkpoints}. {ADVICE}"
        )


def weights_digest(model: nn.Module, *, without: str | None = None) -> str:
    """Return the SHA-256 of a model's weights and buffers; names that begin with ``without`` do not count."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if without is None or not name.startswith(without):
            data = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
            found.update(name.encode() + data.numpy().tobytes())
    return found.hexdigest()


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the states of this process's random generators, as tensors and numbers."""
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = {
            "kind": kind,
            "keys": torch.tensor(keys.astype("int64")),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        }
    return state


def set_generator_states(state: Mapping[str, Any], device: torch.device) -> None:
    """Put this process's random generators into the states of :func:`generator_states`."""
    torch.set_rng_state(state["torch"])
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if "numpy" in state and "numpy" in sys.modules:
        n = state["numpy"]
        keys = n["keys"].numpy().astype("uint32")
        sys.modules["numpy"].random.set_state((n["kind"], keys, n["position"], n["has_gauss"], n["cached"]))


def pack(state: Mapping[str, Any]) -> Tensor:
    """Return a nested dict as one tensor of bytes, which processes can exchange."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def unpack(data: Tensor) -> State:
    """Return the dict that :func:`pack` was given."""
    state: State = torch_files.load(data.numpy().tobytes(), map_location=None)
    return state


def shared_state(run: Run, arch: str) -> State:
    """Return the part of a checkpoint that all runs have; ``arch`` says what ``run.model`` is.

    All processes take part, each with its generators.
    """
    generators = run.processes.gather(pack(generator_states(run.device)))
    return {
        "position": dataclasses.asdict(run.position),
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.step.scaler.state_dict() if run.step.scaler else None,
        "rng": [unpack(part) for part in generators],
        "recipe": run.recipe.to_dict(),
        "arch": arch,
        "data": run.data.fingerprint,
        "run": _circumstances(run),
    }


def restore_shared(run: Run, state: State) -> None:
    """Undo :func:`shared_state`."""
    rank, position = run.processes.rank, state["position"]
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.step.scaler is not None:
        run.step.scaler.load_state_dict(state["scaler"])
    if rank < len(state["rng"]):
        set_generator_states(state["rng"][rank], run.device)
    else:
        torch.manual_seed(mix64(run.recipe.seed, rank, position["global_step"]))
    run.position = type(run.position)(**position)


def resume_run(
    run: Run,
    differences: Callable[[State], Iterable[str]],
    restore: Callable[[State], None],
    finished: Callable[[], bool],
    consequence: str,
) -> list[str]:
    """Put a run where its newest checkpoint is, if there is one, and return what the user should know.

    Only the first process reads files; the others get what it read.

    Args:
        run: to be resumed.
        differences: says what makes a checkpoint one of another run, such as ", of another model".
        restore: puts the run into the state of a checkpoint.
        finished: says, after that, whether there is nothing left to do but the end.
        consequence: of resuming under other circumstances.

    Raises:
        CheckpointError: the checkpoint belongs to another run, or none is sound.
    """
    processes = run.processes
    state, problems = newest(run.checkpoints) if processes.main else (None, [])
    state = unpack(processes.broadcast(pack({"state": state}) if processes.main else None))["state"]
    if state is None:
        torch.manual_seed(mix64(run.recipe.seed, processes.rank))
        return []
    try:
        different = next(iter(differences(state)), None)
        if different is not None:
            raise CheckpointError(
                f"{run.settings.out} holds another run{different}: use another --out, or --restart, which "
                "keeps that folder under another name"
            )
        restore(state)
    except ProxylessError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        reason = first_line(e, 200)
        raise CheckpointError(f"{run.checkpoints}: the checkpoint is malformed ({reason})") from e
    notes = [f"{problem}; the checkpoint before it is used" for problem in problems]
    if finished():
        return [*notes, "this run is finished: only its end is repeated"]
    notes.append(f"continued from step {run.position.global_step:,} (epoch {run.position.epoch + 1})")
    before, now = state.get("run") or {}, _circumstances(run)
    changed = [f"{key}: {now[key]}, was {before.get(key)}" for key in now if before.get(key) != now[key]]
    return [*notes, f"{consequence}: {'; '.join(changed)}"] if changed else notes


def other_images(run: Run, state: State) -> list[str]:
    """Return what makes a checkpoint one of another run, if it is the images."""
    same = state["data"] == run.data.fingerprint
    return [] if same else [f", on other images than those of {run.data.name} now"]


def _circumstances(run: Run) -> dict[str, Any]:
    """Return what may change between two parts of a run, at the price of the last digits."""
    return {
        "processes": run.processes.world,
        "device": run.device.type,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "proxylessnas": __version__,
    }
