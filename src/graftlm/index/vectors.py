"""Vectors on the disk: a header of 64 bytes, then rows of float16, appended and mapped into memory, never rewritten.

How many rows count is the catalogue's knowledge: what lies behind them is the rest of an interrupted write, and the
next one overwrites it.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graftlm.data.gallery import Vectors
from graftlm.errors import DataError

Stored: TypeAlias = "npt.NDArray[np.float16]"

HEADER_BYTES = 64
_HEADER = struct.Struct("<8sIII")  # magic, version, width, bytes a number
_MAGIC = b"GRAFTVEC"
_VERSION = 1
MAX_WIDTH = 65_536


class VectorFile:
    """Rows of `width` float16 numbers.

    Raises: DataError when the file is missing, cut, hostile, of another width or of a newer version.
    """

    def __init__(self, path: Path, width: int) -> None:
        self.path = path
        self.width = width
        self._check_header()

    @classmethod
    def create(cls, path: Path, width: int) -> VectorFile:
        """An empty file; one that is there is overwritten."""
        body = _HEADER.pack(_MAGIC, _VERSION, width, 2)
        header = (body + struct.pack("<I", zlib.crc32(body))).ljust(HEADER_BYTES, b"\0")
        with path.open("wb") as file:
            file.write(header)
            file.flush()
            os.fsync(file.fileno())
        return cls(path, width)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return 2 * self.width

    def rows(self) -> int:
        """Whole rows in the file, committed or not."""
        return max(0, self.path.stat().st_size - HEADER_BYTES) // self.row_bytes

    def read(self, rows: int) -> Stored:
        """The first `rows` rows, mapped: only what is looked at is read. Raises: DataError when there are fewer.

        Shapes: (rows, width).
        """
        found = self.rows()
        if found < rows:
            raise DataError(
                f"{self.path}: expected {rows} vectors, found {found}; the file was cut, "
                "rebuild the index with `graft index add --rebuild`"
            )
        if rows == 0:
            return np.empty((0, self.width), np.float16)
        return np.memmap(self.path, np.float16, "r", HEADER_BYTES, (rows, self.width))

    def write(self, at: int, vectors: Vectors) -> None:
        """Writes rows from row `at` on, and waits until they are on the disk; what was behind `at` is gone.

        Raises: OSError when the disk is full.
        """
        data = np.ascontiguousarray(vectors, dtype=np.float16).tobytes()
        descriptor = os.open(self.path, os.O_RDWR)
        with os.fdopen(descriptor, "r+b") as file:
            file.truncate(HEADER_BYTES + at * self.row_bytes)
            file.seek(0, os.SEEK_END)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _check_header(self) -> None:
        try:
            with self.path.open("rb") as file:
                header = file.read(HEADER_BYTES)
        except OSError as error:
            raise DataError(f"{self.path}: the vectors of the index cannot be read ({error.strerror})") from None
        size = _HEADER.size
        if len(header) < HEADER_BYTES or header[:8] != _MAGIC:
            raise DataError(f"{self.path}: expected vectors of an index, found something else; rebuild the index")
        _, version, width, item_bytes = _HEADER.unpack_from(header)
        if version > _VERSION:
            raise DataError(f"{self.path}: expected format {_VERSION} or older, found {version}; update graftlm")
        if struct.unpack_from("<I", header, size)[0] != zlib.crc32(header[:size]) or item_bytes != 2:
            raise DataError(f"{self.path}: its header is damaged; rebuild the index with `graft index add --rebuild`")
        if width != self.width:
            raise DataError(f"{self.path}: expected vectors of width {self.width}, found {width}; rebuild the index")
