"""Boxes in files: CSV, or JSON such as `polywand detect --json` prints."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polywand import checks
from polywand.errors import InvalidRequest
from polywand.files import Source
from polywand.results import Box
from polywand_common.texts import shown

COLUMNS = ("x0", "y0", "x1", "y1")
FORMS = "is not CSV with the columns x0, y0, x1, y1, nor a JSON list of [x0, y0, x1, y1] or of objects with a box"


@dataclass(frozen=True, slots=True)
class NamedBox:
    """A box of an object. id: as in its file, or ""."""

    box: Box
    id: str = ""


def read_boxes(source: Source) -> list[NamedBox]:
    """Read a file of boxes.

    CSV has a box a line: columns by a header (x0, y0, x1, y1 and perhaps id; others are ignored), or these four first
    ones without a header. JSON has a list of [x0, y0, x1, y1] or of objects with `box` and perhaps `id`; or an object
    with such a list as `detections` or `objects`.
    Raises InvalidRequest, which names the file and the box, when it cannot be read or has no boxes.
    """
    name = shown(source.name)
    data = source.read()
    try:
        text = data.decode("utf-8-sig")
        boxes = list(_of_json(json.loads(text)) if text.lstrip()[:1] in ("[", "{") else _of_csv(text))
    except json.JSONDecodeError as error:
        raise checks.invalid("boxes", f"{name} is not valid JSON: {error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise checks.invalid("boxes", f"{name} is neither CSV nor JSON: {error}") from error
    except InvalidRequest as error:
        raise checks.invalid(
            "boxes", f"{name}: {error.violations[0].field} {error.violations[0].description}"
        ) from error
    if not boxes:
        raise checks.invalid("boxes", f"{name} has no boxes")
    return boxes


def _of_json(content: Any) -> Iterator[NamedBox]:
    if isinstance(content, dict):
        content = next((content[key] for key in ("objects", "detections") if key in content), None)
    if not isinstance(content, list):
        raise checks.invalid("it", FORMS)
    for number, entry in enumerate(content):
        if isinstance(entry, dict):
            yield _named(f"box {number}", entry.get("box"), entry.get("id"))
        else:
            yield _named(f"box {number}", entry, None)


def _of_csv(text: str) -> Iterator[NamedBox]:
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if any(row)]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if set(COLUMNS) <= set(header):
        places, id_place = [header.index(column) for column in COLUMNS], header.index("id") if "id" in header else None
        rows = rows[1:]
    elif _numbers(header[:4]) is not None:
        places, id_place = [0, 1, 2, 3], None
    else:
        raise checks.invalid("it", FORMS)
    for number, row in enumerate(rows):
        cells = [row[place] if place < len(row) else "" for place in places]
        id_ = row[id_place] if id_place is not None and id_place < len(row) else None
        yield _named(f"box {number}", _numbers(cells) or cells, id_)


def _numbers(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _named(where: str, box: Any, id_: Any) -> NamedBox:
    name = "" if id_ is None else str(id_) if isinstance(id_, int) else id_
    return NamedBox(
        Box(*checks.coordinates(where, box, len(COLUMNS))), checks.text(where, name, checks.MAX_OBJECT_ID_BYTES)
    )
