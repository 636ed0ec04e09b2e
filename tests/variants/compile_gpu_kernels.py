"""Compile every kernel of `gpu_loops` for some NVIDIA GPUs, none of which has to be here: `test_gpu_kernels` runs it.

Prints a line for each binary. The arguments are those that `gpu` passes.
"""

from __future__ import annotations

import re

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from monosem.kernels import gpu_loops

INT64 = "offsets indices tokens where ends place"
INT32 = "words counts"
NUMBERS = {"d": "i32", "nnz": "i32", "n": "i32", "d_sae": "i32", "groups": "i32"}
NUMBERS |= dict.fromkeys(["factor", "rate", "beta1", "rest1", "beta2", "rest2", "root", "eps"], "fp32")
TYPES = dict.fromkeys(INT64.split(), "*i64") | dict.fromkeys(INT32.split(), "*i32") | {"rounded": "*bf16"} | NUMBERS

FLAGS = [dict.fromkeys(("HAS_BLOCK", "HAS_SCALE", "UNIT"), on) for on in (False, True)]
ROWS = [{**flags, "WIDTH": width} for flags in FLAGS for width in (16, 1024, 4096)]
SIZES = {"ENTRIES": gpu_loops.ENTRIES, "COLUMNS": gpu_loops.COLUMNS}
TILES = {"FEATURES": gpu_loops.FEATURES, "WORD": gpu_loops.WORD}
CONSTANTS = {
    "row_sums": [{**SIZES, "START": base} for base in ("zero", "vector", "out")],
    "pair_products": [SIZES],
    "measure_rounding": [{"COLUMNS": 4 * gpu_loops.COLUMNS}],
    "peaks": [{"GROUP": size, "GROUPS": 1024 // size} for size in (1, 4, 16)],
    "mark_candidates": [{**TILES, "TOKENS": gpu_loops.TOKENS}],
    "write_candidates": [TILES],
    "gradient_squares": ROWS,
    "adam_rows": ROWS,
}


def compile_kernel(kernel: JITFunction, constants: dict, capability: int, aligned: bool) -> dict:
    """Return what the compiler made: its stages by name, up to the binary `cubin`.

    aligned: whether pointers and the number of columns are multiples of 16, which Triton finds out at every launch.
    """
    signature = {name: "constexpr" if name in constants else TYPES.get(name, "*fp32") for name in kernel.arg_names}
    divisible = [name for name, kind in signature.items() if kind.startswith("*") or name == "d"] if aligned else []
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": gpu_loops.warps(constants.get("WIDTH", 1024))},
    ).asm


def main() -> None:
    """Compile everything for compute capability 8.0 and 9.0."""
    kernels = {name: fn for name, fn in vars(gpu_loops).items() if isinstance(fn, JITFunction) and name[0] != "_"}
    assert kernels.keys() == CONSTANTS.keys()
    for capability in (80, 90):
        for name, kernel in kernels.items():
            for constants in CONSTANTS[name]:
                made = compile_kernel(kernel, constants, capability, aligned=constants is not CONSTANTS[name][0])
                assert made["cubin"]
                assert not re.search(r"\b(atom|red)\.|tf32", made["ptx"]), f"{name} uses atomics or TF32"
                print(f"sm_{capability} {name} {len(made['cubin'])} bytes")


if __name__ == "__main__":
    main()
