"""The repository of the session's puppet service: a tool for each thing that tests want to know of the service."""

from collections.abc import Mapping
from pathlib import Path

from tests.interactors import (
    BROKEN,
    COUNTER,
    DAZZLED,
    DISK,
    KEEPER,
    LEANING,
    PREAMBLE,
    PREV_MASK,
    SCORES,
    STATE,
    STATE_OUT,
    add_interactor,
)
from tests.running import copy_newest
from tests.triton.models import add_model

# Of the images, of the masks of one stream, of those of all streams, and of images that nothing uses: small, so that
# tests reach the limits.
IMAGES_MEBIBYTES, STREAM_MEMORY_MEBIBYTES, MEMORY_MEBIBYTES = 32, 2, 4
KEPT_IMAGES_MEBIBYTES = 16
OPTIONS = (
    f"--images-mebibytes={IMAGES_MEBIBYTES}",
    f"--kept-images-mebibytes={KEPT_IMAGES_MEBIBYTES}",
    f"--stream-memory-mebibytes={STREAM_MEMORY_MEBIBYTES}",
    f"--memory-mebibytes={MEMORY_MEBIBYTES}",
)

LOOKS = '{"policy": "zoom_in", "first_looks": [0.5, 1.0], "look_again_below": 0.7}'
TWICE = '{"policy": "zoom_in", "first_looks": [0.5, 1.0]}'
MARGIN = '{"policy": "margin", "fraction": 0.3, "longest_side": 128}'
BATCH = 4

# LOGITS: the upper half of the box, on every row by itself. A file tells how many rows each request had, of which size.
UPPER_HALF = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        with open("JOURNAL", "a") as journal:
            journal.write("%d %d %d\\n" % image.shape[:3])
        rows, columns = np.mgrid[: image.shape[1], : image.shape[2]]
        logits = []
        for row in points:
            corners = row[(row[:, 2] == 2) | (row[:, 2] == 3), :2]
            (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
            inside = np.minimum(np.minimum(columns - x0, x1 - columns), np.minimum(rows - y0, (y0 + y1) / 2 - rows))
            logits.append(inside)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", np.stack(logits)[:, None].astype(np.float32))])
"""
)

# LOGITS: nothing anywhere.
NOTHING = (
    PREAMBLE
    + """
    def answer(self, request):
        image = self.tensor(request, "IMAGE")
        logits = np.full((len(image), 1, *image.shape[1:3]), -9, np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits)])
"""
)

# LOGITS: three answers, disks around the last point of 8, 16 and 32 pixels times the number of inferences, as STATE
# counts them, each with the previous mask. The darker the crop, the more probable they are. SCORES: the brighter the
# crop, the higher; the second one is the best, or if the crop's first pixel is white the first one. If that is blue,
# the last answer is every second pixel of every second row.
SEVERAL = (
    PREAMBLE
    + """
    def answer(self, request):
        names = ("IMAGE", "POINTS", "PREV_MASK", "STATE")
        tensors = zip(*(self.tensor(request, name) for name in names))
        logits, scores, counts = zip(*(self.answer_row(*row) for row in tensors))
        tensors = {"LOGITS": logits, "SCORES": scores, "STATE_OUT": counts}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, np.stack(values).astype(np.float32)) for name, values in tensors.items()]
        )

    def answer_row(self, image, points, before, state):
        count, first, brightness = state + 1, tuple(image[0, 0]), image.mean() / 255
        centre = points[points[:, 2] >= 0][-1, :2]
        disks = np.concatenate([self.disk(image.shape[:2], centre, size * count[0])[0] for size in (8, 16, 32)])
        inside = (disks > 0) | (before > 0.5)
        if first == (0, 0, 255):
            inside[2] = (np.indices(image.shape[:2]) % 2).all(axis=0)
        scores = np.array([1.5, 0.1, -0.2] if first == (255, 255, 255) else [0.5, 0.9, 0.7])
        return np.where(inside, 8 - 7 * brightness, -8), scores * (0.5 + brightness / 2), count
"""
)

# As LOGITS of three answers, with scores that are none.
UNSCORED = (
    PREAMBLE
    + """
    def answer(self, request):
        image = self.tensor(request, "IMAGE")
        logits = np.zeros((len(image), 3, *image.shape[1:3]), np.float32)
        scores = np.full((len(image), 3), np.nan, np.float32)
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits), pb_utils.Tensor("SCORES", scores)])
"""
)

# LOGITS: of one object, however many were asked for.
SHORT = NOTHING.replace("(len(image), 1,", "(1, 1,")

# LOGITS: where a channel of the image, which the first point's x says, is brighter than the point's y.
BRIGHTER = (
    PREAMBLE
    + """
    def answer(self, request):
        image, points = self.tensor(request, "IMAGE"), self.tensor(request, "POINTS")
        channel, shade = (int(round(float(value))) for value in points[0, 0, :2])
        logits = image[:, None, ..., channel].astype(np.float32) - shade - 0.5
        return pb_utils.InferenceResponse([pb_utils.Tensor("LOGITS", logits)])
"""
)

# Its process dies.
MORTAL = (
    PREAMBLE
    + """
    def answer(self, request):
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
"""
)

# One of the detector's pixels is four of an image's of 1024 x 1024. By score: a box in the corner, then three around
# the centre, each in the one before; the last one, in another corner, has too low a score to count.
FINDER = (
    PREAMBLE
    + """
    def answer(self, request):
        boxes = [[0, 0, 60, 60], [64, 64, 192, 192], [96, 96, 160, 160], [112, 112, 144, 144], [226, 0, 256, 60]]
        scores = [[0.95], [0.9], [0.8], [0.7], [0.4]]
        tensors = {"BOXES": boxes, "SCORES": scores}
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, np.array([values], np.float32)) for name, values in tensors.items()]
        )
