"""Tables 1 and 2 of the MiniALBERT paper as data: every figure as printed, in percent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Decimal

SOURCE = "Nouriborji, Rohanian, Kouchaki, Clifton, MiniALBERT (EACL 2023)"


@dataclass(frozen=True)
class Column:
    """One column of scores: its heading, and the task as records name it."""

    label: str
    task: str
    mismatched: bool = False  # MNLI's second validation split


@dataclass(frozen=True)
class PaperRow:
    """One row of the paper, as printed."""

    model: str
    adapter: bool | None  # whether it was pre-trained with adapters; None where the paper does not say
    rank: int | None  # of its embedding; None where the paper does not say
    params: str  # trained parameters where `marks` has †
    scores: tuple[Decimal | None, ...]  # one per column, in percent; None for N/A
    average: Decimal
    marks: str  # † adapter-tuned, ∗ with adapters that pre-training had not
    source: str  # the table it stands in

    @property
    def label(self) -> str:
        """The row's name; unlike the model's, it is unique in its table."""
        adapters = {None: "", True: ", adapters", False: ", no adapters"}[self.adapter]
        return f"{self.model}{adapters} {self.marks}".strip()


GLUE_COLUMNS = (
    Column("MNLI m", "mnli"),
    Column("MNLI mm", "mnli", mismatched=True),
    Column("QQP", "qqp"),
    Column("QNLI", "qnli"),
    Column("SST-2", "sst2"),
    Column("CoLA", "cola"),
    Column("STS-B", "stsb"),
    Column("MRPC", "mrpc"),
    Column("RTE", "rte"),
)
NER_COLUMNS = (
    Column("NCBI-disease", "ncbi-disease"),
    Column("BC5CDR-disease", "bc5cdr-disease"),
    Column("BC5CDR-chem", "bc5cdr-chem"),
    Column("BC2GM", "bc2gm"),
)

# model | adapters in pre-training | rank | #params | scores in the order of the columns | average | marks
_TABLE_1 = """
BERT-base       |     |     | 110M | 84.78 84.78 87.91 91.56 92.77 57.19 89.20 91.46 74.72 | 83.81 |
DistilBERT      |     |     | 65M  | 82.17 82.33 87.08 89.47 90.25 53.61 87.20 88.66 66.42 | 80.79 |
MobileBERT      |     |     | 25M  | 84.03 83.84 87.41 91.17 91.16 51.55 88.12 90.59 66.78 | 81.62 |
TinyBERT        |     |     | 15M  | 80.22 80.65 84.44 85.31 88.87 17.53 87.77 89.41 66.06 | 75.58 |
DistilBERT_base |     |     | 65M  | 82.08 82.27 86.01 86.91 91.28 50.33 83.92 88.06 59.56 | 78.93 |
ALBERT_6        |     | 128 | 11M  | 76.35 77.01 84.73 84.51 86.12 29.54 82.76 86.39 59.56 | 74.10 |
ALBERT_12       |     | 128 | 11M  | 78.93 80.03 85.45 88.12 86.92 41.73 86.21 90.65 63.17 | 77.91 |
MiniALBERT_768  | no  | 768 | 31M  | 80.71 81.80 86.25 88.13 89.79 43.71 86.93 89.00 61.37 | 78.63 |
MiniALBERT_312  | no  | 312 | 17M  | 80.55 81.29 86.46 87.46 89.56 45.82 85.51 89.22 62.09 | 78.66 |
MiniALBERT_768  | yes | 768 | 32M  | 81.04 82.05 86.48 88.79 89.79 46.33 86.92 88.46 67.50 | 79.70 |
MiniALBERT_312  | yes | 312 | 18M  | 80.78 81.67 86.35 88.57 90.36 45.50 86.60 88.96 69.31 | 79.78 |
MiniALBERT_128  | yes | 128 | 12M  | 80.64 81.33 86.29 88.08 89.67 47.93 86.62 89.77 68.95 | 79.92 |
MiniALBERT_768  | no  | 768 | 0.9M | 74.61 75.72 79.72 80.70 85.20 N/A   83.90 81.72 52.70 | 68.25 | †∗
MiniALBERT_312  | no  | 312 | 0.9M | 74.48 75.70 79.76 82.39 83.48 N/A   80.94 81.22 54.15 | 68.01 | †∗
MiniALBERT_768  | yes | 768 | 0.9M | 79.48 80.06 85.29 87.84 90.02 42.26 86.33 87.74 67.14 | 78.46 | †
MiniALBERT_312  | yes | 312 | 0.9M | 79.13 80.16 85.27 86.10 89.90 45.25 85.34 87.91 65.34 | 78.26 | †
MiniALBERT_128  | yes | 128 | 0.9M | 78.05 79.66 84.94 87.40 90.36 44.72 84.62 89.08 66.78 | 78.40 | †
"""

_TABLE_2 = """
DistilBioBERT     |     |     | 65M  | 87.93 85.42 94.53 86.60 | 88.62 |
CompactBioBERT    |     |     | 65M  | 88.67 85.38 94.31 86.71 | 88.76 |
TinyBioBERT       |     |     | 15M  | 85.22 81.28 92.20 82.52 | 85.30 |
BioMobileBERT     |     |     | 25M  | 87.21 84.62 94.23 85.26 | 87.83 |
BioBERT           |     |     | 110M | 88.62 86.67 94.73 87.62 | 89.41 |
BioALBERT_6       |     | 128 | 11M  | 86.07 82.00 93.19 84.51 | 86.44 |
BioALBERT_12      |     | 128 | 11M  | 86.07 81.94 93.11 84.33 | 86.36 |
BioMiniALBERT_768 | no  | 768 | 31M  | 87.44 84.40 94.18 86.06 | 88.02 |
BioMiniALBERT_312 | no  | 312 | 17M  | 87.94 84.45 94.03 86.03 | 88.11 |
BioMiniALBERT_768 | yes | 768 | 32M  | 88.02 84.98 94.49 86.10 | 88.39 |
BioMiniALBERT_312 | yes | 312 | 18M  | 88.03 84.75 94.23 86.14 | 88.28 |
BioMiniALBERT_128 | yes | 128 | 12M  | 87.16 84.58 94.20 86.00 | 87.98 |
BioMiniALBERT_768 | no  | 768 | 0.9M | 85.61 82.31 92.80 84.89 | 86.40 | †∗
BioMiniALBERT_312 | no  | 312 | 0.9M | 85.98 81.72 91.99 84.65 | 86.08 | †∗
BioMiniALBERT_768 | yes | 768 | 0.9M | 87.80 84.64 94.20 86.02 | 88.16 | †
BioMiniALBERT_312 | yes | 312 | 0.9M | 87.61 84.55 94.12 85.60 | 87.97 | †
BioMiniALBERT_128 | yes | 128 | 0.9M | 87.71 84.48 94.22 85.87 | 88.07 | †
"""


def glue_rows() -> tuple[PaperRow, ...]:
    """Return Table 1, on the GLUE development sets; scores in the order of `GLUE_COLUMNS`."""
    return _rows(_TABLE_1, "Table 1")


def ner_rows() -> tuple[PaperRow, ...]:
    """Return Table 2, entity F1 on the test sets; scores in the order of `NER_COLUMNS`."""
    return _rows(_TABLE_2, "Table 2")


def average(scores: Sequence[Decimal | None]) -> Decimal:
    """Return the mean of scores as the paper has it: N/A counts as 0, and it is truncated to two decimals."""
    total = sum((score for score in scores if score is not None), Decimal(0))
    return (total / len(scores)).quantize(Decimal("0.01"), rounding=ROUND_DOWN)


def _rows(table: str, source: str) -> tuple[PaperRow, ...]:
    rows = []
    for line in table.strip().splitlines():
        model, adapter, rank, params, scores, mean, marks = (cell.strip() for cell in line.split("|"))
        printed = tuple(None if score == "N/A" else Decimal(score) for score in scores.split())
        known = {"": None, "yes": True, "no": False}[adapter]
        size = int(rank) if rank else None
        rows.append(PaperRow(model, known, size, params, printed, Decimal(mean), marks, source))
    return tuple(rows)
