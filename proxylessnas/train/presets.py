"""Ready-made recipes by name: the published ones, number by number, and defaults for own images.

Each is a table as a recipe file has it: ``base`` names the one that it starts from.
"""

from __future__ import annotations

from typing import Any

from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD

# The authors' script for retraining on ImageNet: SGD with Nesterov momentum 0.9, the rate 0.05 lowered along
# a cosine at every step, decay for everything but BatchNorm (so for the classifier's bias too), colour jitter
# "strong". Its training crop keeps 8 % of an image or more; validation resizes to 256 and crops 224. Dropout
# is the model's own.
_IMAGENET: dict[str, Any] = {
    "epochs": 300, "batch_size": 256,
    "image_size": 224, "resize": 256, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bilinear",
    "crop": "resized", "crop_scale_min": 0.08, "flip": True,
    "jitter_brightness": 0.4, "jitter_contrast": 0.4, "jitter_saturation": 0.4, "jitter_hue": 0.1,
    "label_smoothing": 0.1,
    "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 4e-5, "no_decay": "bn",
    "schedule": "cosine", "warmup_epochs": 0.0, "final_rate": 0.0,
}  # fmt: skip

# The authors' CIFAR code: decay for everything, Cutout after normalisation (so that the square has the mean
# colour), their own mean and standard deviation. The published figure was reached with 300 epochs, or with
# 600 and drop path.
_CIFAR10: dict[str, Any] = {
    "epochs": 300, "batch_size": 64,
    "image_size": 32, "resize": 32,
    "mean": (125.3 / 255, 123.0 / 255, 113.9 / 255), "std": (63.0 / 255, 62.1 / 255, 66.7 / 255),
    "crop": "padded", "crop_padding": 4, "flip": True, "cutout": 16,
    "label_smoothing": 0.0,
    "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "no_decay": "none",
    "schedule": "cosine", "warmup_epochs": 0.0, "final_rate": 0.0,
}  # fmt: skip

# Ours, for a folder of photos and weights from ImageNet. The new classifier is trained alone for an epoch,
# which keeps its first, random gradients from the body; early blocks, whose filters suit most photos, change
# less than late ones. The average of the weights over about 100 steps steadies what few images make jumpy.
_FINETUNE: dict[str, Any] = {
    "epochs": 20, "batch_size": 32,
    "crop": "resized", "crop_scale_min": 0.35, "flip": True,
    "jitter_brightness": 0.2, "jitter_contrast": 0.2, "jitter_saturation": 0.2,
    "label_smoothing": 0.1, "dropout": 0.2,
    "optimizer": "sgd", "learning_rate": 0.02, "momentum": 0.9, "weight_decay": 4e-5, "no_decay": "bn+bias",
    "schedule": "cosine", "warmup_epochs": 0.5,
    "layer_decay": 0.9, "freeze_epochs": 1, "ema_decay": 0.99,
}  # fmt: skip

# Ours, for a folder of photos and no weights.
_SCRATCH: dict[str, Any] = {
    "epochs": 100, "batch_size": 128,
    "crop": "resized", "crop_scale_min": 0.25, "flip": True,
    "jitter_brightness": 0.2, "jitter_contrast": 0.2, "jitter_saturation": 0.2,
    "label_smoothing": 0.1, "dropout": 0.1,
    "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 4e-5, "no_decay": "bn+bias",
    "schedule": "cosine", "warmup_epochs": 3.0, "zero_init_residual": True, "ema_decay": 0.998,
}  # fmt: skip

# Ours, for images of up to about 64 px and no weights: whole images, shifted and mirrored, as a random
# crop would enlarge them until nothing is to be seen.
_SMALL: dict[str, Any] = {
    "epochs": 100, "batch_size": 128,
    "crop": "padded", "crop_padding": 4, "flip": True, "cutout": 8,
    "label_smoothing": 0.1,
    "optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 2e-4, "no_decay": "bn+bias",
    "schedule": "cosine", "warmup_epochs": 2.0, "zero_init_residual": True, "ema_decay": 0.998,
}  # fmt: skip

# Ours: the weights that come with the package. Made for a CPU and so for few epochs: Muon, small images at
# first, and a rate that falls from the start.
_CIFAR10_DEMO: dict[str, Any] = {
    "base": "small-images",
    "epochs": 30, "batch_size": 128, "val_fraction": 0.02, "image_size": 32, "resize": 32,
    "start_size": 18, "grow_epochs": 15,
    "optimizer": "muon", "learning_rate": 0.2, "weight_decay": 4e-4,
    "muon_rate": 0.03, "muon_decay": 0.01, "schedule": "linear", "warmup_epochs": 1.0,
    "zero_init_residual": False, "ema_decay": 0.998,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "scratch": _SCRATCH,
    "finetune": _FINETUNE,
    "small-images": _SMALL,
    "imagenet-gpu": _IMAGENET | {"dropout": 0.3},
    "imagenet-cpu": _IMAGENET | {"dropout": 0.2},
    "imagenet-mobile": _IMAGENET | {"dropout": 0.1},
    "imagenet-mobile-14": _IMAGENET | {"dropout": 0.3},
    "cifar10": _CIFAR10,
    # The long schedule, with whole cells dropped; the rate that was used is not published.
    "cifar10-pyramid": _CIFAR10 | {"epochs": 600, "drop_path": 0.2},
    "cifar10-demo": _CIFAR10_DEMO,
}

ABOUT: dict[str, str] = {
    "scratch": "a model without weights on a folder of photos (the default of `train`)",
    "finetune": "a model with weights on a folder of photos, on a laptop too (the default of `finetune`)",
    "small-images": "a model without weights on images of up to about 64 px",
    "imagenet-gpu": "published: proxyless_gpu on ImageNet, 300 epochs",
    "imagenet-cpu": "published: proxyless_cpu on ImageNet, 300 epochs",
    "imagenet-mobile": "published: proxyless_mobile on ImageNet, 300 epochs",
    "imagenet-mobile-14": "published: proxyless_mobile_14 on ImageNet, 300 epochs",
    "cifar10": "published: proxyless_cifar on CIFAR-10, 300 epochs",
    "cifar10-pyramid": "tree cells on CIFAR-10, 600 epochs: published, but for the rate of dropped cells",
    "cifar10-demo": "ours: how the weights of proxyless_cifar10_demo were made",
}