"""
)
FAILS = FINDER.replace("        boxes =", "        raise ValueError('strings cut')\n        boxes =")
DETECTOR_CONFIG = """
backend: "python"
max_batch_size: 2
input [ { name: "IMAGE" data_type: TYPE_UINT8 dims: [ 256, 256, 3 ] } ]
output [
  { name: "BOXES" data_type: TYPE_FP32 dims: [ 5, 4 ] },
  { name: "SCORES" data_type: TYPE_FP32 dims: [ 5, 1 ] }
]
parameters { key: "polywand" value: { string_value:
  '{"kind": "detector", "display_name": "finder",'
  ' "labels": [{"name": "thing", "color": "#ff8000", "parent": "matter"}]}'
} }
"""
DETECTORS = {"finder": FINDER, "stalls": FINDER, "fails": FAILS}
ABSENT = "absent"
LATE = "late"


def with_proposals(detector: str) -> str:
    """The name of the tool that asks this detector for proposals."""
    return f"with_{detector}"


def _proposals(detector: str, more: str = "") -> str:
    proposals = f'{{"model": "{detector}", "score": 0.5, "at_most": 2{more}}}'
    return f'{{"policy": "zoom_in", "box_margin": 0, "proposals": {proposals}}}'


# All one model, so that one process serves them; a gate of "dazzled" holds all of them.
_AGREES = _proposals("finder", ', "agree_from": 0.3')
_DAZZLED_TOOLS: Mapping[str, Mapping[str, str]] = {
    "dazzled": {"crop": LOOKS},
    "dazzled_twice": {"crop": TWICE},
    **{with_proposals(name): {"crop": _proposals(name)} for name in (*DETECTORS, ABSENT, LATE)},
    "agrees": {"crop": _AGREES},
    "needs_two": {"crop": _AGREES, "prompt": '{"box": "optional", "min_positive_points": 2}'},
}
_NOTHING_TOOLS = {
    "nothing": {"prompt": '{"box": "optional"}'},
    "no_box": {"prompt": '{"box": "none"}'},
    "box_and_point": {"prompt": '{"box": "required", "min_positive_points": 1}'},
}
_SEVERAL_TOOLS = {
    "several": {},
    "several_flipped": {"flip": "true"},
    "several_looks": {"crop": TWICE},
}
_UPPER_HALF_TOOLS = {"upper_half": {"flip": "false"}, "upper_half_flipped": {"flip": "true"}, "wand_click": {}}


def make_puppets(root: Path) -> Path:
    """Lay them out beside the shipped detector, as a model repository."""
    copy_newest(root, "nanodet")
    add_interactor(root, "counter", COUNTER, inputs=STATE, outputs=STATE_OUT)
    add_interactor(root, "keeper", KEEPER, inputs=PREV_MASK % (256, 256))
    add_interactor(root, "keeper_of_any_size", KEEPER, size=-1, inputs=PREV_MASK % (-1, -1))
    leaning = {"leaning": {"flip": "false"}, "leaning_flipped": {"flip": "true"}}
    add_interactor(root, "leaning", LEANING, inputs=STATE, outputs=STATE_OUT, batch=2, tools=leaning)
    add_interactor(root, "broken", BROKEN)
    add_interactor(root, "disk", DISK, inputs=PREV_MASK % (256, 256))
    add_interactor(root, "dazzled", DAZZLED, tools=_DAZZLED_TOOLS)
    for name, code in DETECTORS.items():
        add_model(root, name, DETECTOR_CONFIG, code)
    add_upper_half(root, "upper_half", tools=_UPPER_HALF_TOOLS)
    add_upper_half(root, "upper_half_of_any_size", size=-1)
    add_interactor(root, "nothing", NOTHING, tools=_NOTHING_TOOLS)
    add_several(root, "several", tools=_SEVERAL_TOOLS)
    add_interactor(root, "unscored", UNSCORED, answers=3, outputs=SCORES % 3)
    add_interactor(root, "short", SHORT, batch=2)
    add_interactor(root, "brighter", BRIGHTER)
    add_interactor(root, "mortal", MORTAL)
    add_interactor(root, "doomed", "")
    (root / "doomed" / "1" / "model.py").unlink()
    return root


def add_upper_half(root: Path, name: str, **options) -> None:
    """Add a tool that outlines the upper half of each box."""
    code = UPPER_HALF.replace("JOURNAL", str(journal(root, name)))
    add_interactor(root, name, code, **{"crop": MARGIN, "batch": BATCH} | options)


def add_several(root: Path, name: str, **options) -> None:
    """Add a tool that has three answers to each prompt."""
    tensors = {"inputs": PREV_MASK % (256, 256) + STATE, "outputs": SCORES % 3 + STATE_OUT}
    add_interactor(root, name, SEVERAL, answers=3, batch=BATCH, **tensors, **options)


def add_detector(root: Path, name: str) -> None:
    """Add another finder."""
    add_model(root, name, DETECTOR_CONFIG, FINDER)


def journal(root: Path, name: str) -> Path:
    """The file in which a model of upper halves writes down its requests."""
    return root.parent / f"{name}-journal"
