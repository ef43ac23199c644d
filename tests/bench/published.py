"""How long a prompt of each published interactor takes through the service, beside its network in eager PyTorch.

    make bench-published                                   untrained weights: nobody's checkpoint is shipped
    make bench-published ARGS='--checkpoints ~/downloads'  the authors' files that are found there

A prompt is measured at the client: a new object on a photo that the stream holds already, asked for over gRPC and
answered with polygons. Eager PyTorch runs the bare network, in single precision on two threads, on the input that such
a prompt leads to; both take turns in one run.

A first click at f-BRS is its network's single pass. What a refined prompt costs is measured with two clicks and all
evaluations that its settings allow: the early stop is switched off.
"""

import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np
import skimage.data
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from tritonclient.grpc import InferenceServerClient

import polywand
from polywand_zoo.cli import main as zoo
from polywand_zoo.published.architectures import ARCHITECTURES
from polywand_zoo.published.catalogue import CATALOGUE, Published
from polywand_zoo.published.checkpoint import read
from polywand_zoo.published.export import interactor, random_request
from polywand_zoo.refinement.config import SETTINGS, head_name
from tests.bench.machine import commit, cpu_model
from tests.bench.samples import Samples
from tests.running import Service, running_service

SIDE = 400  # pixels of the photo, and of the input of networks that take any size
EAGER_THREADS = 2
WARM_UP = 3  # prompts
PROMPTS_PER_EAGER_RUN = 10
REFINED_PROMPTS = 10
ALLOWED_EVALUATIONS = int(SETTINGS["maxfun"])


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(CATALOGUE)))
@click.option("--prompts", type=click.IntRange(min=10), default=100, show_default=True, help="Of every network.")
@click.option("--seconds", type=float, default=60, show_default=True, help="After which a network has prompts enough.")
@click.option(
    "--checkpoints",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with the authors' files; by default the weights are untrained, and bfloat16 is used unasked.",
)
def main(names: tuple[str, ...], prompts: int, seconds: float, checkpoints: Path | None) -> None:
    """Measure the NAMES, or all."""
    click.echo(f"{cpu_model()}, commit {commit()}; eager PyTorch: fp32, {EAGER_THREADS} threads; milliseconds")
    click.echo(
        "| network | input | eager PyTorch, median | a prompt, median | p99 | prompts | times faster | refined |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    torch.set_num_threads(EAGER_THREADS)
    for name in names or CATALOGUE:
        with tempfile.TemporaryDirectory() as folder:
            click.echo(_measured(CATALOGUE[name], Path(folder), prompts, seconds, checkpoints))


def _measured(published: Published, folder: Path, prompts: int, seconds: float, checkpoints: Path | None) -> str:
    """Import a network into a new repository, serve it, and return its row of the table."""
    checkpoint = _found(published, checkpoints) or _untrained(published, folder)
    repository = folder / "models"
    options = ["--checkpoint", str(checkpoint), "--repository", str(repository)]
    options += ["--bfloat16", "auto" if checkpoint.parent == checkpoints else "on"]
    imported = CliRunner().invoke(zoo, ["import", published.name, *options])
    if imported.exit_code:
        raise click.ClickException(imported.output)
    if published.is_refined:
        _never_stop_early(repository / published.name / "config.pbtxt")
    eager, size = _eager(read(checkpoint, published.name).network)
    asked, alone, refined = Samples(), Samples(), Samples()
    with running_service(folder / "log", f"--model-repository={repository}") as service:
        service.wait_ready(published.name)
        with polywand.connect(service.target) as client, client.open(_photo()) as session:
            for number in range(WARM_UP):
                _ask(session, published, number)
            eager()
            begin = time.monotonic()
            while len(asked) < 10 or (len(asked) < prompts and time.monotonic() < begin + seconds):
                if len(asked) % PROMPTS_PER_EAGER_RUN == 0:
                    alone.append(_milliseconds(eager))
                number = WARM_UP + len(asked)
                asked.append(_milliseconds(lambda number=number: _ask(session, published, number)))
            before = _evaluations(service, published)
            for number in range(REFINED_PROMPTS if published.is_refined else 0):
                refined.append(_milliseconds(lambda number=number: _ask(session, published, number, clicks=2)))
            evaluations = (_evaluations(service, published) - before) / REFINED_PROMPTS
    last = asked.percentile(99)
    worst = f"{last:.0f}" if last is not None else f"at most {max(asked):.0f}"
    figures = [f"{alone.median:.0f}", f"{asked.median:.0f}", worst, len(asked), f"{alone.median / asked.median:.1f}"]
    figures.append(_cost(asked, refined, evaluations) if refined else "")
    return f"| `{published.name}` | {size[1]} x {size[0]} | {' | '.join(map(str, figures))} |"


def _cost(asked: Samples, refined: Samples, evaluations: float) -> str:
    """Tell what refinement costs, in passes: a first click, and as often as the settings allow an evaluation more.

    L-BFGS ends an iteration that it began, so that it evaluates a few times more than its limit.
    """
    each = (refined.median - asked.median) / (evaluations - 1)  # the pass holds one
    allowed = (asked.median + (ALLOWED_EVALUATIONS - 1) * each) / asked.median
    return f"{refined.median:.0f} with {evaluations:.0f} evaluations; {ALLOWED_EVALUATIONS} are {allowed:.1f} passes"


def _found(published: Published, folder: Path | None) -> Path | None:
    files = [folder / name for name in published.checkpoints] if folder else []
    return next((file for file in files if file.is_file()), None)


def _untrained(published: Published, folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / published.checkpoints[0]
    torch.save(OrderedDict(ARCHITECTURES[published.name]().state_dict()), path)
    return path


def _eager(network: nn.Module) -> tuple[Callable[[], object], tuple[int, int]]:
    """Return what runs a network as PyTorch does by itself, and the height and width of its input."""
    wrapped = interactor(network)
    size = wrapped.SIZE or (SIDE, SIDE)
    seen: list[tuple[Tensor, ...]] = []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs)).__enter__()
    with torch.inference_mode():
        wrapped(*random_request(wrapped, seed=0, size=size, batch=1).tensors(wrapped.INPUTS))
    inputs = seen[0]

    def run() -> object:
        with torch.inference_mode():
            return network(*inputs)

    return run, size


