"""What is imported when: the order of the layers, a light `import proxylessnas`, and the hub entry file."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from packaging_tools import run_uninstalled

from proxylessnas import Arch, Stage, create_model, save_weights

PACKAGE = Path(__file__).resolve().parent.parent / "proxylessnas"

LAZY = {
    "torchvision",
    "PIL",
    "requests",
    "safetensors",
    "tqdm",
    "numpy",
    "filelock",
    "jinja2",
    "markupsafe",
    "matplotlib",
    "networkx",
    "tensorboard",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "executorch",
    "nncf",
    "torchao",
    "ai_edge_litert",
    "huggingface_hub",
    "timm",
}


def _modules() -> dict[str, ast.Module]:
    """Return the parsed modules by dotted name below the package ("" is the package itself)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = _modules()


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _imports(node: ast.AST, *, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run when the module is imported, and those inside functions too if `lazy`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and not lazy:
            continue
        elif isinstance(child, ast.If) and _is_type_checking(child.test):
            for other in child.orelse:
                yield from _imports(ast.Module([other], []), lazy=lazy)
        else:
            yield from _imports(child, lazy=lazy)


def _targets(name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """Yield absolute dotted names of what is imported."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        is_package = (PACKAGE / Path(*name.split("."))).is_dir() if name else True
        here = ["proxylessnas", *(name.split(".") if name else [])]
        here = here[: len(here) - node.level + (1 if is_package else 0)]
        base = ".".join(here + ([base] if base else []))
    for alias in node.names:
        is_module = base.startswith("proxylessnas") and (
            f"{base}.{alias.name}".removeprefix("proxylessnas.") in MODULES
        )
        yield f"{base}.{alias.name}" if is_module else base


def test_optional_libraries_are_imported_where_they_are_used() -> None:
    early = {}
    for name, module in MODULES.items():
        imports = _imports(module, lazy=False)
        early[name] = {target.split(".")[0] for node in imports for target in _targets(name, node)} & LAZY
    assert {name: found for name, found in early.items() if found} == {}


def test_checkpoints_are_never_unpickled() -> None:
    """Without `weights_only=True`, `torch.load` runs code from the file; it is not the default everywhere."""
    calls = 0
    for name, module in MODULES.items():
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", f"{name}, line {node.lineno}"
                calls += 1
    assert calls


IMPORT_IS_LIGHT = """
import json, sys
import torch
before, seen = set(sys.modules), []
def watch(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc")) or event.startswith("socket."):
        seen.append((event, str(args[0])))
sys.addaudithook(watch)
import proxylessnas
for name in proxylessnas.__all__:
    getattr(proxylessnas, name)  # names may be imported when they are first used
print(json.dumps({"file": proxylessnas.__file__, "new": sorted(set(sys.modules) - before), "seen": seen}))
"""


def test_import_is_light(tree: Path, tmp_path: Path) -> None:
    """No heavy import, no file, no socket."""
    done = json.loads(run_uninstalled(IMPORT_IS_LIGHT, cwd=tmp_path, first_on_path=[tree]).stdout)
    assert Path(done["file"]).is_relative_to(tree)
    assert done["seen"] == []
    heavy = {"torchvision", "PIL", "requests", "safetensors", "tqdm", "numpy"}
    assert heavy & {name.split(".")[0] for name in done["new"]} == set()
    assert "torch._dynamo" not in done["new"]
    assert "torch._inductor" not in done["new"]


HUB_NAMES = {
    "proxyless_gpu",
    "proxyless_cpu",
    "proxyless_mobile",
    "proxyless_mobile_14",
    "proxyless_mobile14",
    "proxyless_w025_r112",
    "proxyless_w03_r176",
    "proxyless_cifar",
    "proxyless_cifar10_demo",
}

HUB_BESIDE_OTHER_CODE = """
import json, sys
import torch

other = torch.hub.load({other!r}, "model", source="local")
assert other.kind == "other", other
import models, utils  # the user's own utils; `models` stays the other hub repository's

before, path = set(sys.modules), list(sys.path)
params = {{}}
for name in {names!r}:
    model = torch.hub.load({repo!r}, name, source="local", pretrained=False)
    params[name] = sum(p.numel() for p in model.parameters())
with torch.inference_mode():
    model = torch.hub.load({repo!r}, "proxyless_w025_r112", source="local", pretrained=False, num_classes=3)
    out = model.eval()(torch.zeros(1, 3, 112, 112))
from_repo = sorted(
    name for name in set(sys.modules) - before
    if (getattr(sys.modules[name], "__file__", None) or "").startswith({repo!r}))
import data, search
print(json.dumps({{
    "params": params, "path_is_restored": sys.path == path, "from_repo": from_repo, "shape": list(out.shape),
    "heavy": sorted({{"torchvision", "torch._dynamo"}} & set(sys.modules)),
    "own": [models.__file__, utils.__file__, data.__file__, search.__file__],
}}))
"""


def _package(folder: Path, name: str, text: str = "") -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text, encoding="utf-8")


def test_hub_entries_load_beside_other_code(tree: Path, tmp_path: Path) -> None:
    """Uninstalled, among modules of the user's with common names, after another hub repository's `models`."""
    user, other = tmp_path / "user", tmp_path / "other_repo"
    for name in ("data", "models", "search"):
        _package(user, name)
    (user / "utils.py").write_text("raise_if_hub_takes_this_one = True\n", encoding="utf-8")
    _package(other, "models", "class Model:\n    kind = 'other'\n")
    entry = "dependencies = ['torch']\ndef model():\n    from models import Model\n    return Model()\n"
    (other / "hubconf.py").write_text(entry, encoding="utf-8")
    code = HUB_BESIDE_OTHER_CODE.format(other=str(other), repo=str(tree), names=sorted(HUB_NAMES))
    done = json.loads(run_uninstalled(code, cwd=user).stdout)
    assert done["params"] == {
        "proxyless_gpu": 7_119_848,
        "proxyless_cpu": 4_361_648,
        "proxyless_mobile": 4_080_512,
        "proxyless_mobile_14": 6_857_568,
        "proxyless_mobile14": 6_857_568,
        "proxyless_w025_r112": 569_600,
        "proxyless_w03_r176": 754_280,
        "proxyless_cifar": 5_731_530,
        "proxyless_cifar10_demo": 823_634,
    }
    assert done["path_is_restored"]
    assert done["from_repo"]
    assert {name.split(".")[0] for name in done["from_repo"]} == {"proxylessnas"}
    assert done["shape"] == [1, 3]
    assert done["heavy"] == []
    assert "other_repo" in done["own"][0]
    assert all(Path(file).is_relative_to(user) for file in done["own"][1:])


def _hubconf(repo: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("hubconf", repo / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_hub_shows_exactly_the_documented_names(repo: Path) -> None:
    """As `torch.hub.list` and `torch.hub.help` see it; they themselves take no local folder."""
    module = _hubconf(repo)
    listed = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("_")}
    assert listed == HUB_NAMES | {"proxyless_custom"}
    assert module.dependencies == ["torch"]
    for name in listed:
        entry = getattr(module, name)
        assert inspect.isfunction(entry)
        assert entry.__name__ == name
        assert len((entry.__doc__ or "").strip()) > 60, f"torch.hub.help has nothing to show for {name}"
        first = ["arch", "weights"] if name == "proxyless_custom" else ["pretrained", "progress"]
        assert list(inspect.signature(entry).parameters)[:2] == first


def test_hub_loads_any_other_model(repo: Path, tmp_path: Path) -> None:
    arch = Arch("mine", stem=8, first=8, last=16, stages=(Stage(8, 2, "k3e2 -"),), num_classes=3)
    model = create_model(arch).eval()
    weights, text = save_weights(model, tmp_path / "mine.safetensors"), tmp_path / "mine.txt"
    text.write_text(str(arch), encoding="utf-8")
    x = torch.rand(2, 3, 32, 32)
    for given in ({"weights": weights}, {"arch": str(text), "weights": str(weights)}, {"arch": weights},
                  {"arch": str(arch), "weights": weights}, {"arch": arch, "weights": weights}):  # fmt: skip
        found = torch.hub.load(str(repo), "proxyless_custom", source="local", **given).eval()
        assert torch.equal(found(x), model(x))
    assert (
        torch.hub.load(str(repo), "proxyless_custom", source="local", arch=arch, num_classes=7)(x).shape[1]
        == 7
    )
    with pytest.raises(ValueError, match="proxyless_custom needs arch"):
        torch.hub.load(str(repo), "proxyless_custom", source="local")


BROKEN_TORCHVISION = """
import json, sys
import torch, proxylessnas
try:
    import torchvision
except RuntimeError as error:
    assert "nms" in str(error)
else:
    raise AssertionError("the stub was not imported")
model = proxylessnas.create_model("proxyless-w025-r112").eval()
state = {{name: value.clone() for name, value in model.state_dict().items()}}
torch.save({{"state_dict": state}}, {file!r})
torch.manual_seed(1)
again = proxylessnas.create_model("proxyless_w025_r112", weights={file!r}).eval()
x = torch.rand(2, 3, 112, 112)
with torch.inference_mode():
    assert torch.equal(model(x), again(x))
    assert model(x).shape == (2, 1000)
image = torch.zeros(3, 128, 128, dtype=torch.uint8)
assert model.preprocessing.build()(image).shape == (3, 112, 112)
print("fine")
"""


def test_a_broken_torchvision_does_not_break_the_models(tree: Path, tmp_path: Path) -> None:
    """A torch and torchvision that do not fit raise this at import; nothing here needs torchvision."""
    stub = tmp_path / "stub"
    _package(stub, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')\n")
    code = BROKEN_TORCHVISION.format(file=str(tmp_path / "net.pth"))
    assert run_uninstalled(code, cwd=tmp_path, first_on_path=[stub, tree]).stdout.strip() == "fine"


TORCH_ONLY = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import warnings
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch itself says that numpy is missing
    import torch
model = torch.hub.load({repo!r}, "proxyless_cpu", source="local", weights={file!r})
assert model.state_dict()["classifier.linear.bias"][0] == 7
print("fine")
"""


def test_hub_needs_torch_alone(tree: Path, tmp_path: Path) -> None:
    """A machine with nothing but torch builds a model and loads a local checkpoint."""
    import torch

    import proxylessnas

    state = proxylessnas.create_model("proxyless_cpu").state_dict()
    state["classifier.linear.bias"][0] = 7
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    missing = ("numpy", "torchvision", "PIL", "requests", "safetensors", "tqdm")
    code = TORCH_ONLY.format(missing=missing, repo=str(tree), file=str(tmp_path / "net.pth"))
    assert run_uninstalled(code, cwd=tmp_path).stdout.strip() == "fine"


def test_the_clone_used_here_holds_no_ignored_file(tree: Path) -> None:
    names = {path.name for path in tree.rglob("*")}
    assert {"hubconf.py", "weights_manifest.json", "setup.cfg"} <= names
    assert names & {"__pycache__", ".venv", ".git", "build"} == set()


def test_hub_says_when_another_copy_of_the_package_is_used(repo: Path, tmp_path: Path) -> None:
    """A pinned tag is not what runs where the package was imported before."""
    import runpy
    import shutil

    import proxylessnas.models.factory  # noqa: F401

    shutil.copy(repo / "hubconf.py", tmp_path)
    with pytest.warns(UserWarning, match="was imported before and is used instead of the one in"):
        runpy.run_path(str(tmp_path / "hubconf.py"))
    runpy.run_path(str(repo / "hubconf.py"))  # no warning: it would be an error
