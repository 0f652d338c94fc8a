"""Every code block of README.md and docs/ runs.

How a block is run, so that the documents need no hidden set-up:

* `python` blocks of a file run in order, in one namespace, in a folder of their own.
* `bash` and `console` blocks (in `console` only the lines after `$ `): `proxylessnas ...`,
  `python -m proxylessnas ...` and `python examples/...` are run; of `make` and `pip install` the targets and
  the extras must exist; `git`, `cd` and `pre-commit` are for people. Any other program fails the test.
* That folder holds `photo.jpg`, `cat.jpg`, `coffee.jpg`, `photos/` (one folder of images a class) and
  `imagenet/val/` (the same, named by wnid).
* Every model finds weights in the cache: random ones, since the real ones are not part of the repository.
* A training that another document ran already, by the same command, is copied in place of running again.
* `torch.hub.load("OWNER/REPOSITORY:TAG", ..., trust_repo=True)` is sent to this checkout.
* A comment line before a block says that this is not enough:
  `<!-- needs: weights -->` runs it with the real weights of the tiny models, served on this machine, where
  they are there; `<!-- needs: network -->` runs it only with `pytest -m network`; of one with
  `<!-- needs: minutes -->` the commands are parsed, not run (their own tests run them on smaller things).
"""

from __future__ import annotations

import configparser
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from weights_tools import serve_real_weights, stand_in_weights

