"""Quantisation-aware fine-tuning: the training engine trains the model as its 8-bit file computes.

For models that no scheme of scales alone keeps accurate. Weights and activations are rounded in the forward
pass, the gradients pass through (Jacob et al. 2018, section 3); ranges and BatchNorm statistics stay as they
are, as the file has both fixed.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...errors import ExportError, shown
from ...models.base import ImageClassifier
from .fake_quant import Ranges, observe, simulated
from .schemes import Scheme

if TYPE_CHECKING:
    from ...train import Data, Recipe

#: Small steps from where the model is; what the classes are it knows already.
_RATE = 1e-3
_BATCH = 32


def quantisation_aware(
    model: ImageClassifier,
    data: Data | str | os.PathLike[str],
    batches: Sequence[Tensor],
    scheme: Scheme,
    *,
    epochs: int = 1,
    recipe: Recipe | None = None,
    ranges: Ranges | None = None,
    out: str | os.PathLike[str] | None = None,
) -> ImageClassifier:
    """Return a copy of a model, trained to lose nothing in 8 bits; evaluation mode.

    Args:
        model: on the CPU, with the classes of the images.
        data: labelled images to train on, as :func:`proxylessnas.train.open_data` takes them.
        batches: calibration inputs [N, C, H, W], by which the ranges are chosen.
        scheme: how the file will be written.
        epochs: passes over the images.
        recipe: everything else about the training; None takes small steps, and crops and mirror images.
        ranges: of the activations; None chooses them by the scheme's rule.
        out: folder of the run, with its log and checkpoints; None keeps none of it.

    Raises:
        ExportError: ``epochs`` is no whole number above zero.
        DataError: the images cannot be used, or have other classes than the model.
    """
    from ...train import Settings, finetune, open_data, read_recipe

    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ExportError(f"qat_epochs must be a whole number of at least 1, not {shown(epochs)}")
    twin = copy.deepcopy(model)
    own = recipe is None
    if recipe is None:
        recipe = read_recipe("finetune").replace(
            epochs=epochs, batch_size=_BATCH, learning_rate=_RATE, warmup_epochs=0.0, freeze_epochs=0,
            label_smoothing=0.0, dropout=0.0, ema_decay=0.0, image_size=None,
        )  # fmt: skip
    if isinstance(data, (str, os.PathLike)):
        categories = list(model.categories) or None
        data = open_data(data, val_fraction=recipe.val_fraction, seed=recipe.seed, categories=categories)
    if own and 0 < len(data.train) < recipe.batch_size:
        recipe = recipe.replace(batch_size=len(data.train))
    known: dict[str, Any] = {
        name: getattr(twin, name) for name in ("preprocessing", "categories", "wnids", "weights")
    }
    frozen = twin._frozen_bn
    if ranges is None:
        ranges = observe(model, batches, scheme)
    twin.freeze_bn()
    with tempfile.TemporaryDirectory(prefix="proxylessnas-qat-") as folder, simulated(twin, ranges, scheme):
        where = Path(out) if out is not None else Path(folder) / "run"
        finetune(twin, data, recipe, out=Settings(where, device="cpu", workers=0, console=False))
    twin.freeze_bn(frozen)
    for name, value in known.items():
        setattr(twin, name, value)
    return twin.eval()
