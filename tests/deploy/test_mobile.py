"""Files for phones: ExecuTorch programs, and LiteRT models through a Python of their converter's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import DECIDES, OWN_OP, PLAIN, TREE, small

from proxylessnas.deploy.bundle import ModelBundle, open_bundle
from proxylessnas.deploy.formats import executorch as executorch_format
from proxylessnas.deploy.formats import litert as litert_format
from proxylessnas.deploy.formats.base import ExportOptions, Format, Program, format_of
from proxylessnas.deploy.formats.executorch import LARGEST_BATCH
from proxylessnas.errors import ExportError, LatencyError, MissingExtraError
from proxylessnas.runtimes.base import ModelSpec
from proxylessnas.runtimes.registry import get_runtime
from proxylessnas.runtimes.settings import Settings

FORMATS = (".pte", ".tflite")


@pytest.fixture(scope="module")
def plain() -> ModelBundle:
    return open_bundle(small())


def off(bundle: ModelBundle, program: Program, batch: int) -> float:
    """Return the largest difference between a file's outputs and the model's."""
    x = torch.randn(batch, *bundle.input_size)
    with torch.inference_mode():
        expected = bundle.model(x)
    found = program(x)
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


def needs_executorch() -> Format:
    pytest.importorskip("executorch")
    return executorch_format.FORMAT


def needs_converter(monkeypatch: pytest.MonkeyPatch) -> Format:
    """Skip without LiteRT, or without the other Python, which no test may look for in the user's settings."""
    pytest.importorskip("ai_edge_litert")
    if not _CONVERTER:
        pytest.skip(f"no Python with litert-torch ({litert_format.VARIABLE} names one)")
    monkeypatch.setenv(litert_format.VARIABLE, _CONVERTER)
    return litert_format.FORMAT


_CONVERTER = os.environ.get(litert_format.VARIABLE, "")  # read before the tests' settings are cleared


@pytest.mark.slow
def test_an_executorch_program_computes_the_same(plain: ModelBundle, tmp_path: Path) -> None:
    fmt, path = needs_executorch(), tmp_path / "net.pte"
    fmt.check(plain, ExportOptions())
    assert fmt.write(plain, path, ExportOptions()) == [path]
    program = fmt.open(path, threads=1)
    for batch in (1, 2, 7, 1, LARGEST_BATCH):
        assert off(plain, program, batch) < 1e-5
    with pytest.raises(ExportError, match=r"net.pte: ExecuTorch cannot run \[65, 3, 32, 32\]"):
        program(torch.zeros(LARGEST_BATCH + 1, 3, 32, 32))
    assert executorch_format.read_metadata(path) == plain.metadata()
    assert "kind 4" in executorch_format.read_metadata(path)["categories"]
    session = get_runtime("executorch").load(
        ModelSpec("file", str(path), (3, 32, 32)), Settings("executorch", batch_size=3), tmp_path
    )
    assert session.output().shape == (3, 5)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_an_executorch_program_of_a_fixed_batch(plain: ModelBundle, tmp_path: Path) -> None:
    fmt, path = needs_executorch(), tmp_path / "net.pte"
    fmt.write(plain, path, ExportOptions(batch_size=3))
    program = fmt.open(path)
    assert off(plain, program, 3) < 1e-5
    with pytest.raises(ExportError, match=r"ExecuTorch cannot run \[2, 3, 32, 32\]"):
        program(torch.zeros(2, 3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "batch"), [(PLAIN, None), (PLAIN, 2), (TREE, 1), (OWN_OP, None)])
def test_all_of_a_model_runs_in_xnnpack(arch: Any, batch: int | None) -> None:
    needs_executorch()
    from proxylessnas.runtimes.executorch import RUNTIME, lower

    bundle = open_bundle(small(arch))
    largest = None if batch else LARGEST_BATCH
    x = torch.randn(batch or 2, *bundle.input_size)
    lowered = lower(bundle.model, x, largest_batch=largest)
    assert lowered.outside == ()
    loaded = RUNTIME.library()._load_for_executorch_from_buffer(lowered.program)
    with torch.inference_mode():
        assert torch.allclose(loaded.forward((x,))[0], bundle.model(x), atol=1e-5)
    # What the exporters learn about a batch by running convolutions must not become a limit.
    assert loaded.method_meta("forward").input_tensor_meta(0).sizes()[0] == (batch or LARGEST_BATCH)


