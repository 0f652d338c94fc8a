"""Learning from a teacher: the loss, which models can teach, and runs with one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from train_tools import BUSY, TINY, differences_of, few_digits, noise_folder, run_command, tensors

import proxylessnas
from proxylessnas.data.transforms import Preprocessing
from proxylessnas.errors import CheckpointError, DataError
from proxylessnas.train import Recipe, Settings, train
from proxylessnas.train.distillation import distillation_loss, open_teacher, open_teachers
from proxylessnas.train.step import WeightStep
from proxylessnas.train.trainer import Trainer

PUPIL = Preprocessing(8, 8, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
CPU = torch.device("cpu")


def settings(out: Path, **more: Any) -> Settings:
    return Settings(out, console=False, device="cpu", **more)


class Constant(nn.Module):
    """Answers every image alike, and remembers what it was shown."""

    def __init__(self, answer: list[float]) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer))
        self.seen: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Constant:
        twin = Constant(self.answer.tolist())
        twin.seen = self.seen
        return twin

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.answer.expand(len(x), -1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a model that was trained on a few digits."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    recipe = BUSY.replace(epochs=6, dropout=0, drop_path=0, mixup_alpha=0, cutout=0)
    result = train(TINY, few_digits(), recipe, out=settings(out))
    assert result.model is not None
    return result.model


def test_the_loss_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    logits, taught = torch.randn(5, 4, dtype=torch.double), torch.randn(5, 4, dtype=torch.double)
    targets, t = torch.tensor([0, 3, 1, 2, 2]), 3.0
    p = (taught / t).softmax(1)
    divergence = (p * (p.log() - (logits / t).softmax(1).log())).sum(1).mean() * t**2
    labels = F.cross_entropy(logits, targets, label_smoothing=0.1)
    found = distillation_loss(logits, targets, taught, share=0.3, temperature=t, smoothing=0.1)
    assert float(found) == pytest.approx(float(0.7 * labels + 0.3 * divergence), abs=1e-12)
    alone = distillation_loss(logits, targets, taught, share=1.0, temperature=t, smoothing=0.1)
    assert float(alone) == pytest.approx(float(divergence), abs=1e-12)
    shares = F.one_hot(targets, 4).double()
    mixed = distillation_loss(logits, shares, taught, share=0.3, temperature=t, smoothing=0.1)
    assert float(mixed) == pytest.approx(float(found), abs=1e-12)


def test_gradients_have_one_size_at_any_temperature() -> None:
    """At a high temperature the gradient of the teacher's part is that of matched logits, over classes."""
    torch.manual_seed(0)
    taught = torch.randn(6, 5, dtype=torch.double)
    taught -= taught.mean(1, keepdim=True)
    logits = torch.randn(6, 5, dtype=torch.double)
    logits = (logits - logits.mean(1, keepdim=True)).requires_grad_()
    labels = torch.zeros(6, dtype=torch.long)
    distillation_loss(logits, labels, taught, share=1.0, temperature=1e4, smoothing=0.0).backward()
    wanted = (logits.detach() - taught) / 5 / 6
    torch.testing.assert_close(logits.grad, wanted, rtol=1e-3, atol=1e-6)


