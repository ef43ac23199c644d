"""The published networks that are served in two parts, with f-BRS between them."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from polywand_zoo.networks.fbrs import FbrsDeepLab, FbrsHrnet
from polywand_zoo.networks.hrnet import together
from polywand_zoo.networks.refinable import Refinable
from polywand_zoo.published.catalogue import Published
from polywand_zoo.published.config import parameter
from polywand_zoo.published.export import CHECKED_SIZES, Precision, in_half, random_request
from polywand_zoo.published.folding import fold
from polywand_zoo.published.interactors import FbrsInteractor
from polywand_zoo.published.refined_hrnet import BranchDecoding, BranchEncoding
from polywand_zoo.published.repository import Addition
from polywand_zoo.refinement.config import encoder_config, encoder_name, head_config, head_name, tool_code, tool_config
from polywand_zoo.refinement.export import export
from polywand_zoo.refinement.parts import Parts


class Encoding(nn.Module):
    """A network up to its features."""

    def __init__(self, network: Refinable) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, maps: Tensor) -> Tensor:
        """See `Refinable.encode`."""
        return self.network.encode(image, maps)


class Decoding(nn.Module):
    """A network from its features on."""

    def __init__(self, network: Refinable) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor) -> Tensor:
        """See `Refinable.decode`."""
        return self.network.decode(features)


def divide(network: Refinable) -> Parts:
    """Divide a network as it was published."""
    encoder = FbrsInteractor(Encoding(network))
    return Parts(encoder.eval(), Decoding(network).eval(), (network.feature_channels,))


def divide_for_serving(network: Refinable) -> Parts:
    """Divide a network in the form that computes the same with the least work."""
    assert isinstance(network, nn.Module)
    folded = fold(network)
    if not isinstance(folded, FbrsHrnet):
        return divide(folded)
    hrnet = folded.feature_extractor
    channels = hrnet.branch_channels
    return Parts(
        FbrsInteractor(BranchEncoding(folded)).eval(),
        BranchDecoding(hrnet, list(channels)).eval(),
        channels,
        scaled=len(channels),
        joined=lambda *branches: (together(branches),),
    )


def part_names(name: str) -> tuple[str, str]:
    """Name the models that a refined one calls."""
    return encoder_name(name), head_name(name)


def additions(
    published: Published,
    network: nn.Module,
    precision: Precision,
    metadata: Mapping[str, str],
    tell: Callable[[str], None],
) -> list[Addition]:
    """Export a network as three models: its encoder, its head, and the tool that calls both."""
    assert isinstance(network, FbrsDeepLab | FbrsHrnet)
    exact, parts = divide(network), divide_for_serving(network)
    assert isinstance(exact.encoder, FbrsInteractor)
    requests = [
        random_request(exact.encoder, seed=seed, size=size, batch=2 - seed) for seed, size in enumerate(CHECKED_SIZES)
    ]
    graphs = export(
        parts,
        exact,
        [(request.image, request.points) for request in requests],
        half=in_half if precision is Precision.FP16 else None,
        **metadata,
    )
    tell(
        f"encoder: {precision}, {len(graphs.encoder) / 1e6:.1f} MB; on {graphs.prompts} random prompts features differ"
        f" from PyTorch's by {graphs.feature_difference:.1g} deviations"
        + ("" if precision is Precision.FP32 else " on average")
    )
    tell(
        f"head: fp32, {len(graphs.head) / 1e6:.1f} MB; no logit differs from PyTorch's by more than"
        f" {graphs.difference:.1g} deviations, no gradient from autograd's by more than"
        f" {graphs.gradient_difference:.1g} of its length"
    )
    name = published.name
    return [
        Addition(encoder_name(name), {"model.onnx": graphs.encoder}, encoder_config(name, parts)),
        Addition(head_name(name), {"model.onnx": graphs.head}, head_config(name, parts)),
        Addition(name, {"model.py": tool_code()}, tool_config(name, parts, parameter(published))),
    ]
