"""Training from images to a file: what comes out, what is refused, what is kept."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from train_tools import BUSY, TINY, checkpoint_of, differences_of, few_digits, tensors

import proxylessnas
from proxylessnas.errors import CheckpointError, DataError, ProxylessError
from proxylessnas.train import Recipe, Settings, finetune, open_data, train
from proxylessnas.train import checkpoint as checkpoints
from proxylessnas.train import trainer as engine_module


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that learns the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    recipe = BUSY.replace(
        epochs=5,
        batch_size=50,
        mixup_alpha=0.0,
        cutout=0,
        flip=False,
        dropout=0.0,
        drop_path=0.0,
        ema_decay=0.95,
        learning_rate=0.3,
        crop="none",
    )
    result = train(TINY, "digits", recipe, out=Settings(out, console=False))
    assert result.finished
    assert result.model == out / "model.safetensors"
    assert result.top1 is not None
    return out


def test_a_run_learns_and_leaves_a_model_that_opens(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    assert result["top1"] > 90
    model = proxylessnas.create_model(trained / "model.safetensors").eval()
    assert model.categories == tuple("0123456789")
    assert model.preprocessing is not None
    data = open_data("digits")
    assert data.val is not None
    prepare = model.preprocessing.build()
    with torch.inference_mode():
        inputs = torch.stack([prepare(data.val.read(i)) for i in range(len(data.val))])
        right = model(inputs).argmax(1) == torch.tensor(list(data.val.labels))
    assert 100 * right.double().mean() == pytest.approx(result["top1"])


def test_a_run_leaves_its_recipe_and_its_history(trained: Path) -> None:
    assert Recipe.from_toml(trained / "recipe.toml").epochs == 5
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == list(range(1, 6))
    rows = (trained / "epochs.csv").read_text().splitlines()
    assert len(rows) == 6
    assert checkpoint_of(trained)["position"]["epoch"] == 5
    assert any("held out" in line.get("text", "") for line in lines)


def test_best_is_the_best_epoch(trained: Path) -> None:
    best = checkpoint_of(trained, "best.pt")["position"]["best"]
    values = [float(row.split(",")[4]) for row in (trained / "epochs.csv").read_text().splitlines()[1:]]
    assert best["top1"] == pytest.approx(max(values), abs=1e-4)
    assert values[int(best["epoch"]) - 1] == pytest.approx(max(values))


def test_finetuning_starts_from_the_body_with_a_new_classifier(trained: Path, tmp_path: Path) -> None:
    """With the body frozen all the time, it comes out as it went in, BatchNorm statistics included."""
    recipe = BUSY.replace(epochs=2, freeze_epochs=1, warmup_epochs=0, mixup_alpha=0, ema_decay=0.0)
    data = few_digits()
    start = tensors(trained / "model.safetensors")
    states = []
    out = tmp_path / "run"
    finetune(trained / "model.safetensors", data, recipe, out=Settings(out, keep_every=1, console=False))
    for epoch in (1, 2):
        states.append(checkpoint_of(out, f"epoch-000{epoch}.pt")["model"])
    body = [name for name in start if not name.startswith("classifier") and "num_batches" not in name]
    assert all(torch.equal(start[name], states[0][name]) for name in body)
    assert not torch.equal(start["classifier.linear.weight"], states[0]["classifier.linear.weight"])
    assert differences_of({n: start[n] for n in body}, {n: states[1][n] for n in body}) > 1e-4


class Stopper:
    """Sends this process a signal after so many steps; the handler of the run notes it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
        self.at: int | None = None
        original = engine_module.WeightStep.__call__

        def call(step: object, inputs: object, targets: object, index: int, *more: object) -> object:
            if index + 1 == self.at:
                os.kill(os.getpid(), number)
            return original(step, inputs, targets, index, *more)  # type: ignore[arg-type]

        monkeypatch.setattr(engine_module.WeightStep, "__call__", call)


