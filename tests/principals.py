"""Principals for tests: a file of them, the token of each, and stubs that call as one of them."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from polywand_contract.v1 import annotation_pb2_grpc


def token_of(name: str) -> str:
    """The token of a principal."""
    return hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()


def metadata_of(name: str) -> tuple[tuple[str, str], ...]:
    """The metadata of a principal's calls."""
    return (("authorization", f"Bearer {token_of(name)}"),)


def write_principals(path: Path, **quotas: dict[str, float]) -> Path:
    """Write a file of principals with these quotas."""
    entries = []
    for name, numbers in quotas.items():
        digest = hashlib.sha256(token_of(name).encode()).hexdigest()
        lines = [f"{quota} = {number}" for quota, number in numbers.items()]
        entries.append(
            "\n".join([f'[[principal]]\nname = "{name}"\ntokens_sha256 = ["{digest}"]', "[principal.quotas]", *lines])
        )
    part = path.with_suffix(".part")
    part.write_text("\n".join(entries) + "\n")
    part.replace(path)
    return path


class _Authorized(grpc.UnaryUnaryClientInterceptor, grpc.StreamStreamClientInterceptor):
    """Adds a principal's token to every call."""

    def __init__(self, name: str) -> None:
        self._metadata = list(metadata_of(name))

    def _with_token(self, details):
        return details._replace(metadata=[*(details.metadata or ()), *self._metadata])

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(self._with_token(details), request)

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(self._with_token(details), requests)


@contextmanager
def stub_of(target: str, name: str) -> Iterator[annotation_pb2_grpc.AnnotationServiceStub]:
    """The contract's stub for a principal's calls, on a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(target, options) as channel:
        yield annotation_pb2_grpc.AnnotationServiceStub(grpc.intercept_channel(channel, _Authorized(name)))
