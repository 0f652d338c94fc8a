"""Weights into models: names, files, transfer to other heads and stems; all or nothing."""

from __future__ import annotations

import copy
import json
import logging
import socket

import pytest
import torch

import proxylessnas
from proxylessnas import (
    Arch,
    ArchError,
    OfflineError,
    UnknownModelError,
    WeightsCorruptError,
    WeightsMismatchError,
    WeightsNotFoundError,
    create_model,
    get_weights,
    load_weights,
    save_weights,
)
from proxylessnas.arch.published import MODEL_NAMES
from proxylessnas.data.transforms import Preprocessing
from tests.models.test_models import SMALL, SMALL_TREE


@pytest.fixture
def donor():
    torch.manual_seed(3)
    model = create_model(SMALL)
    model(torch.randn(8, 3, 32, 32))  # moves the BatchNorm statistics off their start
    return model.eval()


@pytest.fixture
def checkpoint(donor, tmp_path):
    """An original-format checkpoint."""
    path = tmp_path / "net.pth"
    torch.save({"state_dict": donor.state_dict()}, path)
    return path


def same_tensors(model, other, skip=()):
    a, b = model.state_dict(), other.state_dict()
    return {k for k in a if k not in skip and not torch.equal(a[k], b[k])}


def test_an_original_checkpoint_loads_exactly(donor, checkpoint):
    model = create_model(SMALL, weights=checkpoint)
    assert same_tensors(model, donor) == set()
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())
    assert not any(b.is_meta for b in model.buffers())
    assert model.training
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), donor(x))
    fresh = create_model(SMALL)
    report = load_weights(fresh, checkpoint)
    assert (report.missing, report.unexpected, report.adapted) == ([], [], {})
    assert same_tensors(fresh, donor) == set()
    assert fresh.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"], strict=True)


def test_no_socket_for_a_local_file(checkpoint, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    create_model(SMALL, weights=str(checkpoint))
    for name in MODEL_NAMES:
        create_model(name)


@pytest.mark.parametrize("classes", [7, 0])
def test_transfer_to_another_head(donor, checkpoint, classes, caplog):
    with caplog.at_level(logging.WARNING, "proxylessnas"):
        model = create_model(SMALL, weights=checkpoint, num_classes=classes)
    head = {k for k in model.state_dict() if k.startswith("classifier")}
    assert {k: v for k, v in model.state_dict().items() if k not in head}.keys() <= donor.state_dict().keys()
    assert all(torch.equal(v, donor.state_dict()[k]) for k, v in model.state_dict().items() if k not in head)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, classes or SMALL.last)
    assert all(not p.is_meta for p in model.parameters())
    warned = [r.getMessage() for r in caplog.records]
    if classes:
        assert len(warned) == 1
        assert "5 classes" in warned[0]
        assert "7" in warned[0]
        assert model.classifier.linear.weight.std() > 0
    else:
        assert warned == []


def test_the_number_of_classes_comes_from_the_file(donor, tmp_path):
    tuned = create_model(SMALL, num_classes=3)
    torch.save(tuned.state_dict(), tmp_path / "tuned.pth")
    assert create_model(SMALL, weights=tmp_path / "tuned.pth").num_classes == 3


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
@pytest.mark.parametrize("arch", [SMALL, SMALL_TREE], ids=["mbconv", "tree"])
def test_the_stem_is_adapted(arch, in_chans, tmp_path, caplog):
    source = create_model(arch).eval()
    torch.save(source.state_dict(), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, "proxylessnas"):
        model = create_model(arch, weights=tmp_path / "w.pth", in_chans=in_chans).eval()
    assert "input channels" in caplog.text
    grey = torch.rand(2, 1, 32, 32)
    with torch.inference_mode():
        expected = source(grey.expand(-1, 3, -1, -1))
        got = model(grey.expand(-1, in_chans, -1, -1))
    # One channel sums, and repeating keeps the sum of a grey image where the repetition is whole.
    if in_chans in (1, 6):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    stem = next(p for p in model.parameters() if p.dim() == 4)
    old = next(p for p in source.parameters() if p.dim() == 4)
    if in_chans > 1:
        torch.testing.assert_close(stem[:, 0], old[:, 0] * 3 / in_chans)


def test_a_misfit_is_an_error_and_changes_nothing(donor, tmp_path):
    other = Arch("other", stem=8, first=8, last=24, num_classes=5, stages=SMALL.stages[:1])
    torch.save(create_model(other).state_dict(), tmp_path / "other.pth")
    before = copy.deepcopy(donor)
    for strict in (True, False):
        with pytest.raises(WeightsMismatchError, match=r"other\.pth do not fit small") as caught:
            load_weights(donor, tmp_path / "other.pth", strict=strict)
        assert same_tensors(donor, before) == set()
    misfit = "feature_mix_layer.conv.weight"
    assert caught.value.shapes == {misfit: ((24, 8, 1, 1), (24, 16, 1, 1))}
    assert f"1 of another shape ({misfit} [24, 8, 1, 1], not [24, 16, 1, 1])" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsMismatchError):
        create_model(SMALL, weights=tmp_path / "other.pth")
    with pytest.raises(WeightsMismatchError, match="no tensor of the weights"):
        load_weights(donor, {"a": torch.zeros(1)}, strict=False)