@pytest.mark.parametrize(
    ("stops", "changes"),
    [
        ([1], {}),
        ([2, 3, 7], {}),
        ([5], {}),
        ([4, 9, 14], {}),
        ([2, 6, 13], {"optimizer": "muon", "start_size": 5, "grow_epochs": 2}),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    stops: list[int], changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, settings = few_digits(), Settings(tmp_path / "whole", console=False)
    recipe = BUSY.replace(**changes)
    assert train(TINY, data, recipe, out=settings).finished
    stopper = Stopper(monkeypatch)
    broken = Settings(tmp_path / "broken", console=False)
    for stopper.at in stops:
        result = train(TINY, data, recipe, out=broken)
        assert not result.finished
        assert result.signal == signal.SIGTERM
        assert result.steps == stopper.at
        torch.manual_seed(99)  # whatever the next process has drawn before
    stopper.at = None
    assert train(TINY, data, recipe, out=broken).finished
    whole, parts = (checkpoint_of(tmp_path / name) for name in ("whole", "broken"))
    for key in ("model", "average"):
        assert all(torch.equal(whole[key][n], parts[key][n]) for n in whole[key])
    assert (
        differences_of(
            tensors(tmp_path / "whole" / "model.safetensors"),
            tensors(tmp_path / "broken" / "model.safetensors"),
        )
        == 0
    )
    assert whole["position"]["loss_sum"] == parts["position"]["loss_sum"]
    logs = [
        [row.split(",")[:6] for row in (tmp_path / name / "epochs.csv").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert logs[0] == logs[1]  # one clean history


def test_the_same_command_after_the_end_changes_nothing(trained: Path) -> None:
    before = tensors(trained / "model.safetensors")
    recipe = Recipe.from_toml(trained / "recipe.toml")
    again = train(TINY, "digits", recipe, out=Settings(trained, console=False))
    assert again.finished
    assert differences_of(before, tensors(trained / "model.safetensors")) == 0


def test_another_run_in_the_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    recipe = Recipe.from_toml(trained / "recipe.toml")
    settings = Settings(trained, console=False)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"learning_rate: 0\.7, was 0\.3.*another --out"):
        train(TINY, "digits", recipe.replace(learning_rate=0.7), out=settings)
    with pytest.raises(CheckpointError, match="other images"):
        train(TINY, few_digits(), recipe, out=settings)
    wider = proxylessnas.Arch.parse(str(TINY).replace("stem=8", "stem=16"))
    with pytest.raises(CheckpointError, match="another model"):
        train(wider, "digits", recipe, out=settings)
    after = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    assert before == after


def _short_run(folder: Path, epochs: int = 2) -> Settings:
    settings = Settings(folder, console=False)
    train(TINY, few_digits(), BUSY.replace(epochs=epochs), out=settings)
    return settings


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "html"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _short_run(tmp_path / "run")
    expected = tensors(settings.out / "model.safetensors")
    path = settings.out / "checkpoints" / "last.pt"
    data = bytearray(path.read_bytes())
    if harm == "cut":
        data = data[: len(data) // 2]
    elif harm == "flipped":
        data[len(data) // 2] ^= 1
    else:
        data = bytearray(b"" if harm == "empty" else b"<html>not found</html>")
    path.write_bytes(data)
    result = train(TINY, few_digits(), BUSY.replace(epochs=2), out=settings)
    assert result.finished
    assert differences_of(expected, tensors(settings.out / "model.safetensors")) == 0
    lines = (settings.out / "log.jsonl").read_text()
    assert "last.pt" in lines
    assert "the checkpoint before it is used" in lines


def test_without_a_sound_checkpoint_nothing_is_overwritten(tmp_path: Path) -> None:
    settings = _short_run(tmp_path / "run")
    for name in ("last.pt", "previous.pt"):
        (settings.out / "checkpoints" / name).write_bytes(b"PK\x03\x04 something")
    with pytest.raises(
        CheckpointError, match=r"(?s)no checkpoint of this run is sound.*last\.pt.*previous\.pt"
    ):
        train(TINY, few_digits(), BUSY.replace(epochs=2), out=settings)
    assert (settings.out / "checkpoints" / "last.pt").read_bytes().startswith(b"PK")


def test_a_checkpoint_written_between_two_renames_is_found(tmp_path: Path) -> None:
    """Killed after the old one was moved away and before the new one had its name."""
    settings = _short_run(tmp_path / "run")
    folder = settings.out / "checkpoints"
    (folder / "last.pt").rename(folder / "next.pt")
    state, problems = checkpoints.newest(folder)
    assert problems == []
    assert state is not None
    assert state["position"]["epoch"] == 2


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "was here"),)

    path = tmp_path / "last.pt"
    torch.save({"format": checkpoints.FORMAT, "version": 1, "model": Evil()}, path)
    with pytest.raises(CheckpointError, match=r"last\.pt"):
        checkpoints.load(path)
    assert not (tmp_path / "was here").exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of a training run"):
        checkpoints.load(path)
    torch.save({"format": checkpoints.FORMAT, "version": 99}, path)
    with pytest.raises(CheckpointError, match="another version"):
        checkpoints.load(path)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    """The last checkpoint is from before, and is sound."""
    settings = Settings(tmp_path / "run", console=False, save_every=2)
    recipe = BUSY.replace(learning_rate=1000.0, weight_decay=1.0, warmup_epochs=0.0, batch_size=5)
    recipe = recipe.replace(ema_decay=0.0)
    with pytest.raises(ProxylessError, match=r"not finite .* (since|after) step (\d+)") as caught:
        train(TINY, few_digits(), recipe, out=settings)
    step = int(str(caught.value).split(" step ")[1].split()[0].strip(";"))
    state = checkpoint_of(settings.out)
    assert state["position"]["global_step"] <= step


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    from proxylessnas.utils.files import locked

    out = tmp_path / "run"
    out.mkdir()
    with locked(out / ".running", 1.0), pytest.raises(CheckpointError, match="another run is writing there"):
        train(TINY, few_digits(), BUSY, out=out)


def test_parts_of_a_step_add_up(tmp_path: Path) -> None:
    """Accumulated over two parts a step is the same, as long as BatchNorm does not see the parts."""
    models = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        model = proxylessnas.create_model(TINY)
        model.freeze_bn()
        recipe = BUSY.replace(
            epochs=1, accumulate=accumulate, mixup_alpha=0, dropout=0, drop_path=0, ema_decay=0.0
        )
        train(model, few_digits(), recipe, out=Settings(tmp_path / str(accumulate), console=False))
        models.append(model.state_dict())
    assert differences_of(*models) < 1e-5


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_learns_too(amp: str, tmp_path: Path) -> None:
    recipe = BUSY.replace(
        epochs=4,
        batch_size=50,
        mixup_alpha=0,
        cutout=0,
        flip=False,
        crop="none",
        learning_rate=0.3,
        amp=amp,
        clip_norm=5.0,
    )
    result = train(TINY, "digits", recipe, out=Settings(tmp_path / "run", console=False))
    assert result.top1 is not None
    assert result.top1 > 60
    dtypes = {t.dtype for t in tensors(tmp_path / "run" / "model.safetensors").values()}
    assert dtypes <= {torch.float32, torch.int64}


def test_the_run_ends_with_the_best_weights_if_asked(tmp_path: Path) -> None:
    settings = Settings(tmp_path / "run", console=False)
    recipe = BUSY.replace(keep="best", recalibrate_batches=2)
    train(TINY, few_digits(), recipe, out=settings)
    best = checkpoint_of(settings.out, "best.pt")["average"]
    model = tensors(settings.out / "model.safetensors")
    assert torch.equal(model["classifier.linear.weight"], best["classifier.linear.weight"])
    name = "first_conv.bn.running_mean"
    assert not torch.equal(model[name], best[name])  # computed anew


def test_wrong_use_is_told_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    model = proxylessnas.create_model(TINY, num_classes=3)
    with pytest.raises(DataError, match="the model has 3 outputs, but digits has 10 classes"):
        train(model, few_digits(), BUSY, out=out)
    with pytest.raises(TypeError, match="model of this package"):
        train(torch.nn.Linear(2, 2), few_digits(), BUSY, out=out)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="threads"):
        Settings(out, threads=0)
    assert not (out / "checkpoints").exists()


def test_damaged_images_are_named_and_too_many_stop_the_run(tmp_path: Path) -> None:
    from PIL import Image

    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(30):
            Image.new("RGB", (12, 10), (colour[0] + i, 0, colour[2])).save(
                tmp_path / "data" / name / f"{i}.png"
            )
    (tmp_path / "data" / "red" / "7.png").write_bytes(b"no image")
    recipe = BUSY.replace(epochs=1, batch_size=8, resize=None, val_fraction=0.2)
    with pytest.raises(DataError, match=r"(?s)1 of 48 training images cannot be read.*7\.png"):
        train(TINY, tmp_path / "data", recipe, out=Settings(tmp_path / "strict", console=False, workers=0))
    loose = Settings(tmp_path / "loose", console=False, workers=0, max_unreadable=0.1)
    assert train(TINY, tmp_path / "data", recipe, out=loose).finished
    assert "7.png" in (tmp_path / "loose" / "log.jsonl").read_text()


def test_a_compiled_model_is_trained_and_saved_under_its_own_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend is torch's own "eager", as a C compiler is not everywhere and takes a minute."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend="eager"))
    recipe = BUSY.replace(epochs=1, compile=True)
    train(TINY, few_digits(), recipe, out=Settings(tmp_path / "run", console=False))
    train(TINY, few_digits(), recipe.replace(compile=False), out=Settings(tmp_path / "plain", console=False))
    models = [tensors(tmp_path / name / "model.safetensors") for name in ("run", "plain")]
    assert differences_of(*models) < 1e-4


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    """The loss of a step may be fine and its update not; the last step's is seen by no later loss."""
    settings = Settings(tmp_path / "run", console=False, save_every=1)
    recipe = BUSY.replace(
        optimizer="adamw", learning_rate=1000.0, weight_decay=1.0, schedule="constant", warmup_epochs=0.0,
        ema_decay=0.0, epochs=5,
    )  # fmt: skip
    with pytest.raises(ProxylessError, match="not finite"):
        train(TINY, few_digits(), recipe, out=settings)
    for name in ("last.pt", "previous.pt"):
        state = checkpoint_of(settings.out, name)
        assert all(bool(tensor.isfinite().all()) for tensor in state["model"].values())
    assert not (settings.out / "model.safetensors").exists()


def test_a_model_of_the_users_is_given_back_unfrozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = Stopper(monkeypatch)
    stopper.at = 2
    model = proxylessnas.create_model(TINY)
    recipe = BUSY.replace(freeze_epochs=2, drop_path=0.0)
    settings = Settings(tmp_path / "run", console=False)
    assert not train(model, few_digits(), recipe, out=settings).finished
    assert all(p.requires_grad for p in model.parameters())
    stopper.at = None
    assert train(model, few_digits(), recipe, out=settings).finished
    with pytest.raises(DataError, match="drop_path is built into a model"):
        train(model, few_digits(), BUSY, out=tmp_path / "other")
    with pytest.raises(DataError, match="trained with the weights it has"):
        finetune(model, few_digits(), recipe, out=tmp_path / "other", weights="none.pth")


def test_the_best_is_there_when_a_run_is_killed_before_the_last_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = BUSY.replace(keep="best")
    whole = Settings(tmp_path / "whole", console=False)
    train(TINY, few_digits(), recipe, out=whole)
    replace = os.replace

    def killed(source: object, target: object) -> None:
        if str(target).endswith("best.pt"):
            replace(source, target)  # type: ignore[arg-type]
            raise KeyboardInterrupt  # as good as a kill: nothing after it is written
        replace(source, target)  # type: ignore[arg-type]

    broken = Settings(tmp_path / "broken", console=False)
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        train(TINY, few_digits(), recipe, out=broken)
    monkeypatch.setattr(os, "replace", replace)
    train(TINY, few_digits(), recipe, out=broken)
    models = [tensors(s.out / "model.safetensors") for s in (whole, broken)]
    assert differences_of(*models) == 0


def test_other_weights_to_start_from_are_another_run(trained: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    base = tmp_path / "base.safetensors"
    model = proxylessnas.create_model(trained / "model.safetensors")
    proxylessnas.save_weights(model, base)
    recipe = BUSY.replace(epochs=1, mixup_alpha=0)
    settings = Settings(tmp_path / "run", console=False)
    finetune(base, few_digits(), recipe, out=settings)
    state = load_file(base)
    state["first_conv.conv.weight"] += 1
    model.load_state_dict(state)
    proxylessnas.save_weights(model, base)
    with pytest.raises(CheckpointError, match="began with other weights"):
        finetune(base, few_digits(), recipe, out=settings)


def test_from_scratch_takes_the_architecture_of_a_file_alone(trained: Path, tmp_path: Path) -> None:
    recipe = BUSY.replace(epochs=1, learning_rate=1e-9)
    train(trained / "model.safetensors", few_digits(), recipe, out=Settings(tmp_path / "run", console=False))
    old, new = tensors(trained / "model.safetensors"), tensors(tmp_path / "run" / "model.safetensors")
    assert differences_of(old, new) > 0.1


def test_models_and_batches_that_cannot_work_are_named(tmp_path: Path) -> None:
    grey = proxylessnas.create_model(TINY, in_chans=1)
    with pytest.raises(DataError, match="takes images of 1 channels"):
        train(grey, few_digits(), BUSY.replace(drop_path=0.0), out=tmp_path / "grey")
    recipe = BUSY.replace(batch_size=1, image_size=4, resize=4, cutout=0, mixup_alpha=0)
    with pytest.raises(DataError, match="BatchNorm cannot work with 1 image"):
        train(TINY, few_digits(), recipe, out=Settings(tmp_path / "one", console=False))
    with pytest.raises(DataError, match="leave val out"):
        train(TINY, few_digits(), BUSY, out=tmp_path / "val", val=tmp_path)


def test_a_signal_during_validation_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The epoch is saved before it is validated; going on validates first."""
    whole, broken = (Settings(tmp_path / name, console=False) for name in ("whole", "broken"))
    train(TINY, few_digits(), BUSY, out=whole)
    measure = engine_module.Trainer.measure
    signals = [signal.SIGTERM]

    def interrupted(self: engine_module.Trainer, *args: object, **options: object) -> object:
        if signals:
            os.kill(os.getpid(), signals.pop())
        return measure(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_module.Trainer, "measure", interrupted)
    stopped = train(TINY, few_digits(), BUSY, out=broken)
    assert not stopped.finished
    assert stopped.steps == 5
    state = checkpoint_of(broken.out)["position"]
    assert (state["epoch"], state["step"]) == (0, 5)
    assert train(TINY, few_digits(), BUSY, out=broken).finished
    models = [tensors(s.out / "model.safetensors") for s in (whole, broken)]
    assert differences_of(*models) == 0
    tables = [(s.out / "epochs.csv").read_text().splitlines() for s in (whole, broken)]
    assert [row.split(",")[:6] for row in tables[0]] == [row.split(",")[:6] for row in tables[1]]
