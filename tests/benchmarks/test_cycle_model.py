"""Tests of benchmarks/cycle_model.py: loops found, llvm-mca output parsed, model constants."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from kernel_tables import MODELS, attention_loops, mca_tool, tile_loops, tile_passes
from loop_cycles import Loop, innermost_loops, loop_cycles, loops_of, parse_cycles

from bita.calibration.arm_cycles import CORTEX_A76, CORTEX_A78
from bita.calibration.kernel_cycles import KernelCycles

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "cycle_model.json"

# a loop over tile halves that contains one over blocks, and a cold part that jumps back into it
X86 = """
tile:
	.cfi_startproc
	movl	$2, %ecx
.L2:
	xorl	%eax, %eax
	.p2align 4
.L3:
	vpmaddubsw	%ymm1, %ymm2, %ymm3	# a comment
	vpmaddubsw	(%rdi), %ymm2, %ymm4
	{vex} vpdpbusd	%xmm1, %xmm2, %xmm3
	vfmadd231ps	%ymm1, %ymm2, %ymm3
	vmovaps	%ymm3, -32(%rbp)
	jne	.L9
.L4:
	cmpq	%rax, %rsi
	jne	.L3
	decl	%ecx
	jne	.L2
	ret
.L9:
	jmp	.L4
	.cfi_endproc
after:
	.cfi_startproc
	ret
	.cfi_endproc
"""

AARCH64 = """
_ZN4bita3oneEv:
.LFB1:
	.cfi_startproc
.L2:
	ldr	q0, [x1], 16
	sdot	v0.4s, v1.16b, v2.4b[0]
	fmla	v3.4s, v4.4s, v5.s[0]
	fmla	s3, s4, v5.s[0]
	stp	q0, q1, [sp, 32]
	cbnz	x2, .L2
	ret
	.cfi_endproc
"""

# the output of LLVM 22; a resource with several units has a line for each
MCA = """Iterations:        100
Instructions:      300
Total Cycles:      204
Total uOps:        300

Dispatch Width:    6
uOps Per Cycle:    1.47
IPC:               1.47
Block RThroughput: 1.0


Resources:
[0.0] - N2UnitB
[0.1] - N2UnitB
[1]   - N2UnitV0
[2]   - N2UnitV1


Resource pressure per iteration:
[0.0]  [0.1]  [1]    [2]    \n0.50   0.50   1.02    -     \n
Resource pressure by instruction:
[0.0]  [0.1]  [1]    [2]    Instructions:
0.50   0.50    -      -     b .L2
"""


def test_innermost_loops_and_their_products_are_found() -> None:
    (loop,) = (loop for loop in loops_of(X86) if loop.products)
    assert loop.function == "tile"
    assert len(loop.instructions) == 8
    assert loop.instructions[-1] == "jne .L3"
    assert loop.products == 32 + 32 + 16
    assert loop.fused == 8
    assert loop.stack_accesses == 1


def test_aarch64_loops_have_demangled_names() -> None:
    (loop,) = loops_of(AARCH64)
    assert loop.function == "bita::one()"
    assert (loop.products, loop.fused, loop.stack_accesses) == (16, 4, 1)


def test_forward_branches_make_no_loop() -> None:
    assert innermost_loops("f", [".L1:", "\tb.ne\t.L2", ".L2:", "\tret"]) == []


def test_llvm_mca_output_is_parsed() -> None:
    found = parse_cycles(MCA)
    assert found.cycles == 2.04
    assert found.least == 1.0
    assert found.micro_operations == 3.0
    assert found.pressure == {"N2UnitB": 1.0, "N2UnitV0": 1.02, "N2UnitV1": 0.0}


def dot_loop(function: str, count: int) -> Loop:
    return Loop(function, ("sdot v0.4s, v1.16b, v2.4b[0]",) * count)


def test_a_loop_over_part_of_a_tile_counts_once_per_pass() -> None:
    (kind, rows), found = tile_loops([dot_loop("tile_rows<2, 4, true>", 16)]).popitem()
    assert (kind, rows) == ("int4 with minima", 2)
    assert tile_passes(kind, rows, found) == 4  # 2 * 512 products, 256 in the loop
    twice = tile_loops(
        [dot_loop("dot_rows<1, 8, false, 4> [clone]", 8), dot_loop("a_rows<1, 8, false>", 32)]
    )
    assert tile_passes("int8", 1, twice["int8", 1]) == 1
    with pytest.raises(RuntimeError, match="1 rows of int8: the loops found make 112 products"):
        tile_passes("int8", 1, [dot_loop("", 7)])


def test_attention_passes_are_sixteen_products_per_query() -> None:
    fused = ("fmla v0.4s, v1.4s, v2.4s",)
    loops = [
        Loop("score_pages<2, 2, Half>(", fused * 16),
        Loop("score_all<2, Half>(", fused * 8),
        Loop("score_all<1, float>(", fused * 12),
    ]
    assert attention_loops(loops, "score") == [(loops[0], 0.5)]  # it covers two pages


def test_the_constants_equal_the_published_results() -> None:
    processors = json.loads(RESULTS.read_text(encoding="utf-8"))["processors"]
    for cycles in (CORTEX_A76, CORTEX_A78):
        fields = {k: v for k, v in processors[cycles.processor].items() if k != "model"}
        assert asdict(KernelCycles.from_json(fields)) == asdict(cycles)


def test_llvm_mca_computes_the_cycles_of_a_chain() -> None:
    try:
        tool = mca_tool()
    except SystemExit as reason:
        pytest.skip(str(reason))
    target = MODELS["cortex-a78"].target
    chain = loop_cycles(["fmla v0.4s, v1.4s, v2.4s"] * 3, target, tool)
    assert chain.cycles == pytest.approx(12, abs=0.5)  # each waits four cycles for the last
    assert chain.least == 1.5  # on two pipes
    with pytest.raises(RuntimeError, match="cannot read a loop"):
        loop_cycles(["no such instruction"], target, tool)