def test_missing_and_unexpected_tensors(donor):
    state = {k: v.clone() for k, v in create_model(SMALL).state_dict().items()}
    del state["first_conv.bn.weight"]
    state["stray"] = torch.zeros(2)
    with pytest.raises(
        WeightsMismatchError, match=r"1 missing \(first_conv\.bn\.weight\), 1 unexpected \(stray\)"
    ):
        load_weights(donor, state)
    old = donor.state_dict()["first_conv.bn.weight"].clone()
    report = load_weights(donor, state, strict=False)
    assert (report.missing, report.unexpected) == (["first_conv.bn.weight"], ["stray"])
    assert torch.equal(donor.state_dict()["first_conv.bn.weight"], old)
    assert torch.equal(donor.state_dict()["first_conv.bn.bias"], state["first_conv.bn.bias"])


def test_weights_older_than_batch_counters_load(donor):
    state = {k: v for k, v in donor.state_dict().items() if not k.endswith("num_batches_tracked")}
    model = create_model(SMALL)
    load_weights(model, state)
    assert model.first_conv.bn.num_batches_tracked == 0


def test_half_precision_weights_become_the_default_type(donor, tmp_path):
    torch.save(
        {k: v.half() if v.is_floating_point() else v for k, v in donor.state_dict().items()},
        tmp_path / "half.pth",
    )
    model = create_model(SMALL, weights=tmp_path / "half.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.first_conv.bn.num_batches_tracked.dtype == torch.long


@pytest.mark.parametrize("arch", [SMALL, SMALL_TREE], ids=["mbconv", "tree"])
def test_one_file_holds_architecture_weights_and_preprocessing(arch, tmp_path):
    model = create_model(arch, num_classes=4, in_chans=1).eval()
    model.preprocessing = Preprocessing(input_size=32, resize=36, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    path = save_weights(model, tmp_path / "child.safetensors", {"note": "kept"})
    again = create_model(path).eval()
    assert same_tensors(again, model) == set()
    assert (again.num_classes, again.preprocessing) == (4, model.preprocessing)
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(again(x), model(x))
    assert proxylessnas.read_arch(path).num_classes == 4
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        assert file.metadata()["note"] == "kept"
    embedding = create_model(arch, num_classes=0)
    assert create_model(save_weights(embedding, tmp_path / "e.safetensors")).num_classes == 0
    tuned = create_model(tmp_path / "e.safetensors", num_classes=3)
    assert tuned.num_classes == 3, "a model without a classifier gets one"
    assert not tuned.classifier.linear.weight.is_meta
    headless = {k: v for k, v in model.state_dict().items() if not k.startswith("classifier")}
    with pytest.raises(WeightsMismatchError, match=r"missing \(classifier\.linear"):
        load_weights(create_model(arch, num_classes=4, in_chans=1), headless)
    with pytest.raises(ValueError, match="suffix"):
        save_weights(model, tmp_path / "child.pth")


def test_architecture_files(tmp_path):
    (tmp_path / "net.config").write_text(json.dumps(SMALL.to_official()))
    (tmp_path / "arch.txt").write_text(str(SMALL_TREE))
    assert create_model(tmp_path / "net.config").arch.to_official() == SMALL.to_official()
    assert create_model(str(tmp_path / "arch.txt")).arch == SMALL_TREE
    (tmp_path / "bad.txt").write_text("Arch(")
    with pytest.raises(ArchError, match=r"bad\.txt: line 1, column 6"):
        create_model(tmp_path / "bad.txt")
    for name, says in [
        ("absent.json", "No such file"),
        ("absent.txt", "No such file"),
        ("w.pth", "no architecture"),
    ]:
        with pytest.raises(ArchError, match=says):
            create_model(tmp_path / name)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArchError, match="not a text file"):
        create_model(tmp_path / "binary.txt")


def test_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(UnknownModelError, match="did you mean proxyless_mobile"):
        create_model("proxyles_mobil")
    with pytest.raises(WeightsNotFoundError, match=r"absent\.pth"):
        create_model("proxyless_cpu", weights=tmp_path / "absent.pth")
    with pytest.raises(WeightsNotFoundError, match="no weights are published for the architecture 'small'"):
        create_model(SMALL, pretrained=True)
    with pytest.raises(UnknownModelError):
        create_model("proxyless_cpu", weights="resnet18")
    (tmp_path / "page.pth").write_text("<html>moved</html>")
    with pytest.raises(WeightsCorruptError, match="web page"):
        create_model("proxyless_cpu", weights=tmp_path / "page.pth")
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"proxyless_cpu\.pth"):
        create_model("proxyless_cpu", pretrained=True)


