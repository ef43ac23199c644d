"""What can be imported: the published interactors, how they are prompted, and where their authors publish them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Crop = Mapping[str, Any]


class SourceError(Exception):
    """A checkpoint has no address that a program could download it from; the message names the authors' page."""


@dataclass(frozen=True, slots=True)
class Published:
    """A published interactor.

    title, help_message, threshold, prompt, crop: as the service reads them (`specs.py`).
    prompt_style: what a user does, in a few words.
    parameters: of the network, in millions. input_size: what the network sees.
    checkpoints: file names under which its authors publish weights. page: where.
    release: the address of the folder that holds these files; empty where a browser is needed to get them.
    paper, license, trained_on: of the weights.
    is_refined: whether it is served in two parts, with f-BRS between them.
    """

    name: str
    title: str
    help_message: str
    prompt_style: str
    parameters: float
    input_size: str
    checkpoints: tuple[str, ...]
    page: str
    paper: str
    license: str
    trained_on: str
    threshold: float
    prompt: Mapping[str, Any]
    crop: Crop
    release: str = ""
    is_refined: bool = False

    @property
    def weights_source(self) -> str:
        """The authors of the weights, the training data and the page, in one line."""
        return f"{self.paper}; trained on {self.trained_on}; {self.page}"

    def url(self, checkpoint: str | None) -> str:
        """Return where a checkpoint can be downloaded, by its file name; None for the first.

        Raises:
            SourceError
        """
        if checkpoint is not None and checkpoint not in self.checkpoints:
            listed = ", ".join(self.checkpoints)
            raise SourceError(f"the authors of {self.name} publish no {checkpoint}, but {listed}")
        if not self.release:
            raise SourceError(
                f"the weights of {self.name} have no address for programs: download {self.checkpoints[0]} with a "
                f"browser from {self.page} and import it with --checkpoint, or name an address with --url"
            )
        return f"{self.release}/{checkpoint or self.checkpoints[0]}"


def zoom_in(*, zoomed_side: int) -> Crop:
    """Return how the predictors of RITM (400 pixels) and f-BRS (480) choose their crops."""
    return {
        "policy": "roi",
        "expansion": 1.4,
        "min_side": 200,
        "inside_above": 0.5,
        "keep_from": 0.5,
        "longest_side": 800,
        "zoomed_side": zoomed_side,
    }


def _ritm(name: str, title: str, parameters: float, *checkpoints: str) -> Published:
    return Published(
        name=name,
        title=title,
        help_message="Click on the object; click what is missing, and right-click what is too much.",
        prompt_style="clicks",
        parameters=parameters,
        input_size="any",
        checkpoints=checkpoints,
        page="https://github.com/saic-vul/ritm_interactive_segmentation",
        release="https://github.com/saic-vul/ritm_interactive_segmentation/releases/download/v1.0",
        paper="Sofiiuk, Petrov, Konushin: Reviving Iterative Training with Mask Guidance (2021)",
        license="MIT",
        trained_on="COCO and LVIS, or SBD",
        threshold=0.49,
        prompt={"min_positive_points": 1, "min_negative_points": 0, "extreme_points": 0, "box": "none"},
        crop=zoom_in(zoomed_side=400),
    )


def _fbrs(name: str, title: str, parameters: float, *checkpoints: str) -> Published:
    return Published(
        name=name,
        title=title,
        help_message="Click on the object; click what is missing, and right-click what is too much. It goes over its"
        " answer until that agrees with every click, which takes a moment.",
        prompt_style="clicks",
        parameters=parameters,
        input_size="any",
        checkpoints=checkpoints,
        page="https://github.com/saic-vul/fbrs_interactive_segmentation",
        release="https://github.com/saic-vul/fbrs_interactive_segmentation/releases/download/v1.0",
        paper="Sofiiuk, Petrov, Barinova, Konushin: f-BRS: Rethinking Backpropagating Refinement (2020)",
        license="MPL-2.0",
        trained_on="SBD, or COCO and LVIS",
        threshold=0.5,
        prompt={"min_positive_points": 1, "min_negative_points": 0, "extreme_points": 0, "box": "none"},
        crop=zoom_in(zoomed_side=480),
        is_refined=True,
    )


_ALL = (
    Published(
        name="dextr_resnet101",
        title="DEXTR (ResNet-101)",
        help_message="Click the four extreme points of the object: its leftmost, topmost, rightmost and bottommost.",
        prompt_style="4 extreme points",
        parameters=48.8,
        input_size="512 x 512",
        checkpoints=("dextr_pascal-sbd.pth",),
        page="https://github.com/scaelles/DEXTR-PyTorch",
        release="https://data.vision.ee.ethz.ch/kmaninis/share/DEXTR/Downloads/models",
        paper="Maninis, Caelles, Pont-Tuset, Van Gool: Deep Extreme Cut (2018)",
        license="MIT",
        trained_on="PASCAL VOC and SBD",
        threshold=0.8,
        prompt={"min_positive_points": 0, "min_negative_points": 0, "extreme_points": 4, "box": "none"},
        crop={"policy": "margin", "pixels": 50, "keep_margin": False, "resampling": "cubic"},
    ),
    Published(
        name="iog_resnet101",
        title="Inside-Outside Guidance (ResNet-101)",
        help_message="Draw a tight box around the object, then click in its middle.",
        prompt_style="a box and 1 click inside",
        parameters=52.1,
        input_size="512 x 512",
        checkpoints=("IOG_PASCAL_SBD.pth",),
        page="https://github.com/shiyinzhang/Inside-Outside-Guidance",
        paper="Zhang, Liew, Wei, Wei, Zhao: Interactive Object Segmentation with Inside-Outside Guidance (2020)",
        license="not stated by its authors",
        trained_on="PASCAL VOC and SBD",
        threshold=0.8,
        prompt={"min_positive_points": 1, "min_negative_points": 0, "extreme_points": 0, "box": "required"},
        crop={"policy": "margin", "pixels": 30, "keep_margin": True, "resampling": "linear"},
    ),
    _ritm("hrnet18s", "RITM (HRNet-18s)", 4.2, "coco_lvis_h18s_itermask.pth"),
    _ritm("hrnet18", "RITM (HRNet-18)", 10.0, "coco_lvis_h18_itermask.pth", "sbd_h18_itermask.pth"),
    _ritm("hrnet32", "RITM (HRNet-32)", 31.0, "coco_lvis_h32_itermask.pth"),
    _fbrs("fbrs_resnet34", "f-BRS (ResNet-34)", 23.3, "resnet34_dh128_sbd.pth"),
    _fbrs("fbrs_resnet50", "f-BRS (ResNet-50)", 31.4, "resnet50_dh128_sbd.pth", "resnet50_dh128_lvis.pth"),
    _fbrs("fbrs_resnet101", "f-BRS (ResNet-101)", 58.4, "resnet101_dh256_sbd.pth"),
    _fbrs("fbrs_hrnet18", "f-BRS (HRNet-18)", 10.0, "hrnet18_ocr64_sbd.pth"),
    _fbrs("fbrs_hrnet32", "f-BRS (HRNet-32)", 30.9, "hrnet32_ocr128_sbd.pth", "hrnet32_ocr128_lvis.pth"),
)

CATALOGUE: Mapping[str, Published] = MappingProxyType({published.name: published for published in _ALL})
