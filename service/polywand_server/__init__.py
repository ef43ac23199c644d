"""The Polywand service: clicks in, polygons out, on NVIDIA Triton."""

from importlib.metadata import version

__version__ = version("polywand")
