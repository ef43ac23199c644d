"""TensorFlow.js graph models: read from their files, written as ONNX nodes, without TensorFlow."""

from polywand_zoo.tfjs.layout import Tensor, arrange, concatenate, natural
from polywand_zoo.tfjs.model import GraphModel, GraphModelError, Node, read_graph_model
from polywand_zoo.tfjs.translate import translate
from polywand_zoo.tfjs.verify import check_weights

__all__ = [
    "GraphModel",
    "GraphModelError",
    "Node",
    "Tensor",
    "arrange",
    "check_weights",
    "concatenate",
    "natural",
    "read_graph_model",
    "translate",
]