def test_a_pupil_that_answers_like_its_teacher_has_nothing_to_learn() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = distillation_loss(
        logits, torch.zeros(4, dtype=torch.long), logits.detach(), share=1.0, temperature=2.0, smoothing=0.0
    )
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("taught", [False, True])
def test_parts_of_a_step_are_taught_their_own_answers(taught: bool) -> None:
    """Two accumulated parts give the gradients of one whole batch (a model without BatchNorm)."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(8, 3, 4, 4), torch.randint(0, 10, (8,))
    answers = torch.randn(8, 10) * 5 if taught else None
    found = []
    for accumulate in (1, 2):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        recipe = Recipe(batch_size=8, accumulate=accumulate)
        optimizer = torch.optim.SGD([{"params": list(model.parameters()), "base": 0.1}], 0.1)
        WeightStep(model, optimizer, recipe, CPU)(inputs, targets, 0, 1.0, answers)
        found.append(model.state_dict())
    assert differences_of(*found) < 1e-6


def test_the_teacher_sees_the_pupils_pixels_as_it_wants_them() -> None:
    data = few_digits()
    model = proxylessnas.create_model(TINY).eval()
    model.preprocessing = Preprocessing(16, 16, (0.1, 0.2, 0.3), (0.5, 0.5, 0.4))
    model.categories = data.categories
    teacher = open_teacher(model, data, PUPIL, CPU)
    pixels = torch.rand(3, 3, 8, 8)
    as_pupil = (pixels - torch.tensor(PUPIL.mean)[:, None, None]) / torch.tensor(PUPIL.std)[:, None, None]
    own = model.preprocessing
    as_teacher = (pixels - torch.tensor(own.mean)[:, None, None]) / torch.tensor(own.std)[:, None, None]
    as_teacher = F.interpolate(as_teacher, (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(teacher(as_pupil, PUPIL), model(as_teacher), rtol=1e-4, atol=1e-5)


def test_a_mirrored_teacher_answers_alike_for_a_image_and_its_mirror_image(tmp_path: Path) -> None:
    model = proxylessnas.create_model(TINY).eval()
    model.preprocessing = PUPIL
    teachers = open_teachers(model, few_digits(), PUPIL, CPU)
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        wanted = (model(x) + model(x.flip(3))) / 2
    for view in (x, x.flip(3)):
        found = teachers(view, PUPIL, mirrored=True)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(teachers(x, PUPIL), wanted, atol=1e-4)
    teacher = Constant([0.0] * 10)
    recipe = BUSY.replace(epochs=1, teacher_mirrored=True)
    train(TINY, few_digits(), recipe, out=settings(tmp_path / "run"), teacher=teacher)
    assert len(teacher.seen) == 2 + 2 * 5  # two looks at its outputs, and twice each step


@pytest.mark.parametrize("works", [True, False])
def test_a_model_of_ours_teaches_in_its_quick_form(works: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm is folded; the fused operators are used where they are there, and compute the same."""
    from proxylessnas.models.fuse import FusedConv
    from proxylessnas.train import distillation as module

    def broken(*_: Any) -> nn.Module:
        raise RuntimeError("no such operator")

    if not works:
        monkeypatch.setattr(module, "fuse", broken)
    model = proxylessnas.create_model(TINY)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_mean, -1, 1)
    model.preprocessing = PUPIL
    teacher = open_teacher(model, few_digits(), PUPIL, CPU)
    kinds = {type(layer) for layer in teacher.model.modules()}
    assert nn.BatchNorm2d not in kinds
    assert (FusedConv in kinds) == (works and torch.backends.mkldnn.is_available())
    x = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x, PUPIL), model.eval()(x), rtol=1e-4, atol=1e-5)


def test_several_teachers_answer_with_their_mean_logits(tmp_path: Path) -> None:
    data, x = few_digits(), torch.randn(4, 3, 8, 8)
    one, two = Constant([1.0, 3.0] + [0.0] * 8), Constant([0.0, -1.0] + [2.0] * 8)
    both = open_teachers([one, two], data, PUPIL, CPU)
    torch.testing.assert_close(both(x, PUPIL), torch.tensor([[0.5, 1.0] + [1.0] * 8]).expand(4, -1))
    alone = open_teachers(one, data, PUPIL, CPU)
    torch.testing.assert_close(alone(x, PUPIL), one(x))
    assert (both.names, alone.names) == (["Constant", "Constant"], ["Constant"])
    assert both.digest != open_teachers([two, one], data, PUPIL, CPU).digest != alone.digest
    with pytest.raises(DataError, match="no teacher is given"):
        open_teachers([], data, PUPIL, CPU)
    recipe = BUSY.replace(epochs=1)
    result = train(TINY, data, recipe, out=settings(tmp_path / "run"), teacher=[one, two])
    assert result.finished


def test_the_callers_module_stays_as_it_is() -> None:
    model = proxylessnas.create_model(TINY).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    teacher = open_teacher(model, few_digits(), PUPIL, CPU)
    teacher(torch.randn(4, 3, 8, 8), PUPIL)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert differences_of(before, dict(model.state_dict())) == 0


def test_a_model_that_learns_from_a_teacher_alone_becomes_like_it(tmp_path: Path) -> None:
    """The teacher finds every digit a three: so does the pupil, whatever the labels say."""
    answer = [0.0] * 10
    answer[3] = 6.0
    teacher = Constant(answer)
    recipe = BUSY.replace(epochs=2, teacher_share=1.0, mixup_alpha=0, dropout=0, drop_path=0)
    data = few_digits()
    result = train(TINY, data, recipe, out=settings(tmp_path / "run"), teacher=teacher)
    assert data.val is not None
    threes = 100 * sum(label == 3 for label in data.val.labels) / len(data.val)
    assert result.top1 == pytest.approx(threes, abs=3)
    recipe = recipe.replace(teacher_share=0.0)
    labels = train(TINY, data, recipe, out=settings(tmp_path / "labels"), teacher=teacher)
    plain = train(TINY, data, recipe, out=settings(tmp_path / "plain"))
    assert labels.model is not None
    assert plain.model is not None
    assert differences_of(tensors(labels.model), tensors(plain.model)) == 0


