"""Predictions as the files that the GLUE benchmark takes."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from minialbert.errors import UserError
from minialbert.runs import write_atomically
from minialbert.user_input import quoted, shown

from .glue import GlueTask, glue_task

logger = logging.getLogger(__name__)

# Name without suffix and number of rows, by task and split.
_FILES: dict[tuple[str, str], tuple[str, int]] = {
    ("cola", "test"): ("CoLA", 1_063),
    ("sst2", "test"): ("SST-2", 1_821),
    ("mrpc", "test"): ("MRPC", 1_725),
    ("stsb", "test"): ("STS-B", 1_379),
    ("qqp", "test"): ("QQP", 390_965),
    ("mnli", "test"): ("MNLI-m", 9_796),
    ("mnli", "test_mismatched"): ("MNLI-mm", 9_847),
    ("mnli", "diagnostic"): ("AX", 1_104),
    ("qnli", "test"): ("QNLI", 5_463),
    ("rte", "test"): ("RTE", 3_000),
    ("wnli", "test"): ("WNLI", 146),
}


def submission_file(task: str, split: str, folder: Path) -> Path:
    """Return the path of the benchmark's file for an unlabelled split.

    Args:
        task: any spelling of a GLUE task.
        split: "test"; for MNLI also "test_mismatched" or "diagnostic".
        folder: where the file goes.

    Returns:
        The file: `CoLA.tsv`, `MNLI-mm.tsv`, `AX.tsv`.

    Raises:
        UserError: if the benchmark takes no such split.
    """
    name = glue_task(task).name
    if (name, split) not in _FILES:
        splits = ", ".join(known for glue, known in _FILES if glue == name)
        raise UserError(f"no submission for split {quoted(split)} of {name}: expected one of {splits}")
    return folder / f"{_FILES[name, split][0]}.tsv"


def write_submission(
    task: str, split: str, ids: Sequence[str | None], predictions: Sequence[str | float], folder: Path
) -> Path:
    """Write the predictions for an unlabelled split as the benchmark's file.

    A number of rows other than the official one is logged as a warning: the benchmark would refuse the file.

    Args:
        task: any spelling of a GLUE task.
        split: "test"; for MNLI also "test_mismatched" or "diagnostic".
        ids: the benchmark's index of each row, as the examples have it; when all are None, rows count from 0.
        predictions: for each row the name of its label, or its score (STS-B), which is cut to 0 to 5.
        folder: where the file goes; made if need be.

    Returns:
        The file: `CoLA.tsv`, `MNLI-mm.tsv`, `AX.tsv`.

    Raises:
        UserError: if the benchmark takes no such split, numbers of ids and predictions differ, ids repeat or are
            missing in part, a label is unknown or a score is not finite, or the file cannot be written.
    """
    glue, path = glue_task(task), submission_file(task, split, Path(folder))
    name, official_rows = _FILES[glue.name, split]
    if len(ids) != len(predictions) or not predictions:
        raise UserError(
            f"{name}.tsv: {len(predictions)} predictions for {len(ids)} rows; expected one for each row"
        )
    lines = [
        f"{index}\t{_spell(glue, prediction, f'{name}.tsv, index {shown(index)}')}\n"
        for index, prediction in zip(_indexes(ids, name), predictions, strict=True)
    ]
    if len(lines) != official_rows:
        logger.warning(
            "%s.tsv: %d rows, but the official split has %d: the benchmark would refuse the file",
            name,
            len(lines),
            official_rows,
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "index\tprediction\n" + "".join(lines))
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error})") from error
    return path


def _indexes(ids: Sequence[str | None], name: str) -> list[str]:
    given = [index for index in ids if index is not None]
    if not given:
        return [str(row) for row in range(len(ids))]
    if len(given) != len(ids):
        raise UserError(
            f"{name}.tsv: {len(ids) - len(given)} of {len(ids)} rows have no index: expected all or none"
        )
    seen: set[str] = set()
    for index in given:
        if not index or not index.isprintable():  # a TAB or line end would be read as another row
            raise UserError(f"{name}.tsv: index {quoted(index)}; expected the benchmark's number of the row")
        if index in seen:
            raise UserError(
                f"{name}.tsv: index {shown(index)} stands on more than one row; expected each index once"
            )
        seen.add(index)
    return given


def _spell(task: GlueTask, prediction: str | float, where: str) -> str:
    if not task.labels:
        if (
            isinstance(prediction, str) or not -math.inf < prediction < math.inf
        ):  # also of integers beyond floats
            raise UserError(f"{where}: score {quoted(prediction)}; expected a finite number")
        return f"{float(min(max(prediction, 0.0), 5.0)):.3f}"
    for spelling, label in task.spellings.items():
        if label is not None and label == prediction:
            return spelling
    raise UserError(f"{where}: unknown label {quoted(prediction)}; expected one of {', '.join(task.labels)}")