def test_preprocessing_is_known_for_zoo_models_and_not_guessed_for_others():
    assert (
        create_model("proxyless_w025_r112").preprocessing == get_weights("proxyless_w025_r112").preprocessing
    )
    assert create_model("proxyless_cpu").preprocessing.input_size == 224
    assert create_model(SMALL).preprocessing is None
    assert create_model("proxyless_cpu").weights is None


def test_real_weights_by_path_by_cache_and_by_copy(shared_data, tmp_path, monkeypatch):
    """The tiny model's real file: through a path, as the cached original, and as its safetensors copy."""
    import shutil

    from proxylessnas.weights import cache

    path = shared_data / "weights" / "proxyless-w0.25-r112_imagenet.pth"
    by_path = create_model("proxyless_w025_r112", weights=path)
    record = get_weights("proxyless_w025_r112")
    assert by_path.weights == record, "a local file is recognised by its digest"
    monkeypatch.setenv("PROXYLESSNAS_CACHE", str(tmp_path))
    monkeypatch.setenv("PROXYLESSNAS_OFFLINE", "1")
    shutil.copyfile(path, cache.weights_path(record))
    by_cache = proxylessnas.proxyless_w025_r112(pretrained=True)
    assert cache.copy_path(record).is_file()
    by_copy = proxylessnas.proxyless_w025_r112(pretrained=True)
    assert same_tensors(by_cache, by_path) == same_tensors(by_copy, by_path) == set()
    assert by_copy.weights == record
    seven = proxylessnas.proxyless_w025_r112(pretrained=True, num_classes=7, in_chans=1)
    skip = {"first_conv.conv.weight"} | {k for k in seven.state_dict() if k.startswith("classifier")}
    assert same_tensors(seven, by_path, skip) == set()


def test_what_belongs_to_a_model_survives_its_file(tmp_path):
    model = create_model(SMALL, global_pool="avgmax").eval()
    model.categories = ("a", "b", "c", "d", "e")
    path = save_weights(model, tmp_path / "net.safetensors")
    again = create_model(path).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))
    assert (again.global_pool, again.categories) == ("avgmax", model.categories)
    assert create_model(path, global_pool="max").global_pool == "max"
    assert create_model(path, num_classes=3).categories == (), "a new classifier has new classes"
    again.reset_classifier(5)
    assert again.categories == ()
    load_weights(again, path)
    assert again.categories == model.categories
    save_weights(model, path, categories=list("vwxyz"))
    assert create_model(path).categories == tuple("vwxyz")


