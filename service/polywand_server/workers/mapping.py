"""Mapped memory without an open file: Python's `mmap` keeps a descriptor open for as long as the memory is used."""

import ctypes
import mmap
import os
import weakref

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,  # address
    ctypes.c_size_t,  # bytes
    ctypes.c_int,  # protection
    ctypes.c_int,  # flags
    ctypes.c_int,  # descriptor
    ctypes.c_long,  # offset
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_FAILED = ctypes.c_void_p(-1).value


def map_read_only(descriptor: int) -> NDArray[np.uint8]:
    """Map a file's bytes, which may be closed then: uint8 [nbytes]; unmapped when nothing refers to them.

    Raises:
        OSError
    """
    nbytes = os.fstat(descriptor).st_size
    address = _libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    memory = (ctypes.c_ubyte * nbytes).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, nbytes).atexit = False  # threads may still read it then
    mapped = np.frombuffer(memoryview(memory), np.uint8)
    mapped.flags.writeable = False
    return mapped
