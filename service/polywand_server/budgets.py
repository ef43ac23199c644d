"""Budgets of memory: what the service may take of the memory that its container, or else its machine, has."""

from dataclasses import dataclass

from polywand_server.config import MEBIBYTE, Limits, Settings

# Without images: the service, and the embedded Triton with the models of the repository.
OWN_BYTES, TRITON_BYTES = 256 * MEBIBYTE, 1024 * MEBIBYTE
# Where that is more than the limit: so much of it is left for budgets.
LEAST_PART = 1 / 4
# Part of the rest for each budget, but no more than its default; together at most all.
PARTS = {
    "images_bytes": 0.35,
    "decoder_bytes": 0.2,
    "memory_bytes": 0.15,
    "bodies_bytes": 0.15,
    "reply_bytes": 0.05,
    "shared_memory_bytes": 0.1,
}
KEPT_PART = 0.25  # of images_bytes
SHARED_MEMORY_PART = 0.5  # of /dev/shm, where Triton's own pools are too
LEAST_BYTES = 16 * MEBIBYTE
LEAST_DECODER_BYTES = 64 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of memory, in bytes; see `config.Limits` and `config.Settings`."""

    images_bytes: int
    kept_images_bytes: int
    decoder_bytes: int
    memory_bytes: int
    bodies_bytes: int
    reply_bytes: int
    shared_memory_bytes: int


def budgets(usable: int, shared_memory: int, *, has_triton: bool) -> Budgets:
    """Divide the memory that may be used.

    usable: bytes of the container or the machine. shared_memory: bytes of /dev/shm. has_triton: whether Triton runs in
    the same container.
    """
    own = OWN_BYTES + (TRITON_BYTES if has_triton else 0)
    rest = max(usable - own, usable * LEAST_PART)
    most = {**{name: getattr(Limits(), name) for name in PARTS if hasattr(Limits(), name)}}
    most["shared_memory_bytes"] = min(Settings().shared_memory_bytes, int(shared_memory * SHARED_MEMORY_PART))
    parts = {name: max(LEAST_BYTES, min(most[name], int(rest * part))) for name, part in PARTS.items()}
    parts["shared_memory_bytes"] = min(parts["shared_memory_bytes"], most["shared_memory_bytes"])
    parts["decoder_bytes"] = max(parts["decoder_bytes"], LEAST_DECODER_BYTES)
    kept = min(Limits().kept_images_bytes, int(parts["images_bytes"] * KEPT_PART))
    return Budgets(kept_images_bytes=kept, **parts)


def total(settings: Settings) -> int:
    """Return the bytes that all budgets of the settings take together."""
    limits = settings.limits
    parts = (limits.images_bytes, limits.decoder_bytes, limits.memory_bytes, limits.bodies_bytes, limits.reply_bytes)
    return sum(parts) + settings.shared_memory_bytes