@pytest.mark.slow
def test_executorch_says_in_one_line_what_it_cannot_take(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fmt = needs_executorch()
    capfd.readouterr()
    with pytest.raises(ExportError, match=r"^decides: ExecuTorch cannot take ProxylessNAS \(") as caught:
        fmt.write(open_bundle(small(DECIDES)), tmp_path / "net.pte", ExportOptions())
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_broken_program_is_named(tmp_path: Path) -> None:
    fmt, path = needs_executorch(), tmp_path / "net.pte"
    path.write_bytes(b"no program" * 100)
    with pytest.raises(ExportError, match=r"net.pte: ExecuTorch cannot load it"):
        fmt.open(path)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(
    "option", [{"uint8_input": True}, {"opset": 18}, {"aot": True}, {"threads": 2}], ids=lambda o: str(*o)
)
def test_options_of_other_formats_are_refused(
    suffix: str, option: dict[str, Any], plain: ModelBundle
) -> None:
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(ExportError, match=f"{suffix} files have no option --{name} "):
        format_of(Path(f"net{suffix}")).check(plain, ExportOptions(**option))


@pytest.mark.parametrize("suffix", FORMATS)
def test_tree_structured_models_need_a_fixed_batch(suffix: str) -> None:
    with pytest.raises(ExportError, match=f"tree: {suffix} files of tree-structured models take a fixed"):
        format_of(Path(f"net{suffix}")).check(open_bundle(small(TREE)), ExportOptions())


@pytest.mark.parametrize(
    ("suffix", "module", "extra"),
    [(".pte", "executorch.extension.pybindings.portable_lib", "mobile"),
     (".tflite", "ai_edge_litert.interpreter", "litert")],
)  # fmt: skip
def test_a_missing_runtime_gives_the_pip_line(
    suffix: str, module: str, extra: str, plain: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'proxylessnas\[{extra}\]'"):
        format_of(Path(f"net{suffix}")).check(plain, ExportOptions())


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "batch"), [(PLAIN, None), (TREE, 2)])
def test_a_litert_file_computes_the_same(
    arch: Any, batch: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fmt, path = needs_converter(monkeypatch), tmp_path / "net.tflite"
    bundle, options = open_bundle(small(arch)), ExportOptions(batch_size=batch)
    fmt.check(bundle, options)
    assert fmt.write(bundle, path, options) == [path]
    assert list(tmp_path.iterdir()) == [path]
    program = fmt.open(path, threads=1)
    for count in (batch,) if batch else (1, 2, 7, 2, 100):
        assert off(bundle, program, count) < 1e-5
    with pytest.raises(ExportError, match=r"net.tflite: LiteRT cannot run \[3, 3, 20, 20\]"):
        program(torch.zeros(3, 3, 20, 20))
    assert litert_format.read_metadata(path) == bundle.metadata()
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(bundle.categories)
    runtime, spec = get_runtime("litert"), ModelSpec("file", str(path), bundle.input_size)
    session: Any = runtime.load(spec, Settings("litert", batch_size=batch or 3), tmp_path)
    with torch.inference_mode():
        expected = bundle.model(torch.from_numpy(session.input()))
    assert torch.allclose(torch.from_numpy(session.output()), expected, atol=1e-5)


def converter(tmp_path: Path, body: str) -> str:
    """Return a program in the place of the Python with the converter."""
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\nimport sys\n{textwrap.dedent(body)}", encoding="utf-8")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        ("sys.exit('PROBLEM: ValueError: no such thing')", ExportError,
         r"plain: LiteRT's converter failed \(ValueError: no such thing\)$"),
        ("sys.exit('one\\ntwo\\n')", ExportError, r"converter failed \(two\)$"),
        ("sys.exit(3)", ExportError, r"converter failed \(it said nothing\)$"),
        ("sys.exit(\"PROBLEM: ModuleNotFoundError: No module named 'litert_torch'\")", MissingExtraError,
         r"has no litert-torch; make it once .*pip install litert-torch"),
    ],
)  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="starts a script")
def test_what_the_converter_says(
    body: str, error: type[Exception], message: str, plain: ModelBundle, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(litert_format.VARIABLE, converter(tmp_path, body))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(error, match=f"(?s){message}"):
        litert_format.FORMAT.write(plain, out / "net.tflite", ExportOptions())
    assert list(out.iterdir()) == []


def test_the_lines_that_make_a_converter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        r"python -m venv litert\n.*pip install torch==2.13.0\n.*pip install litert-torch==0.10.0\n.*export "
    )
    with pytest.raises(MissingExtraError, match=f"(?s){lines}{litert_format.VARIABLE}"):
        litert_format.converter_python()
    monkeypatch.setenv(litert_format.VARIABLE, str(tmp_path / "no" / "python"))
    with pytest.raises(MissingExtraError, match=f"(?s)no/python', which is no program; {'.*'}{lines}"):
        litert_format.converter_python()


