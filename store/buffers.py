"""Arrow arrays as the C takes them (`store/kernels.c`): where their values lie, without a copy."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["StringColumns", "Strings", "at", "string_array", "string_columns", "values_at"]


class Strings(ctypes.Structure):
    """Row i is `data[offsets[i]:offsets[i + 1]]`."""

    _fields_ = [("data", ctypes.c_void_p), ("offsets", ctypes.c_void_p)]


@dataclass(frozen=True)
class StringColumns:
    """Several arrays of strings, and how many bytes they have; holds what the structs point to."""

    structs: ctypes.Array[Strings]
    bytes: int
    held: Sequence[pa.Array]


def string_columns(arrays: Sequence[pa.StringArray | pa.BinaryArray]) -> StringColumns:
    """Arrays of strings, or of bytes, without nulls."""
    structs = (Strings * len(arrays))()
    total = 0
    for struct, array in zip(structs, arrays, strict=True):
        _, offsets, data = array.buffers()
        struct.offsets = offsets.address + 4 * array.offset
        struct.data = data.address if data is not None else offsets.address  # nothing is read there
        bounds = np.frombuffer(offsets, np.int32)
        total += int(bounds[array.offset + len(array)]) - int(bounds[array.offset])
    return StringColumns(structs, total, arrays)


def string_array(rows: int, offsets: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> pa.StringArray:
    """The array with these buffers."""
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(data))


def at(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    """Where an array of NumPy begins."""
    return ctypes.c_void_p(array.ctypes.data)


def values_at(array: pa.Array, width: int) -> ctypes.c_void_p:
    """Where the values of an array begin that have so many bytes each."""
    return ctypes.c_void_p(array.buffers()[1].address + width * array.offset)
