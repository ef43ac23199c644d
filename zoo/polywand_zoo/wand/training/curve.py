"""The validation curve of a training, as a picture."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

SHOWN = {
    "clicks_1": "1 click", "clicks_3": "3 clicks", "clicks_5": "5 clicks", "box": "box", "extreme": "extreme points",
    "inside": "box and a point inside",
}  # fmt: skip


def records(log: Path) -> list[dict[str, Any]]:
    """Read a log of JSON lines, if there is one; a line that was cut off by a crash is left out."""
    found: list[dict[str, Any]] = []
    if not log.exists():
        return found
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def draw_curve(log: Path, target: Path) -> None:
    """Draw the validations and the training loss of a log."""
    entries = records(log)
    validations = [entry for entry in entries if "validation" in entry]
    steps = [entry for entry in entries if "loss" in entry]
    figure, (quality, loss) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, label in SHOWN.items():
        points = [(v["samples"], v["validation"][name]) for v in validations if name in v["validation"]]
        if points:
            quality.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    quality.set(xlabel="samples", ylabel="mean IoU on validation", title="Validation")
    quality.grid(alpha=0.3)
    if validations:
        quality.legend()
    loss.plot([entry["samples"] for entry in steps], [entry["loss"] for entry in steps], linewidth=0.8)
    loss.set(xlabel="samples", ylabel="loss", title="Training")
    loss.grid(alpha=0.3)
    partial = target.with_name(f"{target.name}.partial")
    figure.savefig(partial, format="png", dpi=100)
    plt.close(figure)
    partial.replace(target)
