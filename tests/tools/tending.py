"""A Triton client, loader and registry of its models, as the service puts them together."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from polywand_server.errors import UnavailableError
from polywand_server.tools.folders import ModelFolders
from polywand_server.tools.loader import ModelLoader
from polywand_server.tools.registry import Registry
from polywand_server.triton.client import DeadProcess, TritonClient
from polywand_server.triton.location import EndProcesses, no_op
from tests.interactors import CONFIG, WHOLE, card

# Every version writes down each of its starts in a file beside the repository, and fails while a file named `broken` is
# in its folder. The first point's x says how to behave.
_PUPPET = """
import os, pathlib, signal
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        folder = pathlib.Path(args["model_repository"]) / args["model_version"]
        with open(folder.parent.parent.parent / "starts", "a") as starts:
            print(args["model_name"], args["model_version"], file=starts)
        assert not (folder / "broken").exists(), "out of tune"

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        order = pb_utils.get_input_tensor_by_name(request, "POINTS").as_numpy()[0, 0, 0]
        if order == 1:
            raise ValueError("strings cut")
        if order == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", np.zeros((1, 1, 16, 16), np.float32))])
"""
ANSWERS, RAISES, DIES = 0, 1, 2
_PROMPT = '{"box": "optional"}'
_CARD = json.dumps(card("Puppet", crop=WHOLE, flip="false", prompt=_PROMPT))
_CONFIG = CONFIG.format(size=16, answers=1, batch=2, inputs="", outputs="", card=_CARD)
LATEST_TWO = "version_policy { latest { num_versions: 2 } }"


def add_puppet(
    repository: Path, name: str, *versions: int, broken: Sequence[int] = (), policy: str = LATEST_TWO
) -> Path:
    """Add a tool with some versions; return its folder."""
    folder = repository / name
    folder.mkdir(parents=True)
    for version in versions:
        add_version(folder, version, is_broken=version in broken)
    (folder / "config.pbtxt").write_text(f"{_CONFIG}\n{policy}\n")
    return folder


def add_version(folder: Path, version: int, *, is_broken: bool = False) -> None:
    """Add a version to a tool."""
    (folder / str(version)).mkdir(parents=True, exist_ok=True)
    if is_broken:
        (folder / str(version) / "broken").touch()
    (folder / str(version) / "model.py").write_text(_PUPPET)


def starts(repository: Path, name: str, version: int) -> int:
    """How often a version has been started."""
    noted = repository.parent / "starts"
    return noted.read_text().splitlines().count(f"{name} {version}") if noted.exists() else 0


@dataclass
class Tended:
    """published: whether it was ready, at each change that was told."""

    client: TritonClient
    loader: ModelLoader
    registry: Registry
    published: list[bool]

    def versions(self, name: str) -> dict[int, str]:
        """Why each version of a tool is not ready; empty for one that is."""
        found = [tool for tool in self.registry.tools if tool.name == name]
        return {version.version: version.reason for tool in found for version in tool.versions}

    async def order(self, name: str, what: int) -> None:
        """Tell the newest version of a puppet what to do."""
        points = np.full((1, 16, 3), what, np.float32)
        inputs = {"IMAGE": np.zeros((1, 16, 16, 3), np.uint8), "POINTS": points}
        await self.client.infer(name, 0, inputs, ["LOGITS"], timeout_s=30.0)

    async def comes_back(self, name: str) -> None:
        """Wait until a puppet answers."""
        async with asyncio.timeout(60):
            while True:
                with suppress(UnavailableError):
                    return await self.order(name, ANSWERS)
                await asyncio.sleep(0.05)


@asynccontextmanager
async def tended(
    url: str,
    repository: Path | None,
    *,
    allowed: bool = True,
    ready_models: Sequence[str] = (),
    end_processes: EndProcesses = no_op,
    settling_seconds: float = 0.1,
) -> AsyncIterator[Tended]:
    """Load and poll the models of a Triton until the block ends."""
    wake, published = asyncio.Event(), list[bool]()

    def on_dead_process(report: DeadProcess) -> None:
        loader.revive(report)

    client = TritonClient(url, on_dead_process=on_dead_process)
    folders = ModelFolders(repository, settling_seconds)
    loader = ModelLoader(client, folders, allowed=allowed, on_change=wake.set, end_processes=end_processes)
    registry = Registry(
        client,
        loader,
        ready_models=ready_models,
        poll_seconds=0.2,
        wake=wake,
        on_change=lambda: published.append(registry.ready),
    )
    running = asyncio.create_task(registry.run())
    try:
        yield Tended(client, loader, registry, published)
    finally:
        running.cancel()
        await asyncio.wait([running])
        await client.close()
