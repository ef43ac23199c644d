"""The networks whose checkpoints were published, by the names under which users know them."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from polywand_zoo.networks.dextr import Dextr
from polywand_zoo.networks.fbrs import FbrsDeepLab, FbrsHrnet
from polywand_zoo.networks.iog import Iog
from polywand_zoo.networks.ritm import Ritm

ARCHITECTURES: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "dextr_resnet101": Dextr,
        "iog_resnet101": Iog,
        "hrnet18s": lambda: Ritm(18, 48, small=True),
        "hrnet18": lambda: Ritm(18, 64),
        "hrnet32": lambda: Ritm(32, 128),
        "fbrs_resnet34": lambda: FbrsDeepLab(34, 128),
        "fbrs_resnet50": lambda: FbrsDeepLab(50, 128),
        "fbrs_resnet101": lambda: FbrsDeepLab(101, 256),
        "fbrs_hrnet18": lambda: FbrsHrnet(18, 64),
        "fbrs_hrnet32": lambda: FbrsHrnet(32, 128),
    }
)
