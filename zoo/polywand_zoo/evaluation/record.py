"""The results of an evaluation as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from polywand_zoo.evaluation.prompts import Prompt
from polywand_zoo.evaluation.run import Results, Row
from polywand_zoo.evaluation.scores import Agreement, Scores, agreement, grouped, score
from polywand_zoo.evaluation.trials import Outcome, Trial

DIGITS = 5


def write_json(results: Results, path: Path) -> None:
    """Write the rules, and per tool its scores (per data set and group as well) and every prompt of every object."""
    content = {
        "max_clicks": results.rules.max_clicks,
        "stop_at": results.rules.stop_at,
        "interrupted": results.interrupted,
        "tools": [_tool(results, row) for row in results.rows],
        "left_out": [{"file": str(flaw.path), "why": flaw.what} for flaw in results.flaws],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _tool(results: Results, row: Row) -> dict[str, Any]:
    outcomes, clicks = results.outcomes[row.name], results.rules.max_clicks
    sets = grouped(outcomes, lambda outcome: outcome.subject.data)
    said: dict[str, Any] = {
        **{"model": row.tool.model, "version": row.tool.version, "way": row.tool.way, "masks": row.tool.masks},
        "scores": _scores(score(outcomes, clicks)) if outcomes else None,
        "data": {
            data: {
                "scores": _scores(score(part, clicks)),
                "groups": {
                    group: _scores(score(members, clicks))
                    for group, members in grouped(part, lambda outcome: outcome.subject.group).items()
                },
            }
            for data, part in sets.items()
        },
    }
    if row.twin is not None:
        said["agreement"] = {"with": row.twin.way, **_agreement(agreement(results.likenesses[row.name]))}
    said["objects"] = [_outcome(outcome) for outcome in outcomes]
    return said


def _scores(scores: Scores) -> dict[str, Any]:
    said: dict[str, Any] = _rounded(asdict(scores))
    said["noc"] = {f"{level:.2f}": value for level, value in said["noc"].items()}
    said["never"] = {f"{level:.2f}": value for level, value in said["never"].items()}
    return said


def _agreement(found: Agreement) -> dict[str, Any]:
    return {**_rounded(asdict(found)), "holds": found.holds}


def _outcome(outcome: Outcome) -> dict[str, Any]:
    subject = outcome.subject
    return {
        **{"data": subject.data, "group": subject.group, "name": subject.name, "image": str(subject.image)},
        **{"width": outcome.width, "height": outcome.height},
        "clicks": [
            {"x": trial.prompt.points[-1].x, "y": trial.prompt.points[-1].y, "label": trial.prompt.points[-1].label}
            | _trial(trial)
            for trial in outcome.clicks
        ],
        "starts": {kind.value: _prompt(trial.prompt) | _trial(trial) for kind, trial in outcome.starts.items()},
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {"iou": round(trial.iou, DIGITS), "obeyed": trial.obeyed, "seconds": round(trial.seconds, DIGITS)}


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {"points": [point._asdict() for point in prompt.points], "box": prompt.box}


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, DIGITS)
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case _:
            return value
