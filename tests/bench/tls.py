"""What TLS and a token add to a click, to a photo and to a connection: services on one Triton, asked in turn.

python -m tests.bench.tls [--clicks 200]

Prints a Markdown table: medians, and the medians of the differences to the plain service that was asked just before or
after, with their 95 % intervals (bootstrap). A second plain service tells what two services that are alike differ by.
"""

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import skimage.data
import trustme

import polywand
from tests.running import REPOSITORY, running_service

TOOL = "wand_click"
TOKEN = "a-token-for-a-measurement"
WARM_UP = 20
RESAMPLES = 2000
PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Way:
    """How a service is reached."""

    target: str
    credentials: grpc.ChannelCredentials | None
    token: str | None

    def connect(self) -> polywand.Client:
        """Connect anew."""
        return polywand.connect(self.target, credentials=self.credentials, token=self.token)


def start_all(stack: ExitStack) -> dict[str, Way]:
    """Start the services; they end with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    authority = trustme.CA()
    own, client = authority.issue_cert("localhost"), authority.issue_cert("annotator.example")
    chain, client_chain = (b"".join(pem.bytes() for pem in leaf.cert_chain_pems) for leaf in (own, client))
    roots, key = authority.cert_pem.bytes(), client.private_key_pem.bytes()
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    contents = {"crt": chain, "key": own.private_key_pem.bytes(), "ca": roots}
    contents["principals"] = f'[[principal]]\nname = "one"\ntokens_sha256 = ["{digest}"]\n'.encode()
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    tls = (f"--tls-cert={folder / 'crt'}", f"--tls-key={folder / 'key'}")
    trusting, mutual = grpc.ssl_channel_credentials(roots), grpc.ssl_channel_credentials(roots, key, client_chain)
    kinds = {
        PLAIN: ((), None, None),
        "plain again": ((), None, None),
        "TLS": (tls, trusting, None),
        "mutual TLS": ((*tls, f"--tls-client-ca={folder / 'ca'}"), mutual, None),
        "TLS and a token": ((*tls, f"--principals={folder / 'principals'}"), trusting, TOKEN),
    }
    ways = {}
    triton = f"--model-repository={REPOSITORY}"
    for name, (options, credentials, token) in kinds.items():
        service = stack.enter_context(running_service(folder / f"{name}.log", triton, "--metrics-port=0", *options))
        service.wait_ready(TOOL)
        triton = f"--triton-url={service.triton}"
        ways[name] = Way(service.target.replace("127.0.0.1", "localhost"), credentials, token)
    return ways


def measure(ways: dict[str, Way], rounds: int, ask: Callable[[str, int], None]) -> dict[str, np.ndarray]:
    """Ask every service once in each round, in a new order; returns milliseconds."""
    rng = np.random.default_rng(1)
    taken = {name: np.empty(rounds) for name in ways}
    for number in range(-WARM_UP, rounds):
        for name in rng.permutation(list(ways)):
            began = time.perf_counter()
            ask(name, number)
            if number >= 0:
                taken[name][number] = (time.perf_counter() - began) * 1e3
    return taken


def show(what: str, taken: dict[str, np.ndarray]) -> None:
    """Print a row for each service."""
    rng = np.random.default_rng(1)
    for name, milliseconds in taken.items():
        added = milliseconds - taken[PLAIN]
        medians = np.median(rng.choice(added, (RESAMPLES, len(added))), axis=1)
        low, high = np.percentile(medians, (2.5, 97.5))
        difference = "" if name == PLAIN else f"{np.median(added):+.2f} ({low:+.2f} to {high:+.2f})"
        p99 = np.percentile(milliseconds, 99)
        print(f"| {what} | {name} | {np.median(milliseconds):.2f} | {p99:.2f} | {difference} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clicks", type=int, default=200)
    clicks = parser.parse_args().clicks
    photo = np.ascontiguousarray(skimage.data.astronaut())
    points = np.random.default_rng(2).uniform(20, 490, (clicks + WARM_UP, 2)).tolist()
    with ExitStack() as stack:
        ways = start_all(stack)
        clients = {name: stack.enter_context(way.connect()) for name, way in ways.items()}
        sessions = {name: stack.enter_context(client.open(photo)) for name, client in clients.items()}

        def click(name: str, number: int) -> None:
            sessions[name].prompt(TOOL, points=[(*points[number], "positive")])

        def undo_and_redo(name: str, number: int) -> None:
            two = [(200, 200, "positive"), (250, 250, "positive")]
            sessions[name].prompt(TOOL, points=two[: 1 + number % 2])

        def send_photo(name: str, number: int) -> None:
            photo[0, 0] = divmod(number + WARM_UP, 256)[1], (number + WARM_UP) // 256, 7  # a new one for each round
            sessions[name].set_image(photo)

        def connect(name: str, _: int) -> None:
            with ways[name].connect() as client:
                client.models()

        print("| | | median ms | p99 ms | more than plain, ms |\n|---|---|---|---|---|")
        show("a click", measure(ways, clicks, click))
        # The same messages without an inference, whose time varies by more than TLS takes.
        show("a click that is answered from memory", measure(ways, 5 * clicks, undo_and_redo))
        show("a photo of 0.8 MB, raw", measure(ways, 2 * clicks, send_photo))
        show("a connection and its first call", measure(ways, 2 * clicks, connect))


if __name__ == "__main__":
    main()
