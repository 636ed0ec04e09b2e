"""The fast paths of encoding and decoding, each beside its slow, readable reference.

A variant calls `active_products` or `top_products` to encode and `decode` to decode; which path runs is decided here,
from the density of the codes, the device and the widths. All paths give the same values and gradients.
"""

from monosem.kernels.codes import Codes, DenseCodes, Layout, RaggedCodes, SparseCodes
from monosem.kernels.settings import reference_kernels
from monosem.kernels.sparse import (
    active_products,
    decode,
    row_norms,
    squared_distances,
    take_columns,
    take_rows,
    top_products,
)

__all__ = [
    "Codes",
    "DenseCodes",
    "Layout",
    "RaggedCodes",
    "SparseCodes",
    "active_products",
    "decode",
    "reference_kernels",
    "row_norms",
    "squared_distances",
    "take_columns",
    "take_rows",
    "top_products",
]
