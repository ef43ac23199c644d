"""Gradients of a network's last part, written as a forward computation, so that they can be exported with it.

A module is traced into its operations. Each has a rule that carries a gradient from its output to its inputs by
ordinary tensor operations: a convolution's is another convolution, a softmax's a product. Autograd is not used.
"""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.nn import functional


class NoGradientError(NotImplementedError):
    """An operation has no rule here."""


@runtime_checkable
class Differentiable(Protocol):
    """A module that is traced as one operation and brings its own rule."""

    def pull(self, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Carry the gradient of forward's output to forward's inputs."""
        ...


@dataclass(frozen=True, slots=True)
class Call:
    """One operation as it was computed: what it was, on what, and what came out."""

    module: nn.Module | None
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any


@dataclass(frozen=True, slots=True)
class Computed:
    """A module's output, and every operation on the way to it."""

    output: Tensor
    calls: Mapping[fx.Node, Call]


class WithGradient(nn.Module):
    """A module of tensors to one tensor that can carry a gradient back.

    It has to be in evaluation mode, made of operations that have a rule, and without loops or branches that depend on
    its inputs.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        graph = _Tracer().trace(module)
        self.module = module
        self._nodes = list(graph.nodes)
        self._modules_by_name = dict(module.named_modules())
        self.backward_convolutions = nn.ModuleDict(
            {_key(name): BackwardConvolution(part) for name, part in self._convolutions()}
        )

    def compute(self, *inputs: Tensor) -> Computed:
        """Run the module, and keep what `pull` needs."""
        given = iter(inputs)
        values: dict[fx.Node, Any] = {}
        calls: dict[fx.Node, Call] = {}
        for node in self._nodes:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda argument: values[argument])
            match node.op:
                case "placeholder":
                    values[node] = next(given)
                case "get_attr":
                    values[node] = operator.attrgetter(str(node.target))(self.module)
                case "output":
                    return Computed(args[0], calls)
                case _:
                    part, function = self._operation(node)
                    values[node] = function(*args, **kwargs)
                    calls[node] = Call(part, args, kwargs, values[node])
        raise AssertionError("a traced graph ends with its output")

    def pull(self, computed: Computed, gradient: Tensor) -> tuple[Tensor, ...]:
        """Carry the gradient of the output to the inputs, in their order."""
        *_, output = self._nodes
        gradients: dict[fx.Node, Tensor] = {_tensors(output.args)[0]: gradient}
        for node in reversed(self._nodes):
            if node not in computed.calls or node not in gradients:
                continue
            pulled = self._rule(node)(computed.calls[node], gradients.pop(node))
            for source, part in zip(_tensors((node.args, node.kwargs)), pulled, strict=True):
                if part is not None:
                    gradients[source] = gradients[source] + part if source in gradients else part
        return tuple(gradients[node] for node in self._nodes if node.op == "placeholder")

    def _convolutions(self) -> Iterator[tuple[str, nn.Conv2d]]:
        for node in self._nodes:
            part = self._modules_by_name.get(str(node.target)) if node.op == "call_module" else None
            if isinstance(part, nn.Conv2d):
                yield str(node.target), part

    def _operation(self, node: fx.Node) -> tuple[nn.Module | None, Callable[..., Any]]:
        if node.op == "call_module":
            part = self._modules_by_name[str(node.target)]
            return part, part
        if node.op == "call_method":
            return None, getattr(torch.Tensor, str(node.target))
        assert callable(node.target)
        return None, node.target

    def _rule(self, node: fx.Node) -> "Rule":
        if node.op != "call_module":
            rule = RULES.get(node.target)
            what = node.target
        else:
            part = self._modules_by_name[str(node.target)]
            if isinstance(part, Differentiable):
                return lambda call, gradient: part.pull(gradient, *call.args)
            if isinstance(part, nn.Conv2d):
                backwards = self.backward_convolutions[_key(str(node.target))]
                return lambda call, gradient: (backwards(gradient),)
            rule = RULES.get(type(part))
            what = type(part).__name__
        if rule is None:
            raise NoGradientError(f"no rule for the gradient of {what} (in {node.name})")
        return rule


class BackwardConvolution(nn.Module):
    """The gradient of a convolution of stride 1: a convolution with the mirrored kernel, inputs and outputs swapped.

    Not a transposed convolution, which runtimes compute more slowly.
    """

    kernel: Tensor

    def __init__(self, forwards: nn.Conv2d) -> None:
        super().__init__()
        if forwards.stride != (1, 1) or isinstance(forwards.padding, str) or forwards.padding_mode != "zeros":
            raise NoGradientError(f"no rule for the gradient of {forwards}")
        groups = forwards.groups
        outputs, inputs, *size = forwards.weight.shape
        kernel = forwards.weight.detach().reshape(groups, outputs // groups, inputs, *size)
        kernel = kernel.transpose(1, 2).flip(-1, -2).reshape(groups * inputs, outputs // groups, *size)
        self.register_buffer("kernel", kernel.contiguous(), False)
        self.groups = groups
        self.dilation = forwards.dilation
        self.padding = tuple(
            dilation * (length - 1) - padding
            for length, dilation, padding in zip(size, forwards.dilation, forwards.padding, strict=True)
        )

    def forward(self, gradient: Tensor) -> Tensor:
        """Map the output's gradient [B, outputs, H, W] to the input's, [B, inputs, H, W]."""
        return functional.conv2d(
            gradient, self.kernel, padding=self.padding, dilation=self.dilation, groups=self.groups
        )


# None: an input that the output does not depend on.
Rule = Callable[[Call, Tensor], Sequence[Tensor | None]]


def _same(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    return (gradient,)


def _added(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    _demand_one_shape(call)
    return gradient, gradient


def _subtracted(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    _demand_one_shape(call)
    return gradient, -gradient


def _demand_one_shape(call: Call) -> None:
    """Refuse what is broadcast: its gradient would have to be summed again."""
    shapes = [getattr(argument, "shape", None) for argument in call.args]
    if shapes[0] != shapes[1]:
        raise NoGradientError(f"no rule for the gradient of a sum of {shapes[0]} and {shapes[1]}")


def _relu(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    return (torch.where(call.output > 0, gradient, 0),)


def _batch_norm(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    norm = call.module
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (gradient * factor.view(1, -1, 1, 1),)


def _softmax(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    axis = call.args[1]
    weighted = gradient * call.output
    return (weighted - call.output * weighted.sum(axis, keepdim=True),)


def _matmul(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    left, right = call.args
    return gradient @ right.transpose(-1, -2), left.transpose(-1, -2) @ gradient


def _transpose(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    return (gradient.transpose(*call.args[1:]),)


def _reshaped(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    return (gradient.reshape(call.args[0].shape),)


def _unsqueeze(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    return (gradient.squeeze(call.args[1]),)


def _expand_pixel(call: Call, gradient: Tensor) -> Sequence[Tensor | None]:
    """[B, C, 1, 1] at every pixel; the tensor that sets the size has no gradient."""
    return gradient.sum((2, 3), keepdim=True), None


def _concatenate(call: Call, gradient: Tensor) -> Sequence[Tensor]:
    parts, axis = call.args
    return torch.split(gradient, [part.shape[axis] for part in parts], axis)


RULES: Mapping[Any, Rule] = MappingProxyType(
    {
        nn.BatchNorm2d: _batch_norm,
        nn.Identity: _same,
        nn.ReLU: _relu,
        operator.add: _added,
        operator.matmul: _matmul,
        operator.sub: _subtracted,
        torch.cat: _concatenate,
        "expand_as": _expand_pixel,
        "flatten": _reshaped,
        "softmax": _softmax,
        "transpose": _transpose,
        "unsqueeze": _unsqueeze,
    }
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Differentiable) or super().is_leaf_module(m, module_qualified_name)


def _tensors(arguments: Any) -> list[fx.Node]:
    """List the nodes in arguments, in order, each as often as it stands there."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, lambda node: found.append(node) or node)  # type: ignore[func-returns-value]
    return found


def _key(name: str) -> str:
    """Return a module's name as the name of one part, which may not have dots."""
    return name.replace(".", "/")
