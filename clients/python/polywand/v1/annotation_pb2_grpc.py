"""The contract's stub, servicer and registration: the very ones of polywand_contract.v1.annotation_pb2_grpc."""

from polywand_contract.v1.annotation_pb2_grpc import *  # noqa: F403 - all of them, so that a new RPC needs no line here