def test_small_images_are_shown_to_the_teacher_whole(tmp_path: Path) -> None:
    teacher = Constant([0.0] * 10)
    recipe = BUSY.replace(epochs=2, start_size=4, grow_epochs=1)
    train(TINY, few_digits(), recipe, out=settings(tmp_path / "run"), teacher=teacher)
    assert {tuple(x.shape[1:]) for x in teacher.seen} == {(3, 8, 8)}
    assert len(teacher.seen) == 2 + 2 * 5  # two looks at its outputs, and each step


def test_an_exported_program_teaches(trained: Path, tmp_path: Path) -> None:
    from proxylessnas import deploy

    deploy.export(trained, tmp_path / "net.pt2")
    data = few_digits()
    own, program = (open_teacher(p, data, PUPIL, CPU) for p in (trained, tmp_path / "net.pt2"))
    x = torch.randn(7, 3, 8, 8)
    model_view = proxylessnas.create_model(trained).preprocessing
    assert model_view is not None
    torch.testing.assert_close(own(x, model_view), program(x, model_view), rtol=1e-4, atol=1e-4)


def test_a_program_of_ours_brings_its_classes_and_preprocessing(tmp_path: Path) -> None:
    from proxylessnas import deploy

    data = few_digits()
    model = proxylessnas.create_model(TINY).eval()
    model.preprocessing = Preprocessing(8, 8, (0.1, 0.2, 0.3), (0.5, 0.5, 0.4))
    model.categories = data.categories
    deploy.export(model, tmp_path / "net.pt2")
    own, program = (open_teacher(source, data, PUPIL, CPU) for source in (model, tmp_path / "net.pt2"))
    x = torch.randn(7, 3, 8, 8)
    torch.testing.assert_close(own(x, PUPIL), program(x, PUPIL), rtol=1e-4, atol=1e-4)
    model.categories = tuple(reversed(data.categories))
    deploy.export(model, tmp_path / "other.pt2")
    with pytest.raises(DataError, match="has the classes of digits in another order"):
        open_teacher(tmp_path / "other.pt2", data, PUPIL, CPU)


def test_a_program_with_a_fixed_batch_cannot_teach(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 8, 8),)), tmp_path / "two.pt2")
    with pytest.raises(DataError, match=r"takes 2 images a call and not 3 .*: its batch size has to be open"):
        open_teacher(tmp_path / "two.pt2", few_digits(), PUPIL, CPU)


def test_teachers_that_something_was_made_of() -> None:
    """A traced model is put into evaluation mode; a wrapped one of ours still says how its images are."""
    data = few_digits()
    traced = torch.fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 10)))
    teacher, x = open_teacher(traced, data, PUPIL, CPU), torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(teacher(x, PUPIL), teacher(x, PUPIL), rtol=0, atol=0)
    model = proxylessnas.create_model(TINY)
    model.preprocessing = Preprocessing(8, 8, (0.1, 0.2, 0.3), (0.5, 0.5, 0.4))
    wrapped = open_teacher(torch.compile(model), data, PUPIL, CPU)
    assert wrapped.preprocessing == model.preprocessing


def test_a_teacher_beside_mixed_precision(trained: Path, tmp_path: Path) -> None:
    recipe = BUSY.replace(epochs=1, amp="bf16")
    result = train(TINY, few_digits(), recipe, out=settings(tmp_path / "run"), teacher=trained)
    assert result.finished


def test_two_processes_learn_from_one_teacher(trained: Path, tmp_path: Path) -> None:
    """They end with the weights of one process with the whole batch."""
    (tmp_path / "tiny.txt").write_text(str(TINY), encoding="utf-8")
    images = noise_folder(tmp_path / "pictures")
    model = proxylessnas.create_model(TINY, num_classes=10)
    proxylessnas.save_weights(model, tmp_path / "teacher.safetensors")
    recipe = BUSY.replace(
        epochs=1, mixup_alpha=0, cutmix_alpha=0, dropout=0, drop_path=0, sync_bn=True, ema_decay=0
    )
    (tmp_path / "recipe.toml").write_text(recipe.to_toml(), encoding="utf-8")
    for processes in (1, 2):
        words = [
            "train",
            str(tmp_path / "tiny.txt"),
            str(images),
            "--recipe",
            str(tmp_path / "recipe.toml"),
        ]
        words += ["--teacher", str(tmp_path / "teacher.safetensors"), "--device", "cpu", "--threads", "1"]
        out = str(tmp_path / f"of{processes}")
        ran = run_command(*words, "--workers", "0", "--quiet", "--out", out, processes=processes)
        assert ran.returncode == 0, ran.stderr
    a, b = (tensors(tmp_path / name / "model.safetensors") for name in ("of1", "of2"))
    assert differences_of(a, b) < 1e-4


