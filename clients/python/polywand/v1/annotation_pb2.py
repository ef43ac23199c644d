"""The contract's messages: the very classes of polywand_contract.v1.annotation_pb2."""

from polywand_contract.v1.annotation_pb2 import *  # noqa: F403 - all of them, so that a new message needs no line here
