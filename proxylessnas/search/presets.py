"""Ready-made recipes of searches by name: the published ones, number by number, and ours.

Each is a table as a recipe file has it: ``base`` names the one that it starts from, in ``weights`` too.
"""

from __future__ import annotations

from typing import Any

#: What the published presets leave out, all of it ours, and what a "+" behind their names adds.
_PLAIN: dict[str, Any] = {
    "adapt": False, "least_share": 0.0, "reinforce_baseline": 0.01, "reinforce_baseline_first": True,
    "reinforce_batch_size": 1000,
}  # fmt: skip
_PLUS: dict[str, Any] = {
    "adapt": True, "least_share": 0.85, "fair_warmup": True, "reinforce_baseline": "none",
    "reinforce_baseline_first": False, "reinforce_reward": "absolute", "final_candidates": 24,
    "final_evolution": 24,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    # The authors' script (original code, B.7, B.9 and B.11). Held out are 50,000 of 1,281,167 images. Colour
    # jitter is their "normal"; BatchNorm decays too; the rate of the search is half of the warm-up's. Their
    # moving average of rewards takes in the new ones first, with a weight of 0.99.
    "imagenet": {
        **_PLAIN,
        "weights": {
            "base": "imagenet-mobile", "batch_size": 256, "no_decay": "none", "learning_rate": 0.05,
            "jitter_brightness": 32 / 255, "jitter_contrast": 0.0, "jitter_saturation": 0.5,
            "jitter_hue": 0.0,
        },
        "algorithm": "gradient", "warmup_epochs": 40, "epochs": 120, "search_rate": 0.025,
        "arch_fraction": 50_000 / 1_281_167, "arch_mode": "full_v2", "arch_every": 5, "arch_rate": 1e-3,
        "regulariser": "mul_log", "scale": 0.2,
    },
    # The paper's CIFAR-10 settings (B.11): 5,000 images held out, 200 epochs, alpha's rate 0.006 (0.01 for
    # "reinforce"), weights as the authors' CIFAR code trains them. How the epochs divide into phases is not
    # published: here as on ImageNet, where a quarter is warm-up and the rate of the search half of the first.
    "cifar": {
        **_PLAIN,
        "weights": {"base": "cifar10"},
        "algorithm": "gradient", "warmup_epochs": 50, "epochs": 150, "search_rate": 0.05,
        "arch_fraction": 0.1, "arch_mode": "two", "arch_every": 5, "arch_rate": 6e-3,
    },
    "imagenet+": {"base": "imagenet", **_PLUS},
    "cifar+": {"base": "cifar", **_PLUS},
    # Ours, for images of 28 to 64 px: fewer epochs than published, hence a faster alpha.
    "small": {
        **_PLUS,
        "weights": {"base": "small-images", "batch_size": 128, "learning_rate": 0.1, "cutout": 0},
        "algorithm": "gradient", "warmup_epochs": 20, "epochs": 40, "search_rate": 0.05,
        "arch_fraction": 0.2, "arch_mode": "full_v2", "arch_every": 3, "arch_rate": 1e-2,
        "aligned_start": True, "reinforce_updates": 100, "reinforce_samples": 8,
    },
    # Ours, to see a whole search in minutes on two cores. Small batches at a high rate, as a supernet takes
    # some hundred steps until its paths agree with each other; so few arch steps that alpha has to move in
    # leaps.
    "tiny": {
        "base": "small", "weights": {"batch_size": 32, "learning_rate": 0.2},
        "warmup_epochs": 8, "epochs": 8, "search_rate": 0.1,
        "arch_fraction": 0.25, "arch_every": 2, "arch_rate": 3e-2, "frozen_epochs": 0,
        "reinforce_updates": 20, "reinforce_samples": 4,
        "evaluations": 40, "population": 16, "recalibrate_batches": 4,
        "final_candidates": 16, "final_evolution": 16,
    },
}  # fmt: skip

ABOUT: dict[str, str] = {
    "imagenet": "published: ImageNet, number by number, 40 + 120 epochs",
    "cifar": "published: CIFAR-10, 200 epochs (for reinforce set arch_rate=0.01)",
    "imagenet+": "imagenet, and ours: the cost arrives at its target, fair warm-up, reinforce learns faster",
    "cifar+": "cifar, and the same",
    "small": "ours, with all of it: images of 28 to 64 px, 20 + 40 epochs, on a GPU or a patient CPU",
    "tiny": "ours, with all of it: 8 + 8 epochs, minutes on two cores",
}