def test_the_command_with_a_teacher_goes_on_bitwise(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is cut short ends like one in a piece; without its teacher it does not go on."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(BUSY.to_toml(), encoding="utf-8")
    arch = tmp_path / "tiny.txt"
    arch.write_text(str(TINY), encoding="utf-8")
    words = ["train", str(arch), "digits", "--limit", "10", "--recipe", str(recipe), "--device", "cpu"]
    words += ["--threads", "1", "--workers", "0", "--quiet"]
    taught = [*words, "--teacher", str(trained)]
    whole = run_command(*taught, "--out", str(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr

    # In this process: a signal in the fourth step, then the command again.
    steps, original = 0, Trainer._taught

    def counted(self: Trainer, inputs: Tensor) -> Tensor | None:
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, inputs)

    monkeypatch.setattr(Trainer, "_taught", counted)
    out = settings(tmp_path / "cut", threads=1, workers=0)
    threads = torch.get_num_threads()
    try:
        cut = train(TINY, few_digits(), BUSY, out=out, teacher=trained)
    finally:
        torch.set_num_threads(threads)
    assert not cut.finished
    refused = run_command(*words, "--out", str(tmp_path / "cut"))
    assert refused.returncode != 0
    assert "holds another run, with a teacher" in refused.stderr
    again = run_command(*taught, "--out", str(tmp_path / "cut"))
    assert again.returncode == 0, again.stderr
    a, b = (tensors(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert differences_of(a, b) == 0


def test_the_report_says_who_taught(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from proxylessnas.report import write_report

    out = tmp_path / "run"
    train(TINY, few_digits(), BUSY.replace(epochs=1), out=settings(out), teacher=[trained, trained])
    write_report(out, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert f"{trained} + {trained} (0.9 of the loss, at temperature 4.0)" in page
    recipe = out / "recipe.toml"
    text = recipe.read_text(encoding="utf-8").replace("teacher_mirrored = false", "teacher_mirrored = true")
    recipe.write_text(text, encoding="utf-8")
    write_report(out, tmp_path / "page.html")
    mirrored = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "(0.9 of the loss, at temperature 4.0, with mirror images)" in mirrored
    assert f"--recipe {out}/recipe.toml --teacher {trained} --teacher {trained} --out NEW" in page


def test_another_teacher_is_another_run(tmp_path: Path) -> None:
    recipe = BUSY.replace(epochs=1)
    train(TINY, few_digits(), recipe, out=settings(tmp_path / "run"), teacher=Constant([0.0] * 10))
    with pytest.raises(CheckpointError, match="with another teacher or none"):
        train(TINY, few_digits(), recipe, out=settings(tmp_path / "run"), teacher=Constant([1.0] + [0.0] * 9))
    with pytest.raises(CheckpointError, match="with a teacher"):
        train(TINY, few_digits(), recipe, out=settings(tmp_path / "run"))


def test_a_teacher_that_cannot_teach_is_one_clear_error(trained: Path, tmp_path: Path) -> None:
    data = few_digits()

    def refused(source: Any, words: str) -> None:
        with pytest.raises(DataError, match=words):
            open_teacher(source, data, PUPIL, CPU)

    refused(tmp_path / "none.pt2", r"none\.pt2 is not there")
    refused(trained.parent, "is a folder: name the model.safetensors in it")
    refused(tmp_path / "net.pth", "does not say which model it is of")
    refused(Constant([0.0] * 9 + [float("nan")]), "answers with NaN or infinite logits")
    (tmp_path / "bad.pt2").write_bytes(b"PK not a program")
    refused(tmp_path / "bad.pt2", r"bad\.pt2: not a program of torch\.export")
    refused(Constant([0.0] * 4), "gives .4. outputs an image, but digits has 10 classes")
    refused(nn.Linear(5, 10), r"cannot take inputs of .2, 3, 8, 8.")
    numbered = Constant([0.0] * 10)
    numbered.categories = 10  # a number of classes is no list of their names
    assert open_teacher(numbered, data, PUPIL, CPU).name == "Constant"
    other = proxylessnas.create_model(TINY)
    other.categories = tuple(reversed(data.categories))
    refused(other, "has the classes of digits in another order")
    other.categories = tuple("abcdefghij")
    refused(other, "does not know '0'; digits has 10")
