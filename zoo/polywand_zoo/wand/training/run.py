"""A training from its start, or from its last checkpoint, to its end: reads the data and runs the processes."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

import cv2
import torch
import torch.distributed

from polywand_zoo.wand import weights
from polywand_zoo.wand.training import config, curve, dataset, state
from polywand_zoo.wand.training.config import Recipe
from polywand_zoo.wand.training.journal import LOG
from polywand_zoo.wand.training.samples import Samples
from polywand_zoo.wand.training.scenes import Scenes
from polywand_zoo.wand.training.state import Progress
from polywand_zoo.wand.training.worker import AVERAGE, LATEST, Task, Worker

__all__ = ["AVERAGE", "Order", "TrainingError", "train"]

# A training may be stopped for long by SIGSTOP while others need the machine.
PATIENCE = timedelta(days=7)


class TrainingError(RuntimeError):
    """A process of the training failed; its own output says why."""


@dataclass(frozen=True, slots=True)
class Order:
    """The options of the command line.

    start: weights to begin with; only read when the folder holds no checkpoint.
    samples, finish_in: another end, in samples in all, or in minutes from now.
    """

    folder: Path
    data: Sequence[Path]
    validation: Path | None
    recipe: Path | None
    start: Path | None
    processes: int
    samples: int | None = None
    finish_in: float | None = None


def train(order: Order) -> Progress:
    """Train; returns when all is done, or when SIGTERM or SIGINT has ended it after a step."""
    order.folder.mkdir(parents=True, exist_ok=True)
    # Single-threaded processes keep their speed on a machine that is busy, and can be forked.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    task = prepare(order)
    if order.processes == 1:
        Worker(task, 0).run()
    else:
        _run_processes(task)
    return Progress(**weights.read(order.folder / LATEST)["progress"])


def prepare(order: Order) -> Task:
    """Read all that the processes share."""
    latest = order.folder / LATEST
    checkpoint = weights.read(latest) if latest.exists() else None
    recipe = config.parse(checkpoint["recipe"]) if checkpoint else config.read(order.recipe or config.DEFAULT)
    torch.manual_seed(recipe.seed)
    network = state.starting_network(None if checkpoint else order.start)
    progress = Progress(**checkpoint["progress"]) if checkpoint else Progress.start(recipe.schedule)
    _plan(progress, recipe, order)
    validation = None
    if order.validation is not None:
        validated = dataset.choose(order.validation, recipe.validation.objects)
        validation = dataset.load([order.validation], only=validated)
    photos = dataset.load(order.data, without=[order.validation] if order.validation else [])
    return Task(
        folder=order.folder,
        recipe=recipe,
        dataset=photos,
        samples=Samples(Scenes(photos, recipe.weights, recipe.scenes), recipe.modes, recipe.views),
        validation=validation,
        network=network,
        checkpoint=checkpoint,
        progress=progress,
        processes=order.processes,
    )


def _plan(progress: Progress, recipe: Recipe, order: Order) -> None:
    share = recipe.schedule.decay_share
    if order.samples is not None:
        progress.end_after(max(0, order.samples - progress.samples), share)
    if order.finish_in is not None:
        speeds = [r["images_per_second"] for r in curve.records(order.folder / LOG) if "images_per_second" in r]
        if not speeds:
            raise TrainingError("--finish-in needs a training that has run for some minutes, to know how fast it is")
        recent = sorted(speeds[-15:])
        progress.end_after(round(60 * order.finish_in * recent[len(recent) // 2]), share)


def _run_processes(task: Task) -> None:
    context = multiprocessing.get_context("fork")  # shares the photos
    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder) / "meeting"
        workers = [context.Process(target=_work, args=(task, rank, meeting)) for rank in range(task.processes)]
        for worker in workers:
            worker.start()

        def forward(number: int, frame: FrameType | None) -> None:
            for worker in workers:
                if worker.pid is not None and worker.exitcode is None:
                    os.kill(worker.pid, number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, forward)
        _wait(workers)


def _wait(workers: Sequence[BaseProcess]) -> None:
    """Wait for all; when one fails, the others would wait for it for ever."""
    # Read once a round: a process that ends between two reads would leave nothing to wait for, for ever.
    while running := [worker.sentinel for worker in workers if worker.exitcode is None]:
        multiprocessing.connection.wait(running)
        if any(worker.exitcode not in (None, 0) for worker in workers):
            for worker in workers:
                worker.kill()
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise TrainingError("a process of the training failed")


def _work(task: Task, rank: int, meeting: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=task.processes, timeout=PATIENCE
    )
    Worker(task, rank).run()
    torch.distributed.destroy_process_group()
