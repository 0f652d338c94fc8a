"""Run things as a user would: from a fresh clone, uninstalled, or in an environment of their own."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

_NOT_SOURCE = shutil.ignore_patterns(
    ".git", ".venv", "venv", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "runs"
)


def copy_tree(repo: Path, target: Path) -> Path:
    """Copy what git tracks or would track to `target`, or the whole tree where there is no git."""
    if (repo / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"],
            cwd=repo,
            capture_output=True,
            check=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (repo / name).is_file():  # a file deleted but not yet committed is listed too
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(repo / name, target / name)
    else:
        shutil.copytree(repo, target, ignore=_NOT_SOURCE)
    return target


def site_packages() -> list[str]:
    """Return the folders that hold torch and the rest, for this interpreter."""
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return [folder for folder in dict.fromkeys(folders) if Path(folder).is_dir()]


def run(
    command: Sequence[str | Path], *, cwd: Path, env: Mapping[str, str] | None = None, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run a command without input; fail with its whole output if it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        shown = " ".join(str(part) for part in command)
        raise AssertionError(f"exit {done.returncode}: {shown}\n{done.stdout}\n{done.stderr}")
    return done


def run_uninstalled(
    code: str, *, cwd: Path, first_on_path: Sequence[Path] = (), timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run Python code where this package is not installed, not even as an editable one.

    `-S` leaves out site-packages together with its .pth files, through which editable installs work; the
    folders then come back through PYTHONPATH, where .pth files are not read. `-c` puts the working directory
    on the path, as it is for a user's script beside her own modules.
    """
    guard = Path(__file__).resolve().parents[1] / "offline"
    path = [*map(str, first_on_path), str(guard), *site_packages()]
    return run(
        [sys.executable, "-S", "-B", "-W", "error", "-c", "import sitecustomize\n" + code],
        cwd=cwd,
        env={"PYTHONPATH": os.pathsep.join(path)},
        timeout=timeout,
    )
