"""Advice to the operating system about tensors that are memory-mapped from files. It changes speed, never values.

By itself a system answers a page fault with its neighbourhood, up to megabytes. That is right for reading forwards and
ruinous for shuffled rows of a store larger than memory: for every row that comes back late, megabytes are read. So
mapped rows are marked as read at random, and what will be wanted is announced.
"""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from torch import Tensor

PIECE = 2**17  # bytes of a file that are read as a whole; systems read no more than that for one piece of advice
DENSE = 16  # ... when at least one in so many of its rows is wanted

# ctypes and not mmap.madvise: it takes a tensor that is already mapped, needs no open file for each shard, and lets
# other threads go on meanwhile. Systems without madvise have no such constants.
_MADVISE = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_WILLNEED") else None
if _MADVISE is not None:
    _MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def read_at_random(rows: Tensor) -> None:
    """Mark a memory-mapped tensor as read at random: a page fault then reads one page."""
    if _MADVISE is not None and rows.numel():
        begin = rows.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
        _MADVISE(begin, rows.data_ptr() + rows.nbytes - begin, mmap.MADV_RANDOM)


def will_need(rows: Tensor, index: np.ndarray) -> None:
    """Have the rows `index` of a contiguous tensor `[n, d]` read from disk, in the background.

    Pieces of the file that are densely wanted are read as a whole, other rows each for itself. A tensor that lies in
    memory is left alone, and so is everything on a system that knows no such advice.
    """
    if _MADVISE is None or not len(index):
        return
    width = rows.nbytes // len(rows)
    size = max(1, PIECE // width)
    piece = index // size
    dense = np.bincount(piece) * DENSE >= size
    whole, lone = np.flatnonzero(dense) * size, index[~dense[piece]]
    first = np.concatenate([whole, lone])
    last = np.concatenate([np.minimum(whole + size, len(rows)), lone + 1])
    begin = (rows.data_ptr() + first * width) // mmap.PAGESIZE * mmap.PAGESIZE
    length = rows.data_ptr() + last * width - begin
    for address, count in zip(begin.tolist(), length.tolist(), strict=True):
        _MADVISE(address, count, mmap.MADV_WILLNEED)
