"""The fuzzer of the gRPC contract and of image files.

    python -m tests.faults.fuzz --minutes 10 --seed 1
    python -m tests.faults.fuzz --cases 2000 --seed 1 --sizes large
    python -m tests.faults.fuzz --seed 1 --only 1234        (one case again, with its answers)

It starts a service of its own, or plays against --target, whose state it cannot look at. What is against the contract
is printed with the line that plays it again; then the exit status is 1.
"""

import argparse
import io
import itertools
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image

from tests.faults.fuzz.bystander import Bystander
from tests.faults.fuzz.campaign import Campaign, Findings
from tests.faults.fuzz.generate import make_case
from tests.faults.fuzz.sizes import NAMED
from tests.running import Service, copy_newest, running_service

MODELS = ("wand", "nanodet", "grabcut")
TOOLS = ("wand_click", "nanodet", "grabcut")
DEADLINE_SECONDS = 30.0
WORKERS = 6


def bystander_of(target: str) -> Bystander:
    """A well-behaved client with a real photo."""
    buffer = io.BytesIO()
    photo = Image.fromarray(skimage.data.astronaut())
    photo.save(buffer, "JPEG")
    return Bystander(target, buffer.getvalue(), photo.size)


def main() -> int:
    """Run the fuzzer; return the exit status."""
    options = _options()
    options.failures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.target:
            return _run(options, options.target, None)
        repository = copy_newest(Path(folder) / "models", *MODELS)
        log = Path(folder) / "log"
        with running_service(log, f"--model-repository={repository}") as service:
            service.wait_ready(*TOOLS)
            status = _run(options, service.target, service)
        if status:
            kept = shutil.copy(log, options.failures / f"{options.seed}.log")
            print(f"the service's log: {kept}")
        return status


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--minutes", type=float, default=5)
    extent.add_argument("--cases", type=int)
    extent.add_argument("--only", type=int, help="number of one case")
    parser.add_argument("--sizes", choices=NAMED, default="small", help="how costly cases may be")
    parser.add_argument("--workers", type=int, default=WORKERS, help="cases at a time")
    parser.add_argument("--deadline", type=float, default=DEADLINE_SECONDS, help="seconds of one call")
    parser.add_argument("--target", help="host:port of a service that runs already")
    default = Path(tempfile.gettempdir()) / "polywand-fuzz"
    parser.add_argument("--failures", type=Path, default=default, help="folder for failing cases")
    return parser.parse_args()


def _run(options: argparse.Namespace, target: str, service: Service | None) -> int:
    sizes = NAMED[options.sizes]
    campaign = Campaign(target, options.seed, sizes, options.sizes, options.workers, options.deadline, options.failures)
    if options.only is not None:
        print(make_case(options.seed, options.only, sizes).to_json())
    bystander = bystander_of(target)
    findings = campaign.run(_numbers(options), bystander, service)
    _print(findings, bystander)
    return 1 if findings.wrong else 0


def _numbers(options: argparse.Namespace) -> Iterator[int]:
    if options.only is not None:
        yield options.only
    elif options.cases is not None:
        yield from range(options.cases)
    else:
        deadline = time.monotonic() + options.minutes * 60
        yield from itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count())


def _print(findings: Findings, bystander: Bystander) -> None:
    for title, counts in (("cases", findings.cases), ("answers", findings.answers)):
        print(f"\n{title}: {counts.total()}")
        for kind in sorted({kind for kind, _ in counts}):
            of_kind = Counter({outcome: count for (other, outcome), count in counts.items() if other == kind})
            print(f"  {kind:26}", ", ".join(f"{outcome} {count}" for outcome, count in of_kind.most_common()))
    slowest = sorted(((end - begin, number) for number, (begin, end) in findings.spans.items()), reverse=True)[:5]
    print("\nslowest cases:", ", ".join(f"{number} ({seconds:.1f} s)" for seconds, number in slowest))
    for what, seconds in (("ListModels", bystander.list_seconds), ("a click", bystander.click_seconds)):
        if seconds:
            p50, p99 = np.percentile(seconds, (50, 99)) * 1000
            print(f"beside them: {what}: {len(seconds)} calls, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    for sentence in findings.wrong:
        print("WRONG:", sentence)
    print(f"{len(findings.wrong)} things are wrong" if findings.wrong else "all is well")


if __name__ == "__main__":
    sys.exit(main())
