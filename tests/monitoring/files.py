"""The files of deploy/monitoring, read as the tests want them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql
import yaml

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "deploy" / "monitoring"
RULES = FOLDER / "rules" / "polywand.yml"
RULE_TESTS = FOLDER / "rules" / "tests" / "polywand.yml"
DASHBOARD = FOLDER / "dashboards" / "polywand.json"
RUNBOOK = ROOT / "docs" / "runbook.md"

# As Grafana would fill them in; the window must hold a few scrapes.
VARIABLES = {"$__rate_interval": "20s", "$job": ".*", "$instance": ".*"}


@dataclass(frozen=True)
class Shown:
    """One expression of the dashboard. legend: of its series."""

    panel: str
    expr: str
    legend: str


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def shown() -> list[Shown]:
    """What the dashboard shows, with its variables filled in."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"]
            for name, value in VARIABLES.items():
                expr = expr.replace(name, value)
            found.append(Shown(panel["title"], expr, target.get("legendFormat", "")))
    return found


def legend_labels(legend: str) -> set[str]:
    return set(re.findall(r"{{(\w+)}}", legend))


def parts(expr: promql.Expr) -> Iterator[promql.Expr]:
    """An expression, and all expressions in it."""
    yield expr
    inner = [getattr(expr, name, None) for name in ("lhs", "rhs", "expr", "vector_selector")]
    for part in (*inner, *getattr(expr, "args", ())):
        if isinstance(part, promql.Expr):
            yield from parts(part)


def selectors(text: str) -> Iterator[tuple[str, set[str]]]:
    """The names of the series that an expression selects, each with the labels that it names."""
    for part in parts(promql.parse(text)):
        selector = getattr(part, "vector_selector", part)
        if isinstance(selector, promql.VectorSelector):
            yield selector.name, {matcher.name for matcher in selector.matchers.matchers}


def grouped(text: str) -> Iterator[tuple[set[str], set[str]]]:
    """The labels by which an expression adds up, each with the names of what it adds up."""
    for part in parts(promql.parse(text)):
        if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
            yield set(part.modifier.labels), {name for name, _ in selectors(part.expr.prettify())}