REPO = Path(__file__).resolve().parent.parent
FILES = [REPO / "README.md", *sorted((REPO / "docs").glob("**/*.md"))]
SHELL = ("bash", "console", "sh", "shell")
FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>\w+) -->\n+)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^ *```",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block and where it is."""

    file: Path
    line: int
    language: str
    needs: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}"


def blocks_of(file: Path) -> Iterator[Block]:
    whole = file.read_text(encoding="utf-8")
    for match in FENCE.finditer(whole):
        indent = len(match["indent"])
        text = "".join(line[indent:] for line in match["text"].splitlines(keepends=True))
        line = whole.count("\n", 0, match.start("text")) + 1
        yield Block(file, line, match["language"], match["needs"], text)


_TRAINED: dict[str, Path] = {}  # command -> the folder of its run

BLOCKS = [block for file in FILES if file.is_file() for block in blocks_of(file)]


def commands_of(block: Block) -> Iterator[list[str]]:
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if block.language == "console":
            if not line.startswith("$ "):
                continue
            line = line[2:]
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words.pop(0)
        if words:
            yield words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder that holds what the documents' commands name."""
    photos = REPO / "examples" / "photos"
    for name in ("cat", "coffee"):
        shutil.copy(photos / f"{name}.jpg", tmp_path)
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            shutil.copy(photos / f"{name}.jpg", tmp_path / "photos" / name / f"{i}.jpg")
    shutil.copy(photos / "cat.jpg", tmp_path / "photo.jpg")
    for wnid, name in (("n02124075", "cat"), ("n07920052", "coffee")):
        shutil.copytree(tmp_path / "photos" / name, tmp_path / "imagenet" / "val" / wnid)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def _hub_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send `torch.hub.load` of a GitHub repository to this checkout, and hold the call to what is safe."""
    load = torch.hub.load

    def local(repo_or_dir: str, model: str, *args: Any, source: str = "github", **kwargs: Any) -> Any:
        if source == "github":
            assert re.fullmatch(r"[\w-]+/[\w.-]+:\S+", repo_or_dir), f"{repo_or_dir!r} pins no tag"
            assert kwargs.pop("trust_repo", None) is True, "without trust_repo torch.hub asks on the terminal"
        if source == "github" or repo_or_dir == ".":  # "from a checkout"
            repo_or_dir = str(REPO)
        return load(repo_or_dir, model, *args, source="local", **kwargs)

    monkeypatch.setattr(torch.hub, "load", local)


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    # the line numbers of tracebacks are those of the document
    code = compile("\n" * (block.line - 1) + block.text, str(block.file), "exec", dont_inherit=True)
    exec(code, namespace)


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *rest = words
    if program in ("python", "python3") and rest[:2] == ["-m", "proxylessnas"]:
        program, rest = "proxylessnas", rest[2:]
    if program == "proxylessnas":
        from proxylessnas import cli

        out = Path(rest[rest.index("--out") + 1]).absolute() if "--out" in rest else None
        if out and not out.exists() and shlex.join(rest) in _TRAINED:
            shutil.copytree(_TRAINED[shlex.join(rest)], out)
            return
        try:
            code = cli.main(rest)
        except SystemExit as stop:  # --help, --version and wrong usage
            code = stop.code
        assert not code, f"exit {code}: {shlex.join(words)}"
        if out and rest[0] in ("train", "finetune"):
            _TRAINED.setdefault(shlex.join(rest), out)
    elif program in ("python", "python3") and rest and rest[0].startswith("examples/"):
        monkeypatch.setattr(sys, "argv", rest)
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(REPO / rest[0]), run_name="__main__")
        assert not stopped.value.code, shlex.join(words)
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), shlex.join(words)
    elif program == "pip":
        config = configparser.ConfigParser()
        config.read(REPO / "setup.cfg", encoding="utf-8")
        named = re.findall(r"\[([\w,]+)\]", " ".join(rest))
        extras = {extra for group in named for extra in group.split(",")}
        assert extras <= set(config["options.extras_require"]), shlex.join(words)
    else:
        assert program in ("git", "cd", "pre-commit"), f"no rule for running {shlex.join(words)!r}"


def _run(block: Block, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    if block.language == "python":
        run_python(block, namespace)
    elif block.language in SHELL:
        for words in commands_of(block):
            run_command(words, monkeypatch)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache with random weights for every model."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROXYLESSNAS_CACHE", str(cache))
        stand_in_weights()
    return cache


RUN = sorted({block.file for block in BLOCKS if not block.needs and block.language in ("python", *SHELL)})


@pytest.mark.parametrize("file", RUN, ids=lambda file: file.name)
@pytest.mark.usefixtures("_hub_is_here", "folder")
def test_blocks_run(file: Path, monkeypatch: pytest.MonkeyPatch, stand_ins: Path) -> None:
    monkeypatch.setenv("PROXYLESSNAS_CACHE", str(stand_ins))
    namespace: dict[str, Any] = {"__name__": file.name}
    blocks = [block for block in BLOCKS if block.file == file and not block.needs]
    for block in blocks:
        try:
            _run(block, namespace, monkeypatch)
        except Exception as error:
            error.add_note(f"in the block at {block}") if hasattr(error, "add_note") else None
            raise


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.needs == "weights"], ids=str)
@pytest.mark.usefixtures("_hub_is_here", "folder")
def test_blocks_run_with_real_weights(
    block: Block, shared_data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serve_real_weights(shared_data / "weights") as url:
        monkeypatch.setenv("PROXYLESSNAS_WEIGHTS_URL", url)
        _run(block, {"__name__": str(block)}, monkeypatch)


@pytest.mark.network
@pytest.mark.parametrize("block", [block for block in BLOCKS if block.needs == "network"], ids=str)
@pytest.mark.usefixtures("folder")
def test_blocks_run_on_the_network(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(block, {"__name__": str(block)}, monkeypatch)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.needs == "minutes"], ids=str)
def test_long_commands_parse(block: Block) -> None:
    from proxylessnas.cli._main import build_parser, commands

    parser = build_parser(commands())
    for words in commands_of(block):
        if words[0] == "proxylessnas":
            parser.parse_args(words[1:])
        else:
            assert words[:2] == ["python", "run.py"], shlex.join(words)  # of a kit
            from proxylessnas.latency.kit import runner as kit_runner

            kit_runner.parse(words[2:])


def test_needs_are_known() -> None:
    assert {block.needs for block in BLOCKS} <= {None, "weights", "network", "minutes"}


def test_the_readme_starts_with_the_one_liner_and_names_the_two_commands() -> None:
    """The first block of Python loads a model; `make demo` and `make test` are named."""
    readme = [block for block in BLOCKS if block.file.name == "README.md"]
    first = next(block for block in readme if block.language == "python")
    assert re.search(r"torch\.hub\.load|create_model|proxyless_\w+\(", first.text)
    targets = {words[1] for block in readme if block.language in SHELL for words in commands_of(block)
               if words[0] == "make" and len(words) > 1}  # fmt: skip
    assert {"demo", "test"} <= targets


def test_the_readme_is_short_and_starts_with_a_figure() -> None:
    lines = (REPO / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    assert next(line for line in lines[1:] if line).startswith("![")


def test_names_are_in_the_files_that_the_documents_say() -> None:
    """What is written as "`name` in [file](path)" is defined there."""
    missing, found = [], 0
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        for name, target in re.findall(r"`(\w+)`\s+in\s+\[[^\]]+\]\((\.\./[^)#]+\.py)\)", text):
            found += 1
            code = (file.parent / target).read_text(encoding="utf-8")
            if not re.search(rf"^ *((def|class) {name}\b|{name}\b.* = )", code, re.MULTILINE):
                missing.append(f"{file.name}: {name} in {target}")
    assert missing == []
    assert found


def test_links_to_files_of_the_repository() -> None:
    broken = []
    for file in [*FILES, REPO / "CONTRIBUTING.md", REPO / "examples" / "photos" / "README.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8")):
            if "://" not in target and not (file.parent / target).exists():
                broken.append(f"{file.name}: {target}")
    assert broken == []
