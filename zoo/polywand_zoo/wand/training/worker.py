"""One process of a training; together they compute the same as one process with all their batches."""

import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn

from polywand_zoo.wand import weights
from polywand_zoo.wand.fine import FineNetwork
from polywand_zoo.wand.training import optimiser, state
from polywand_zoo.wand.training.config import Phase, Recipe
from polywand_zoo.wand.training.dataset import Dataset
from polywand_zoo.wand.training.journal import Journal
from polywand_zoo.wand.training.samples import Samples
from polywand_zoo.wand.training.state import Progress
from polywand_zoo.wand.training.step import answer, backpropagate
from polywand_zoo.wand.training.validation import measure

LATEST = "latest.pt"  # everything needed to go on
AVERAGE = "average.pt"  # the averaged weights: what is exported

SAVE_EVERY = 240.0  # seconds
CALIBRATION_BATCHES = 10


@dataclass(frozen=True, slots=True)
class Task:
    """The options of all processes of a training.

    start: what to begin with, unless the folder holds a checkpoint.
    """

    folder: Path
    recipe: Recipe
    dataset: Dataset
    samples: Samples
    validation: Dataset | None
    network: FineNetwork
    checkpoint: dict[str, Any] | None
    progress: Progress
    processes: int


class Signals:
    """While entered, SIGTERM and SIGINT stop the training after the step, and SIGUSR1 to begin the last phase."""

    def __init__(self) -> None:
        self.stop = False
        self.finish = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        wishes = {signal.SIGTERM: self._stop, signal.SIGINT: self._stop, signal.SIGUSR1: self._finish}
        self._before = {number: signal.signal(number, handle) for number, handle in wishes.items()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handle in self._before.items():
            signal.signal(number, handle)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stop = True

    def _finish(self, number: int, frame: FrameType | None) -> None:
        self.finish = True


class Worker:
    """Trains; the first of the processes also writes the log and the checkpoints."""

    def __init__(self, task: Task, rank: int) -> None:
        self._task = task
        self._rank = rank
        self._recipe = task.recipe
        self._progress = task.progress
        self._network = task.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network.backbone.freeze(task.recipe.optimiser.frozen_stages)
        if task.checkpoint is None:
            self._calibrate()
        self._average = state.copy_of(self._network)
        self._optimiser = optimiser.for_network(self._network, task.recipe.optimiser)
        if task.checkpoint is not None:
            self._network.load_state_dict(task.checkpoint["network"])
            self._average.load_state_dict(task.checkpoint["average"])
            self._optimiser.load_state_dict(task.checkpoint["optimiser"])
        self._average.eval()
        self._parameters = [p for group in self._optimiser.param_groups for p in group["params"]]
        self._statistics = _statistics(self._network)
        self._averaged = [*self._average.parameters(), *_statistics(self._average)]
        self._trained = [*self._network.parameters(), *self._statistics]
        self._frozen = False
        self._signals = Signals()
        self._journal = None if rank else Journal(task.folder, task.progress, task.processes)
        self._last_validation = time.process_time() if task.progress.step else float("-inf")
        self._last_save = time.monotonic()

    def run(self) -> None:
        """Train until the end that is planned, or until a signal stops it."""
        progress = self._progress
        stop, validate = False, progress.step == 0
        with self._signals:
            while progress.samples < progress.end and not stop:
                if validate:
                    self._validate()
                stop, validate = self._step()
                if time.monotonic() - self._last_save > SAVE_EVERY:
                    self._save()
            if not stop:
                self._validate()
            self._save()
        if self._journal is not None:
            self._journal.close()

    def _step(self) -> tuple[bool, bool]:
        """Train on one batch; return whether to stop, and whether to validate first."""
        progress, recipe = self._progress, self._recipe
        phase = recipe.decay if progress.decaying else recipe.stable
        plan = np.random.default_rng((recipe.seed, progress.step))
        size = int(_choose(list(phase.sizes), list(phase.sizes.values()), plan))
        passes = 1 + int(_choose(range(len(recipe.passes)), recipe.passes, plan))
        self._set_mode(phase)
        batch = phase.batches[str(size)]
        randoms = [np.random.default_rng((recipe.seed, progress.step, self._rank + 1, item)) for item in range(batch)]
        samples = [self._task.samples.draw(size, random) for random in randoms]
        result = backpropagate(self._network, samples, passes, recipe.loss, randoms)
        stop, finish, validate = self._exchange()
        norm = nn.utils.clip_grad_norm_(self._parameters, recipe.optimiser.clip)
        rate = self._rate()
        if torch.isfinite(norm):
            for group in self._optimiser.param_groups:
                group["lr"] = rate * group["share"]
            self._optimiser.step()
        self._optimiser.zero_grad()
        self._follow()
        progress.step += 1
        progress.samples += batch * self._task.processes
        if finish and not progress.decaying:
            share = recipe.schedule.decay_share
            progress.end_after(round(progress.samples * share / (1 - share)), share)
        if self._journal is not None:
            phase_name = "decay" if progress.decaying else "stable"
            modes = [sample.mode for sample in samples]
            self._journal.step(result, modes, phase=phase_name, size=size, rate=rate, gradient=round(float(norm), 3))
        return stop, validate

    def _calibrate(self) -> None:
        """Initialise the statistics of untrained normalisations with a few samples."""
        fresh = [
            module
            for module in self._network.modules()
            if isinstance(module, nn.BatchNorm2d) and not module.num_batches_tracked
        ]
        self._network.eval()
        for module in fresh:
            module.momentum = None  # the plain mean of all batches
            module.train()
        size = min(int(size) for size in self._recipe.stable.sizes)
        for number in range(CALIBRATION_BATCHES if fresh else 0):
            randoms = [np.random.default_rng((self._recipe.seed, number, 0, item)) for item in range(6)]
            samples = [self._task.samples.draw(size, random) for random in randoms]
            answer(self._network, samples)
        for module in fresh:
            module.momentum = 0.1

    def _set_mode(self, phase: Phase) -> None:
        self._network.train()
        if not phase.frozen_statistics:
            return
        if not self._frozen:
            self._frozen = True
            with torch.no_grad():
                torch._foreach_copy_(self._statistics, _statistics(self._average))
        for module in self._network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def _rate(self) -> float:
        progress, settings = self._progress, self._recipe.optimiser
        return settings.rate * min(1, (progress.step + 1) / settings.warm_up_steps) * progress.fallen

    def _exchange(self) -> tuple[bool, bool, bool]:
        """Average over all processes; return whether one of them wants to stop, to finish, to validate."""
        due = time.process_time() - self._last_validation > 60 * self._recipe.validation.minutes
        wishes = [self._signals.stop, self._signals.finish, due and self._rank == 0]
        self._signals.finish = False
        if self._task.processes == 1:
            return wishes[0], wishes[1], wishes[2]
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        parts: list[Tensor] = [*gradients, *self._statistics, torch.tensor(wishes, dtype=torch.float32)]
        flat = torch.cat([part.reshape(-1) for part in parts])
        torch.distributed.all_reduce(flat)
        flat /= self._task.processes
        averaged = torch.split(flat, [part.numel() for part in parts])
        with torch.no_grad():
            for parameter, gradient in zip(self._parameters, averaged, strict=False):
                parameter.grad = gradient.view(parameter.shape).contiguous(memory_format=_format(parameter))
            for statistic, values in zip(self._statistics, averaged[len(self._parameters) :], strict=False):
                statistic.copy_(values)
        stop, finish, validate = (bool(wish > 0) for wish in averaged[-1])
        return stop, finish, validate

    def _follow(self) -> None:
        """Let the average follow the network."""
        step = self._progress.step
        kept = min(self._recipe.optimiser.average, (step + 1) / (step + 20))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._trained, 1 - kept)

    def _validate(self) -> None:
        """Measure the average; each process measures its part of the objects."""
        self._last_validation = time.process_time()
        dataset = self._task.validation
        if dataset is None:
            return
        began = time.monotonic()
        mine = dataset.things[self._rank :: self._task.processes]
        results = measure(self._average, dataset, mine, self._recipe.validation.clicks)
        gathered: list[Any] = [results]
        if self._task.processes > 1:
            gathered = [None] * self._task.processes
            torch.distributed.all_gather_object(gathered, results)
        self._last_validation = time.process_time()
        if self._journal is None:
            return
        names = dict.fromkeys(name for part in gathered for name in part)
        means = {name: float(np.mean([v for part in gathered for v in part.get(name, [])])) for name in names}
        self._journal.validation(means, time.monotonic() - began)
        folder = self._task.folder / "averages"
        folder.mkdir(exist_ok=True)
        weights.save(folder / f"{self._progress.samples:07d}.pt", self._shipped())

    def _save(self) -> None:
        self._last_save = time.monotonic()
        if self._rank:
            return
        weights.save(self._task.folder / AVERAGE, self._shipped())
        content = {
            "network": self._network.state_dict(),
            "average": self._average.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "recipe": self._recipe.as_dict(),
            "progress": asdict(self._progress),
            "processes": self._task.processes,
        }
        weights.save(self._task.folder / LATEST, content)

    def _shipped(self) -> dict[str, Any]:
        return state.shipped(self._average, self._recipe, self._progress)


def _statistics(network: nn.Module) -> list[Tensor]:
    """The running means and variances of all normalisations."""
    return [tensor for name, tensor in network.named_buffers() if name.endswith(("running_mean", "running_var"))]


def _choose(items: Sequence[Any], odds: Sequence[float], random: np.random.Generator) -> Any:
    cumulated = np.cumsum(odds) / np.sum(odds)
    return items[min(int(np.searchsorted(cumulated, random.random())), len(items) - 1)]


def _format(tensor: Tensor) -> torch.memory_format:
    return torch.channels_last if tensor.dim() == 4 else torch.contiguous_format


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
