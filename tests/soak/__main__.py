"""A soak: annotators come and go for a long time, Triton is killed once, and at the end everything is where it was.

    make soak MINUTES=20      (or: python -m tests.soak --minutes 20 --annotators 4 --seed 1)

Prints what the service takes of the machine every minute. After a warm-up, and at the end, all of them leave; what
there is more of then than an allowance (see `state`) makes the exit status 1, with a sentence for each. So does every
error that was not provoked.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.footprint import tritonserver
from tests.running import REPOSITORY, Service, running_service
from tests.soak.annotators import PHOTOS, Crew, Tally
from tests.soak.state import HEADER, State, growth, look, row

MODELS = ("nanodet", "grabcut", "wand_click")
LONGEST_WARM_UP_MINUTES = 3.0
WARM_UP_SHARE = 0.25
RECOVERY_SECONDS = 60.0
# For connections to end and idle threads to go, after all have left.
REST_SECONDS = 10.0
MOST_WORDS = 20  # unexpected errors that are printed


class Soak:
    """One soak of one service, step by step."""

    def __init__(self, service: Service, photo: Path, options: argparse.Namespace) -> None:
        self._service, self._photo, self._options = service, photo, options
        self._tally = Tally()
        self._begin = time.monotonic()
        self._interval = max(10.0, min(60.0, options.minutes * 60 / 10))

    async def run(self) -> list[str]:
        """Warm up, work, kill Triton in the middle, work on; return what is wrong, in sentences."""
        total = self._options.minutes * 60
        warm_up = min(LONGEST_WARM_UP_MINUTES * 60, WARM_UP_SHARE * total)
        print(f"{'minute':>6} {HEADER} {'done':>7} {'expected':>9} {'wrong':>6}", flush=True)
        crew = self._crew(0)
        await self._watch(until=warm_up)
        before = await self._rest(crew, "after the warm-up")
        crew = self._crew(1)
        await self._watch(until=total / 2)
        await self._kill_triton()
        await self._watch(until=total)
        after = await self._rest(crew, "at the end")
        return [*self._errors(), *growth(before, after)]

    def _crew(self, shift: int) -> Crew:
        seed = 1000 * (self._options.seed + shift)
        return Crew(self._service.target, self._options.annotators, self._photo, self._tally, seed)

    async def _watch(self, until: float) -> None:
        """Print the state every interval until so many seconds after the begin."""
        while (left := self._begin + until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, self._interval))
            await self._report("")

    async def _rest(self, crew: Crew, when: str) -> State:
        """Let all annotators leave; return the state without any client."""
        await crew.leave()
        await asyncio.sleep(REST_SECONDS)
        return await self._report(f"all have left, {when}")

    async def _kill_triton(self) -> None:
        kinds = 'polywand_models_ready{kind="interactor"}', 'polywand_models_ready{kind="detector"}'
        before = [await asyncio.to_thread(self._service.metric, kind) for kind in kinds]
        self._tally.outage = True
        tritonserver(self._service).kill()
        print("       Triton was killed", flush=True)
        await asyncio.sleep(2)
        deadline = time.monotonic() + RECOVERY_SECONDS
        while [await asyncio.to_thread(self._service.metric, kind) for kind in kinds] != before:
            if time.monotonic() > deadline:
                raise AssertionError(f"Triton did not come back within {RECOVERY_SECONDS:g} s")
            await asyncio.sleep(0.5)
        print("       Triton is back", flush=True)
        await asyncio.sleep(self._interval / 2)  # answers to what was asked before
        self._tally.outage = False

    async def _report(self, what: str) -> State:
        if self._service.process.poll() is not None:
            raise AssertionError("the service has ended")
        state = await asyncio.to_thread(look, self._service)
        tally = self._tally
        counts = f"{tally.answers.total():7} {tally.expected.total():9} {len(tally.unexpected):6}"
        print(f"{(time.monotonic() - self._begin) / 60:6.1f} {row(state)} {counts}  {what}", flush=True)
        return state

    def _errors(self) -> list[str]:
        print("\ndone:", dict(self._tally.answers), "\nexpected errors:", dict(self._tally.expected))
        wrong = self._tally.unexpected
        return wrong[:MOST_WORDS] + ([f"and {len(wrong) - MOST_WORDS} errors more"] if len(wrong) > MOST_WORDS else [])


def main() -> int:
    """Run the soak; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--annotators", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photo, log = Path(folder) / "photo.jpg", Path(folder) / "log"
        photo.write_bytes(PHOTOS[0.5])
        with running_service(log, f"--model-repository={REPOSITORY}") as service:
            service.wait_ready(*MODELS)
            wrong = asyncio.run(Soak(service, photo, options).run())
        if wrong:
            print("\nthe service's last lines:\n" + log.read_text()[-3000:])
    for sentence in wrong:
        print("WRONG:", sentence)
    print("failed" if wrong else "everything is where it was")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