def _photo() -> np.ndarray:
    return cv2.resize(skimage.data.astronaut(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def _evaluations(service: Service, published: Published) -> int:
    """How often f-BRS's head has run so far."""
    if not published.is_refined:
        return 0
    with InferenceServerClient(service.triton) as triton:
        statistics = triton.get_inference_statistics(head_name(published.name)).model_stats[0]
    return int(statistics.inference_stats.success.count)


def _never_stop_early(config: Path) -> None:
    text = config.read_text()
    setting = 'key: "min_iou_diff" value: { string_value: "0.001" }'
    if setting not in text:
        raise click.ClickException(f"{config} has no {setting}")
    config.write_text(text.replace(setting, setting.replace("0.001", "0")))


def _ask(session: polywand.Session, published: Published, number: int, clicks: int = 1) -> None:
    """Prompt for a new object as the tool wants it; clicks: where it takes any number."""
    shift = np.random.default_rng(number).uniform(-10, 10, 2)
    left, top, right, bottom = (shift[0] + 60, shift[1] + 30, shift[0] + 340, shift[1] + 370)
    middle = ((left + right) / 2, (top + bottom) / 2)
    object_id = str(number)
    if published.prompt["extreme_points"]:
        points = [(left, middle[1]), (middle[0], top), (right, middle[1]), (middle[0], bottom)]
        session.prompt(published.name, object_id=object_id, extreme=points)
    elif published.prompt["box"] == "required":
        session.prompt(published.name, object_id=object_id, box=(left, top, right, bottom), positive=[middle])
    else:
        beside = [(middle[0] + 4, middle[1])][: clicks - 1]  # so close that no mask agrees with both soon
        session.prompt(published.name, object_id=f"{object_id} {clicks}", positive=[middle], negative=beside)


def _milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1000


if __name__ == "__main__":
    main()
