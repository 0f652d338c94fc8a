"""Models in folders and repositories as the Hugging Face Hub has them; the Hub is a stand-in here."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deploy_tools import PLAIN, TREE, small
from hub_stand_in import StandIn
from weights_tools import stand_in_weights

from proxylessnas import create_model
from proxylessnas.deploy.hub import from_pretrained, push_to_hub, save_pretrained
from proxylessnas.errors import (
    ArchError,
    ExportError,
    MissingExtraError,
    OfflineError,
    ProxylessError,
    WeightsCorruptError,
    WeightsFetchError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from proxylessnas.models.base import ImageClassifier
from proxylessnas.train.evaluate import Evaluation

hub = pytest.importorskip("huggingface_hub")

FILES = {"README.md", "config.json", "model.safetensors"}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def card(folder: Path) -> Any:
    return hub.ModelCard.load(folder / "README.md")


def same(a: ImageClassifier, b: ImageClassifier) -> bool:
    x = torch.rand(2, a.in_chans, 32, 32)
    keys = ("categories", "wnids", "preprocessing", "num_classes", "global_pool", "in_chans")
    state, other = a.state_dict(), b.state_dict()
    with torch.inference_mode():
        return (
            all(getattr(a, key) == getattr(b, key) for key in keys)
            and state.keys() == other.keys()
            and all(torch.equal(value, other[key]) for key, value in state.items())
            and torch.equal(a.eval()(x), b.eval()(x))
        )


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        (PLAIN, {}),
        (TREE, {}),
        (PLAIN, {"num_classes": 0, "global_pool": "avgmax"}),
        (PLAIN, {"in_chans": 1, "num_classes": 7}),
    ],
    ids=["plain", "tree", "embeddings", "grey"],
)
def test_a_model_comes_back_bit_for_bit(arch: Any, options: dict[str, Any], tmp_path: Path) -> None:
    model = small(arch, **options)
    if model.num_classes:
        model.categories = ("Äpfel", "no: 1", *model.categories[2:])
        model.wnids = tuple(f"n{i:08d}" for i in range(model.num_classes))
    folder = save_pretrained(model, tmp_path / "net")
    assert names(folder) == FILES
    assert names(tmp_path) == {"net"}
    again = from_pretrained(str(folder))
    assert not again.training
    assert same(again, model)
    assert same(create_model(folder / "model.safetensors"), model)
    second = save_pretrained(again, tmp_path / "again")
    for file in ("README.md", "config.json"):
        assert (second / file).read_bytes() == (folder / file).read_bytes()


def test_a_folder_needs_neither_the_hubs_library_nor_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small()
    folder = save_pretrained(model, tmp_path / "net")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    assert same(from_pretrained(folder), model)
    with pytest.raises(MissingExtraError, match=r"pip install 'proxylessnas\[hub\]'"):
        from_pretrained("owner/net")
    with pytest.raises(MissingExtraError, match=r"pip install 'proxylessnas\[hub\]'"):
        save_pretrained(model, tmp_path / "other")
    assert names(tmp_path) == {"net"}


def test_the_card_of_our_own_weights(tmp_path: Path) -> None:
    model = create_model("proxyless_cifar10_demo", pretrained=True)
    assert model.weights is not None
    measured = model.weights.metrics
    made = card(save_pretrained(model, tmp_path / "net"))
    assert made.data.license == "mit"
    assert made.data.to_dict()["library_name"] == "proxylessnas"
    assert made.data.pipeline_tag == "image-classification"
    assert made.data.datasets == ["cifar10"]
    assert [(r.metric_value, r.metric_name) for r in made.data.eval_results] == [
        (measured["top1"], "top-1 accuracy, percent (measured)"),
        (measured["top5"], "top-5 accuracy, percent (measured)"),
    ]
    assert made.text.lstrip().startswith("# proxyless_cifar10_demo\n")
    for said in ("0.82 million parameters, 67.3 million multiply-adds",
                 f"| top-1 | {measured['top1']:.2f} % | measured |",
                 "10,000 test images of CIFAR-10", "unchanged", str(model.preprocessing),
                 "Licence: MIT."):  # fmt: skip
        assert said
        assert said in made.text


def test_published_figures_are_called_published(tmp_path: Path) -> None:
    stand_in_weights(["proxyless_mobile"])
    model = create_model("proxyless_mobile", pretrained=True)
    made = card(save_pretrained(model, tmp_path / "net"))
    assert made.data.datasets == ["imagenet-1k"]
    assert {r.metric_name for r in made.data.eval_results} == {
        "top-1 accuracy, percent (published, not re-measured)",
        "top-5 accuracy, percent (published, not re-measured)",
    }
    assert "| top-1 | 74.59 % | published, not re-measured |" in made.text
    measured = Evaluation(200, 101, 150, (), 1.0)
    made = card(save_pretrained(model, tmp_path / "other", name="Mine", measured=measured))
    assert [r.metric_value for r in made.data.eval_results] == [50.5, 75.0]
    assert "| top-1 | 50.50 % | measured on 200 images |" in made.text
    assert "published, not" not in made.text
    assert "# Mine" in made.text


@pytest.mark.parametrize("change", ["trained", "other classes", "weights not here"])
def test_the_card_of_a_changed_model_claims_nothing(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"num_classes": 4} if change == "other classes" else {}
    model = create_model("proxyless_cifar10_demo", pretrained=True, **options)
    if change == "trained":
        with torch.no_grad():
            next(model.parameters())[0, 0, 0, 0] += 1e-4
    if change == "weights not here":
        record = model.weights
        assert record is not None
        model.weights = dataclasses.replace(
            record, bundled=False, sources=("https://127.0.0.1/net.safetensors",)
        )
    made = card(save_pretrained(model, tmp_path / "net"))
    assert made.data.license is None
    assert made.data.eval_results is None
    assert made.data.datasets is None
    assert "| top-1 |" not in made.text
    assert "No licence is stated." in made.text
    assert "made from the published weights `proxyless_cifar10_demo` (MIT)" in made.text
    assert card(save_pretrained(model, tmp_path / "b", license="Apache-2.0")).data.license == "apache-2.0"


def test_what_people_wrote_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "README.md").write_text("mine", encoding="utf-8")
    (folder / "notes.txt").write_text("mine too", encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    save_pretrained(small(), folder)
    assert names(folder) == FILES | {"notes.txt"}
    assert (folder / "README.md").read_text(encoding="utf-8") == "mine"
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["num_classes"] == 5


def test_nothing_is_left_where_nothing_can_be_written(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(ExportError, match=r"no/net: cannot be written: No such file or directory$"):
        save_pretrained(model, tmp_path / "no" / "net")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ExportError, match=r"file: cannot be written: File exists$"):
        save_pretrained(model, tmp_path / "file")
    with pytest.raises(TypeError, match="not a Linear"):
        save_pretrained(torch.nn.Linear(1, 1), tmp_path / "net")  # type: ignore[arg-type]
    assert names(tmp_path) == {"file"}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size there")
def test_a_full_disk_leaves_the_old_model(tmp_path: Path) -> None:
    import resource

    model = small()
    folder = save_pretrained(model, tmp_path / "net")
    before = {file: (folder / file).read_bytes() for file in FILES}
    changed = small()
    torch.nn.init.zeros_(next(changed.parameters()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a full disk: EFBIG instead of ENOSPC
    try:
        with pytest.raises(ExportError, match=r"net: cannot be written: File too large$"):
            save_pretrained(changed, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: (folder / file).read_bytes() for file in FILES} == before
    assert names(tmp_path) == {"net"}


def test_config_counts_where_it_was_edited(tmp_path: Path) -> None:
    folder = save_pretrained(small(), tmp_path / "net")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {str(i): word for i, word in enumerate("abcde")}
    config["preprocessing"]["mean"] = [0.1, 0.2, 0.3]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = from_pretrained(folder)
    assert model.categories == tuple("abcde")
    assert model.preprocessing is not None
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    (folder / "config.json").unlink()
    assert from_pretrained(folder).categories == small().categories


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("{", WeightsCorruptError, "config.json: not JSON"),
        ("[]", WeightsCorruptError, "config.json: holds no mapping"),
        ({"num_classes": True}, WeightsCorruptError, "config.json: num_classes is True"),
        ({"in_chans": "3"}, WeightsCorruptError, "config.json: in_chans is '3'"),
        ({"global_pool": ["avg"]}, WeightsCorruptError, r"config.json: global_pool is \['avg'\]"),
        ({"preprocessing": {"resize": 3}}, WeightsCorruptError, "config.json: preprocessing fields missing"),
        ({"preprocessing": 7}, WeightsCorruptError, "config.json: preprocessing must be a mapping"),
        ({"id2label": {"1": "a"}}, WeightsCorruptError, 'config.json: id2label must map "0", "1" and so on'),
        ({"id2label": {"0": 5}}, WeightsCorruptError, "config.json: labels and wnids must be texts"),
        ({"id2label": {"0": "a"}}, WeightsCorruptError, "id2label has 1 entries, the model 5 classes"),
        ({"wnids": "n1"}, WeightsCorruptError, "config.json: labels and wnids must be texts"),
        ({"arch": 5}, WeightsCorruptError, "config.json: arch must be a text"),
        ({"arch": "Arch("}, WeightsCorruptError, "config.json: line 1, column"),
        ({"arch": str(TREE)}, WeightsMismatchError, "model.safetensors"),
    ],
)
def test_a_bad_config_is_named(change: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    folder = save_pretrained(small(), tmp_path / "net")
    file = folder / "config.json"
    if not isinstance(change, str):
        change = json.dumps({**json.loads(file.read_text(encoding="utf-8")), **change})
    file.write_text(change, encoding="utf-8")
    with pytest.raises(error, match=message) as caught:
        from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsNotFoundError, match=r"empty: no model.safetensors in it"):
        from_pretrained(tmp_path / "empty")
    for name in ("net", "a/b/c", "./net", "/no/such", "~/net"):
        with pytest.raises(WeightsNotFoundError, match=f"{name}: no such folder, and not OWNER/NAME"):
            from_pretrained(name)
    with pytest.raises(ProxylessError, match="a folder has no revisions"):
        from_pretrained(tmp_path / "empty", revision="main")
    with pytest.raises(WeightsNotFoundError, match="own er/net: no valid name of a repository"):
        from_pretrained("own er/net", cache_dir=tmp_path)


@contextlib.contextmanager
def hub_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a stand-in for the Hub, and let its library talk to that."""
    with StandIn() as server, monkeypatch.context() as patched:
        patched.setattr(hub.constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        patched.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, cache = small(), tmp_path / "cache"
    with hub_at(monkeypatch) as server:
        first = push_to_hub(model, "owner/my-net", token="hf_secret", license="MIT", private=True)
        assert first.startswith(server.url)
        assert server.repos["owner/my-net"].keys() == FILES
        assert server.tokens == {"Bearer hf_secret"}
        assert b"# my-net" in server.repos["owner/my-net"]["README.md"]
        assert same(from_pretrained("owner/my-net", cache_dir=cache, token=False), model)
        old = server.commit
        server.repos["owner/my-net"]["README.md"] = b"edited on the Hub"
        torch.nn.init.zeros_(next(model.parameters()))
        push_to_hub(model, "owner/my-net", token="hf_secret")
        assert server.repos["owner/my-net"]["README.md"] == b"edited on the Hub"
        assert server.commit != old
        assert same(from_pretrained("owner/my-net", cache_dir=cache, token=False), model)
        first_model = from_pretrained("owner/my-net", revision=old, cache_dir=cache, token=False)
        assert not same(first_model, model)
        asked = len(server.asked)
        monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
        assert same(from_pretrained("owner/my-net", cache_dir=cache), model)
        with pytest.raises(OfflineError, match="owner/other: not in the Hub's cache, and the network is"):
            from_pretrained("owner/other", cache_dir=cache)
        with pytest.raises(OfflineError, match="PROXYLESSNAS_OFFLINE forbids the network"):
            push_to_hub(model, "owner/my-net")
        assert len(server.asked) == asked


def test_a_repository_without_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    folder = save_pretrained(model, tmp_path / "net")
    with hub_at(monkeypatch) as server:
        server.put("owner/net", {"model.safetensors": (folder / "model.safetensors").read_bytes()})
        assert same(from_pretrained("owner/net", cache_dir=tmp_path / "cache", token=False), model)


def test_what_the_hub_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str, **options: Any) -> str:
        with pytest.raises(ProxylessError) as caught:
            from_pretrained(name, cache_dir=tmp_path / "cache", token=False, **options)
        assert "\n" not in str(caught.value)
        return f"{type(caught.value).__name__}: {caught.value}"

    with hub_at(monkeypatch) as server:
        server.put("owner/net", {"config.json": b"{}"})
        assert opened("owner/no").startswith(
            "WeightsNotFoundError: owner/no: neither a folder nor a repository on the Hub"
        )
        assert opened("owner/net") == "WeightsNotFoundError: owner/net: no model.safetensors in it"
        assert opened("owner/net", revision="v9") == "WeightsNotFoundError: owner/net: has no such revision"
        server.put("owner/other", {"model.safetensors": b"not a safetensors file", "config.json": b"{}"})
        assert opened("owner/other").startswith("WeightsCorruptError: ")
        with pytest.raises(WeightsFetchError, match=r"owner/net: the Hub: .*401") as caught:
            push_to_hub(small(), "owner/net", token="hf_wrong")
        assert "\n" not in str(caught.value)


@pytest.mark.slow  # the Hub's library tries several times
def test_a_hub_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hub_at(monkeypatch) as server:
        pass  # nobody listens there any more
    monkeypatch.setattr(hub.constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(WeightsFetchError, match=r"owner/away: .*the Hub cannot be reached") as caught:
        from_pretrained("owner/away", cache_dir=tmp_path / "cache", token=False)
    assert "\n" not in str(caught.value)


def test_a_model_with_an_operation_of_ones_own_asks_for_it(tmp_path: Path) -> None:
    folder = save_pretrained(small(), tmp_path / "net")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["arch"] = config["arch"].replace("k7e2", "my_op")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises((ArchError, WeightsCorruptError), match="my_op"):
        from_pretrained(folder)
