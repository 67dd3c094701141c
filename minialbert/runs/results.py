"""What a verb gives back in Python: its record, where it lies, and the model that came of it."""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, repr=False)
class Result:
    """The record of a verb, and the directory that holds it.

    Examples:
        >>> minialbert.evaluate("tuned/model", {"test": [("A house.", "large")]}, output="scores")
        <Result: evaluation, accuracy ... on test, in scores>

    Attributes:
        record: what `result.json` holds; empty in all but the first of several processes.
        path: the directory that was written; None if there is none.
    """

    record: dict[str, Any]
    path: Path | None = None

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the record."""
        found: dict[str, Any] = self.record.get("metrics", {})
        return found

    @property
    def score(self) -> float | None:
        """The value of the task's main metric; None if the record has none."""
        return self.record.get("score")

    def __repr__(self) -> str:
        said = [str(self.record.get("kind", "result"))]
        if self.score is not None:
            said.append(f"{self.record.get('metric')} {self.score:.4f} on {self.record.get('split')}")
        if self.path is not None:
            said.append(f"in {self.path}")
        return f"<{type(self).__name__}: {', '.join(said)}>"


@dataclass(frozen=True, repr=False)
class ModelResult(Result):
    """A record with the resulting model, ready to use and to pass to the next verb.

    Examples:
        >>> minialbert.distill("bert-base-uncased", "windows", recipe="tiny", start_only=True, output="start")
        <ModelResult: initialisation, in start>

    Attributes:
        model: the model, in eval mode.
        tokenizer: its tokenizer.
    """

    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None


def output_folder(output: str | Path | None, what: str) -> Path:
    """Return the directory that was asked for; without one a temporary one, which is said."""
    if output is not None:
        return Path(output)
    folder = Path(tempfile.mkdtemp(prefix=f"minialbert-{what}-"))
    logger.info("%s goes to %s, which is temporary: give output=DIR to keep it elsewhere", what, folder)
    return folder
