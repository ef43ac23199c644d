"""The journal of a training: its log of JSON lines, its validation curve, and its progress bar."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from polywand_zoo.wand.training.curve import draw_curve
from polywand_zoo.wand.training.state import Progress
from polywand_zoo.wand.training.step import StepResult

LOG = "log.jsonl"
CURVE = "validation.png"

LOG_EVERY = 20  # steps


class Journal:
    """Records the steps of one of the processes; the numbers of a training step are its own, not those of all.

    processes: of the training, which count for its speed.
    """

    def __init__(self, folder: Path, progress: Progress, processes: int) -> None:
        self._folder = folder
        self._progress = progress
        self._processes = processes
        self._recent: list[dict[str, float]] = []
        self._clock = (time.monotonic(), time.process_time(), progress.samples)
        self._bar = click.progressbar(length=progress.end, label="training", show_pos=True)
        self._bar.update(progress.samples)

    def step(self, result: StepResult, modes: Sequence[str], **facts: Any) -> None:
        """Note a step; every now and then the mean of the last is written, with further facts of this one."""
        self._bar.length = self._progress.end
        self._bar.update(self._progress.samples - self._bar.pos)
        first, last = result.qualities[0], result.qualities[-1]
        entry = {"loss": result.loss, "iou_first": float(first.mean()), "iou_last": float(last.mean())}
        for mode in set(modes):
            entry[f"iou_{mode}"] = float(np.mean([q for q, m in zip(first, modes, strict=True) if m == mode]))
        self._recent.append(entry)
        if self._progress.step % LOG_EVERY == 0:
            self._write({**_means(self._recent), **facts, **self._speed()})
            self._recent.clear()

    def validation(self, means: Mapping[str, float], seconds: float) -> None:
        """Write down a validation and draw the curve again."""
        rounded = {name: round(value, 4) for name, value in means.items()}
        self._write({"validation": rounded, "seconds": round(seconds, 1)})
        draw_curve(self._folder / LOG, self._folder / CURVE)

    def close(self) -> None:
        """End the progress bar's line, and write down the steps that are left."""
        if self._recent:
            self._write(_means(self._recent))
        self._bar.render_finish()

    def _speed(self) -> dict[str, float]:
        wall, busy, samples = self._clock
        self._clock = time.monotonic(), time.process_time(), self._progress.samples
        done = self._clock[2] - samples
        return {
            "images_per_second": round(done / (self._clock[0] - wall), 2),
            "images_per_cpu_second": round(done / self._processes / (self._clock[1] - busy), 2),
        }

    def _write(self, entry: Mapping[str, Any]) -> None:
        where = {"step": self._progress.step, "samples": self._progress.samples, "time": round(time.time())}
        with (self._folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps({**where, **entry}) + "\n")


def _means(entries: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = sorted({name for entry in entries for name in entry})
    return {name: round(float(np.mean([entry[name] for entry in entries if name in entry])), 4) for name in names}
