"""Memory that merely mirrors a file can be given back to the system; it comes back when it is read."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from torch import Tensor

_PAGE_OUT = 21  # MADV_PAGEOUT of Linux 5.4: unlike MADV_DONTNEED it loses nothing that was written


def give_back(tensors: Iterable[Tensor]) -> int:
    """Lets the system drop the pages of tensors that lie in a mapped file; returns the bytes offered.

    Values stay what they are. Where the system does not know such a thing, nothing happens. What the allocator holds
    without use goes back as well.
    """
    if not sys.platform.startswith("linux"):
        return 0
    libc, files, total = ctypes.CDLL(None, use_errno=True), list(_mapped_files()), 0
    for tensor in tensors:
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and any(low <= first and last <= high for low, high in files):
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _PAGE_OUT)
            total += last - first
    if hasattr(libc, "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    return total


def _mapped_files() -> Iterator[tuple[int, int]]:
    """Address ranges of this process that mirror files."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/") and not fields[5].startswith("/dev/"):
            low, high = fields[0].split("-")
            yield int(low, 16), int(high, 16)
