"""Programs for the engine "native": instructions on registers, joined where that is the same, in few registers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .folding import Array

# Operations, indices and kinds of weights, with the numbers that kernel.cpp gives them.
GATHER, ADD, AFFINE, NORM, LINEAR, GELU, TANH, RELU, ATTEND, FIRST, MEAN, UNIT_LENGTH = range(12)
IDS, POSITIONS, TYPES = range(3)
INT8_MATRIX, FP32_MATRIX, VECTOR, INT8_TABLE, FP32_TABLE = range(5)
_READ = {GATHER: (), ADD: (2, 3), LINEAR: (2, 6), ATTEND: (2, 3, 4)}  # places of registers in an instruction
_CROSSING = {ATTEND: (3, 4), FIRST: (2,), MEAN: (2,)}  # of those whose other rows are read too
BIAS, _ACTIVATION, _RESIDUAL = 4, 5, 6  # places in a LINEAR
LANES = 16


@dataclass(eq=False)
class Weights:
    """A matrix, table or vector of the program."""

    kind: int
    values: Array
    scales: Array | None
    source: Any  # values and scales as they came: two uses of them are one weight


@dataclass
class Program:
    """Instructions [operation, to, a, b, c, d, e, value], registers by width and kind, and weights.

    The last instruction gives the result, of whose columns `columns` names those of each output; None for all.
    """

    code: list[list[Any]] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    of_texts: list[bool] = field(default_factory=list)
    weights: list[Weights] = field(default_factory=list)
    columns: dict[str, int | None] = field(default_factory=dict)


def reads(instruction: Sequence[Any]) -> list[int]:
    """Return the registers that an instruction reads."""
    return [instruction[place] for place in _READ.get(instruction[0], (2,)) if instruction[place] >= 0]


def join(program: Program, result: int) -> None:
    """Make a bias, an activation and a residual part of the product before them, where nobody else reads that."""
    uses = Counter([result, *(register for it in program.code for register in reads(it))])
    made: dict[int, int] = {}  # where registers are written
    code: list[list[Any]] = []

    def joins(register: int, place: int, value: int) -> bool:
        product = code[made[register]]
        fits = product[0] == LINEAR and product[place : _RESIDUAL + 1] == [-1, 0, -1][place - BIAS :]
        if fits and uses[register] == 1:
            product[place], product[1] = value, it[1]
            return True
        return False

    for it in program.code:
        operation, to, a, b, c = it[:5]
        if (
            (operation == AFFINE and b < 0 and joins(a, BIAS, c))
            or (operation in (GELU, TANH, RELU) and joins(a, _ACTIVATION, operation))
            or (operation == ADD and made[b] < made[a] and joins(a, _RESIDUAL, b))
            or (operation == ADD and made[a] < made[b] and joins(b, _RESIDUAL, a))
        ):
            made[to] = made[b] if operation == ADD and made[a] < made[b] else made[a]
            continue
        made[to] = len(code)
        code.append(it)
    program.code = code


def share_registers(program: Program) -> None:
    """Let values whose time is over give their registers to others of their kind, so that few are in use at a time.

    One whose other rows are read keeps its register until the next such reading: a thread may be ahead of another.
    """
    last = {register: at for at, it in enumerate(program.code) for register in reads(it)}
    keys = {it[3] for it in program.code if it[0] == ATTEND}
    crossing = {it[place] for it in program.code for place in _CROSSING.get(it[0], ())}
    kinds = [
        (width, of_texts, register in keys, register in crossing)
        for register, (width, of_texts) in enumerate(zip(program.widths, program.of_texts, strict=True))
    ]
    free: dict[Any, list[int]] = {}
    waiting: list[tuple[Any, int]] = []
    new: dict[int, int] = {}
    shared: list[Any] = []
    cut, written = 0, dict[int, int]()
    for at, it in enumerate(program.code):
        if any(
            written[it[place]] >= cut for place in _CROSSING.get(it[0], ())
        ):  # threads wait for each other
            cut = at
            for kind, register in waiting:
                free.setdefault(kind, []).append(register)
            waiting = []
        written[it[1]], kind = at, kinds[it[1]]
        if not free.get(kind):
            free[kind] = [len(shared)]
            shared.append(kind)
        new[it[1]] = free[kind].pop()
        for register in {*reads(it)}:
            if last[register] == at:
                waiting.append((kinds[register], new[register]))
    for it in program.code:
        for place in (1, *_READ.get(it[0], (2,))):
            if it[place] >= 0:
                it[place] = new[it[place]]
    program.widths, program.of_texts = [kind[0] for kind in shared], [kind[1] for kind in shared]