def test_what_save_weights_refuses(tmp_path):
    model, path = create_model(SMALL), tmp_path / "net.safetensors"
    with pytest.raises(ValueError, match="'arch' is reserved"):
        save_weights(model, path, {"arch": "my run 3"})
    with pytest.raises(TypeError, match="'epoch' is a int"):
        save_weights(model, path, {"epoch": 3})
    with pytest.raises(ValueError, match="2 class names for 5 classes"):
        save_weights(model, path, categories=["a", "b"])
    with pytest.raises(TypeError, match="Linear"):
        save_weights(torch.nn.Linear(2, 2), path)
    with pytest.raises(proxylessnas.ProxylessError, match=r"folder .*absent does not exist"):
        save_weights(model, tmp_path / "absent" / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entry", [{"categories": "7"}, {"num_classes": "many"}, {"preprocessing": "{}"}, {"wnids": "["}]
)
def test_a_malformed_header_is_refused(entry, donor, tmp_path):
    from proxylessnas.utils.tensor_files import write_safetensors

    write_safetensors(donor.state_dict(), tmp_path / "net.safetensors", {"arch": str(SMALL), **entry})
    with pytest.raises(WeightsCorruptError, match=r"net\.safetensors: the header is malformed"):
        create_model(tmp_path / "net.safetensors")


@pytest.mark.parametrize(
    "wrap", [lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_given_tensors_are_unwrapped_like_a_file(wrap, donor):
    model = create_model(SMALL)
    load_weights(model, wrap(donor.state_dict()))
    assert same_tensors(model, donor) == set()


def test_pretrained_is_a_switch():
    with pytest.raises(TypeError, match="weights="):
        proxylessnas.proxyless_cpu("x.pth")


def test_real_names_come_with_real_weights(shared_data, tmp_path):
    path = shared_data / "weights" / "proxyless-w0.25-r112_imagenet.pth"
    model = create_model("proxyless_w025_r112")
    assert model.categories == ()
    load_weights(model, path)
    assert (model.categories[285], model.wnids[285]) == ("Egyptian cat", "n02124075")
    unnamed = create_model(Arch.from_official(path.with_suffix(".json")))
    assert unnamed.preprocessing is None
    load_weights(unnamed, path)
    assert unnamed.preprocessing.mean == (0.5, 0.5, 0.5)
    again = create_model(save_weights(model, tmp_path / "x.safetensors"))
    assert again.categories == model.categories
    assert create_model(path).arch == model.arch, "a published .pth is known by its digest"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda s: s.pop("classifier.linear.bias"),
        lambda s: s.update({"classifier.junk": torch.zeros(1)}),
        lambda s: s.update({"classifier.linear.weight": torch.zeros(5, 23)}),
        lambda s: s.update({"classifier.linear.weight": torch.zeros(3_000_000, 0)}),
        lambda s: s.update({"classifier.linear.weight": torch.tensor(1.0)}),
        lambda s: s.update({"classifier.linear.bias": torch.zeros(4)}),
        lambda s: s.update({"first_conv.conv.weight": torch.zeros(8, 0, 3, 3)}),
        lambda s: s.update({"first_conv.conv.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int32)}),
    ],
)
def test_a_damaged_head_or_odd_tensor_is_an_error(spoil, donor, tmp_path):
    """A classifier is replaced only if it is a whole one for another number of classes."""
    state = {k: v.clone() for k, v in donor.state_dict().items()}
    spoil(state)
    torch.save(state, tmp_path / "w.pth")
    before = copy.deepcopy(donor)
    with pytest.raises(WeightsMismatchError):
        create_model(SMALL, weights=tmp_path / "w.pth")
    with pytest.raises(WeightsMismatchError):
        load_weights(donor, tmp_path / "w.pth")
    assert same_tensors(donor, before) == set()


@pytest.mark.parametrize(
    "kind", [lambda v: v.to("meta"), lambda v: v.to(torch.complex64), lambda v: v.to_sparse()]
)
def test_tensors_of_no_use_are_refused_before_anything_changes(kind, donor):
    state = dict(donor.state_dict())
    state["classifier.linear.bias"] = kind(state["classifier.linear.bias"])
    fresh = create_model(SMALL)
    before = copy.deepcopy(fresh)
    with pytest.raises(WeightsCorruptError, match=r"classifier\.linear\.bias"):
        load_weights(fresh, state)
    assert same_tensors(fresh, before) == set()
    with pytest.raises(TypeError, match="meta"):
        load_weights(create_model(SMALL).to("meta"), donor.state_dict())
    with pytest.raises(TypeError, match="Linear"):
        load_weights(torch.nn.Linear(2, 2), donor.state_dict())


def test_parameters_own_their_memory(donor, tmp_path):
    state = {k: v.clone() for k, v in donor.state_dict().items()}
    state["feature_mix_layer.bn.weight"] = torch.ones(1).expand(24)
    state["feature_mix_layer.bn.bias"] = state["feature_mix_layer.bn.running_mean"]
    torch.save(state, tmp_path / "w.pth")
    model = create_model(SMALL, weights=tmp_path / "w.pth")
    pointers = [v.untyped_storage().data_ptr() for v in model.state_dict().values()]
    assert len(set(pointers)) == len(pointers)
    with torch.no_grad():
        model.feature_mix_layer.bn.weight.add_(torch.arange(24.0))


def test_a_file_called_like_a_model_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "proxyless_w025_r112").write_text(str(SMALL))
    (tmp_path / "mine").write_text(str(SMALL))
    assert proxylessnas.proxyless_w025_r112().arch.name == "proxyless_w025_r112"
    assert create_model("mine").arch == SMALL


def test_models_made_under_inference_mode_can_be_trained(donor, tmp_path):
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    with torch.inference_mode():
        models = [
            create_model(SMALL),
            create_model(SMALL, weights=tmp_path / "w.pth", in_chans=4, num_classes=3),
        ]
    for model in models:
        model(torch.randn(2, model.in_chans, 32, 32)).sum().backward()


@pytest.mark.parametrize("what", [lambda m: m, lambda m: m.arch, lambda m: torch.nn.Linear(2, 3)])
def test_a_model_is_no_source_of_weights(what):
    """Whose architecture has published weights: those must not be taken in place of the model's own."""
    a, b = create_model("proxyless_cifar10_demo"), create_model("proxyless_cifar10_demo")
    before = {name: value.clone() for name, value in b.state_dict().items()}
    with pytest.raises(TypeError, match="weights are a file, a name, a record or a state dict"):
        load_weights(b, what(a))
    for name, value in b.state_dict().items():
        assert torch.equal(value, before[name])
