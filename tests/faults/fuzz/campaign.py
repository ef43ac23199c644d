"""A campaign: many cases at once beside a well-behaved client, and what came of all of them."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from polywand_contract.v1 import annotation_pb2 as pb
from tests.faults.fuzz.bystander import Bystander
from tests.faults.fuzz.case import DETECT_STREAM, INTERACT, Case
from tests.faults.fuzz.generate import make_case
from tests.faults.fuzz.oracle import breaches
from tests.faults.fuzz.play import Record, open_channel, play
from tests.faults.fuzz.sizes import Sizes
from tests.faults.fuzz.state import Watch
from tests.running import Service

# A connection that so many cases have used is given up for a new one.
CASES_OF_A_CONNECTION = 20
MOST_NAMED = 12


@dataclass(slots=True)
class Findings:
    """What is wrong, in words, and what was counted.

    cases: by kind and by the outcome of the call. answers: by kind of case and of answer. spans: begin and end of each
    case by its number, by the monotonic clock.
    """

    wrong: list[str] = field(default_factory=list)
    cases: Counter[tuple[str, str]] = field(default_factory=Counter)
    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    spans: dict[int, tuple[float, float]] = field(default_factory=dict)

    def at_work(self, begin: float, end: float) -> list[int]:
        """Numbers of the cases that ran at some time between."""
        return [number for number, (first, last) in self.spans.items() if first < end and last > begin]


@dataclass(slots=True)
class Campaign:
    """Cases of one seed against one service.

    target: of the service. seed, sizes: make the cases. workers: cases at a time. failures: where failing cases are
    written.
    """

    target: str
    seed: int
    sizes: Sizes
    sizes_name: str
    workers: int
    deadline_seconds: float
    failures: Path
    findings: Findings = field(default_factory=Findings)

    def run(self, numbers: Iterator[int], bystander: Bystander, service: Service | None = None) -> Findings:
        """Play these cases. service: None when only its target is known; then its state is not looked at."""
        bystander.work_once()
        watch = Watch(service) if service is not None else None
        with bystander:
            asyncio.run(self._play_all(numbers, service))
        for failure in bystander.failures:
            others = self.findings.at_work(failure.begin, failure.end)
            self.findings.wrong.append(
                f"the well-behaved client: {failure.what} (meanwhile cases {others[:MOST_NAMED]} of seed {self.seed})"
            )
        if watch is not None:
            self.findings.wrong += watch.breaches()
        return self.findings

    async def _play_all(self, numbers: Iterator[int], service: Service | None) -> None:
        await asyncio.gather(*(self._work(numbers, service) for _ in range(self.workers)))

    async def _work(self, numbers: Iterator[int], service: Service | None) -> None:
        """One worker: it takes the next number whenever it is free."""
        while service is None or service.process.poll() is None:
            async with open_channel(self.target) as channel:
                for _ in range(CASES_OF_A_CONNECTION):
                    number = next(numbers, None)
                    if number is None:
                        return
                    await self._play_one(channel, number)

    async def _play_one(self, channel, number: int) -> None:
        case = make_case(self.seed, number, self.sizes)
        begin = time.monotonic()
        self.findings.spans[number] = (begin, float("inf"))
        record = await play(channel, case, self.deadline_seconds)
        self.findings.spans[number] = (begin, time.monotonic())
        self.findings.cases[case.kind, record.outcome] += 1
        self.findings.answers.update((case.kind, answer) for answer in answers(case, record))
        found = breaches(case, record)
        if found:
            self._report(number, case, record, found)

    def _report(self, number: int, case: Case, record: Record, found: list[str]) -> None:
        path = self.failures / f"{self.seed}-{number}.json"
        outcome = {"outcome": record.outcome, "text": record.text, "answers": answers(case, record), "wrong": found}
        content = {"seed": self.seed, "number": number, "sizes": self.sizes_name, **case.to_json(), **outcome}
        path.write_text(json.dumps(content, indent=1))
        replay = f"python -m tests.faults.fuzz --seed {self.seed} --only {number} --sizes {self.sizes_name}"
        named = "; ".join(dict.fromkeys(found[:MOST_NAMED]))
        self.findings.wrong.append(f"case {number} ({case.kind}, {case.method}): {named}\n    {replay}\n    {path}")


def answers(case: Case, record: Record) -> list[str]:
    """A word for each answer: what it holds, or the error's code."""
    if case.method not in (INTERACT, DETECT_STREAM):
        return ["answer" for _ in record.replies]
    reply = pb.InteractResponse if case.method == INTERACT else pb.DetectStreamResponse
    return [_word(reply.FromString(data)) for data in record.replies]


def _word(reply: pb.InteractResponse | pb.DetectStreamResponse) -> str:
    kind = reply.WhichOneof("result")
    return f"error {reply.error.code}" if kind == "error" else str(kind)
