"""The golden folder: what the authors' own code computes, from weights and inputs that follow a rule (its README)."""

import importlib.util
import json
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from polywand_zoo.published.architectures import ARCHITECTURES

FOLDER = os.environ.get("POLYWAND_GOLDEN")

needs_golden = pytest.mark.skipif(
    FOLDER is None,
    reason="NOT RUN: set POLYWAND_GOLDEN to the folder of golden outputs; without it nothing here proves that the"
    " published networks compute what their authors' code computes",
)

# Golden networks by our names, and the checkpoint file that each is published as.
GOLDEN = {
    "dextr_resnet101": ("dextr", "dextr_pascal-sbd.pth"),
    "iog_resnet101": ("iog", "IOG_PASCAL_SBD.pth"),
    "hrnet18": ("hrnet18", "coco_lvis_h18_itermask.pth"),
    "fbrs_resnet34": ("fbrs_resnet34_dh128", "resnet34_dh128_sbd.pth"),
    "fbrs_resnet101": ("fbrs_resnet101_dh256", "resnet101_dh256_sbd.pth"),
}

# What RITM's code writes beside the weights.
RITM_CONFIG = {
    "class": "isegm.model.is_hrnet_model.HRNetModel",
    "params": {
        name: {"type": kind, "value": value, "specified": specified}
        for name, kind, value, specified in (
            ("width", "builtin", 18, True),
            ("ocr_width", "builtin", 64, True),
            ("small", "builtin", False, False),
            ("backbone_lr_mult", "builtin", 0.1, False),
            ("norm_layer", "class", "torch.nn.modules.batchnorm.BatchNorm2d", False),
            ("use_rgb_conv", "builtin", False, True),
            ("with_aux_output", "builtin", True, True),
            ("norm_radius", "builtin", 5, True),
            ("use_disks", "builtin", True, True),
            ("cpu_dist_maps", "builtin", False, False),
            ("clicks_groups", "builtin", None, False),
            ("with_prev_mask", "builtin", True, True),
            ("use_leaky_relu", "builtin", True, True),
            ("binary_prev_mask", "builtin", False, False),
            ("conv_extend", "builtin", False, False),
            ("norm_mean_std", "builtin", ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]), False),
        )
    },
}


def recipe() -> ModuleType:
    """Load the rule for weights and inputs."""
    assert FOLDER is not None
    spec = importlib.util.spec_from_file_location("recipe", Path(FOLDER) / "recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def entries(name: str) -> list[tuple[str, list[int]]]:
    """List the names and shapes of a golden network's checkpoint, in order."""
    assert FOLDER is not None
    return [(entry, shape) for entry, shape in json.loads((Path(FOLDER) / f"{GOLDEN[name][0]}.json").read_text())]


def logits(name: str) -> NDArray[np.float32]:
    """Return a golden network's output."""
    assert FOLDER is not None
    output: NDArray[np.float32] = np.load(Path(FOLDER) / f"{GOLDEN[name][0]}.npz")["logits"]
    return output


def predicted(predictor: str, key: str = "probability") -> NDArray[np.float32]:
    """Return a probability map at image size of a golden predictor, by its file's name."""
    assert FOLDER is not None
    stored = np.load(Path(FOLDER) / f"{predictor}_predictor.npz")[key]
    probability: NDArray[np.float32] = stored.astype(np.float32) / 65535
    return probability


def clicks(predictor: str) -> list[tuple[int, int, bool]]:
    """Return a golden predictor's clicks in order: x and y, as indices of pixels, and whether positive."""
    assert FOLDER is not None
    listed = json.loads((Path(FOLDER) / f"{predictor}_predictor.clicks.json").read_text())
    return [(click["yx"][1], click["yx"][0], click["positive"]) for click in listed]


def weights(names_and_shapes: Iterable[tuple[str, Iterable[int]]]) -> OrderedDict[str, torch.Tensor]:
    """Fill entries by the golden rule."""
    fill = recipe().fill
    return OrderedDict(
        (name, torch.from_numpy(np.asarray(fill(name, list(shape))))) for name, shape in names_and_shapes
    )


def write_checkpoint(folder: Path, name: str) -> Path:
    """Write a golden network's checkpoint into a file like the authors' own: its name, its nesting, its format."""
    content: Any = weights(entries(name))
    old_format = True  # of PyTorch before 1.6
    if name == "dextr_resnet101":
        content = OrderedDict((f"module.{entry}", tensor) for entry, tensor in content.items())
    elif name == "hrnet18":
        content, old_format = {"state_dict": content, "config": RITM_CONFIG}, False
    path = folder / GOLDEN[name][1]
    torch.save(content, path, _use_new_zipfile_serialization=not old_format)
    return path


def seeded_network(name: str) -> nn.Module:
    """Make a network of a published architecture with random weights, whose normalisations do something."""
    torch.manual_seed(0)
    network = ARCHITECTURES[name]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            assert module.running_mean is not None
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.2)
    return network.eval().requires_grad_(False)