def test_operations_of_ones_own_are_refused_before_the_other_python(
    plain: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert")
    with pytest.raises(ExportError, match="own_op: has operations of your own"):
        litert_format.FORMAT.check(open_bundle(small(OWN_OP)), ExportOptions())
    with pytest.raises(MissingExtraError, match="litert-torch in a Python of its own"):
        litert_format.FORMAT.check(plain, ExportOptions())


def test_the_converter_takes_this_package_alone(tmp_path: Path, repo: Path) -> None:
    """What lies beside the package is another Python's: it must not be found."""
    (tmp_path / "sub").mkdir()
    code = (
        "import runpy, sys; ns = runpy.run_path(sys.argv[1]); ns['import_package'](ns['Path'](sys.argv[2]));"
        "import json, proxylessnas.arch.tree; print(json.dumps([proxylessnas.__file__, sys.path]))"
    )
    package = repo / "proxylessnas"
    script = package / "deploy" / "litert_convert.py"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(script), str(package)],
        capture_output=True, text=True, check=True, cwd=tmp_path / "sub",
    )  # fmt: skip
    file, path = json.loads(done.stdout)
    assert Path(file) == package / "__init__.py"
    assert str(repo) not in path
    assert str(script.parent) not in path


def test_the_litert_runtime_reads_files_only(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    runtime = get_runtime("litert")
    with pytest.raises(LatencyError, match=r"\.tflite files only"):
        runtime.load(ModelSpec("arch", str(PLAIN), (3, 32, 32)), Settings("litert"), tmp_path)
    with pytest.raises(LatencyError, match="float32 on the CPU, not bfloat16 on cpu"):
        runtime.load(
            ModelSpec("file", "a.tflite", (3, 32, 32)), Settings("litert", dtype="bfloat16"), tmp_path
        )
    broken = tmp_path / "net.tflite"
    broken.write_bytes(b"no model" * 100)
    with pytest.raises(LatencyError, match=r"net.tflite: LiteRT cannot load it"):
        runtime.load(ModelSpec("file", str(broken), (3, 32, 32)), Settings("litert"), tmp_path)
    with pytest.raises(ExportError, match=r"net.tflite: holds no metadata.json"):
        litert_format.read_metadata(broken)


def test_the_command_names_the_other_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv(litert_format.VARIABLE, "")  # the command sets it: to be undone
    from proxylessnas.cli import main

    out = tmp_path / "net.tflite"
    arguments = ["export", "proxyless_cifar10_demo", str(out), "--litert-python", str(tmp_path / "none")]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert f"{litert_format.VARIABLE} is '{tmp_path / 'none'}', which is no program" in told
    assert "litert/bin/pip install litert-torch==0.10.0" in told
    assert list(tmp_path.iterdir()) == []
