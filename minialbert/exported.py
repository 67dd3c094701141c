"""Folders that `minialbert export` wrote, used as a predictor: the work is done by `minialbert_runtime`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from .data.text_windows import Text
    from .prediction import Predictor

EXPORT_FILE = "export.json"


class ExportedPredictor:
    """The model of an exported folder, with the results and the errors of `minialbert.prediction.Predictor`.

    Args:
        folder: a folder that `minialbert export` wrote for a task.
        batch_size: inputs per run of the model.
        threshold: probability over which a label of a multi-label task applies.
        threads: threads of one run; None for one on each physical core.

    Raises:
        UserError: `minialbert-runtime` is not installed, a file is missing or damaged, the model labels no text, or
            an option is out of range.
    """

    def __init__(
        self, folder: str | Path, *, batch_size: int = 32, threshold: float = 0.5, threads: int | None = None
    ) -> None:
        try:
            from minialbert_runtime import Model, RuntimeUserError
        except ImportError as error:
            raise UserError(
                "predicting with an exported folder needs minialbert-runtime: pip install it from the folder runtime/ "
                f"of the repository ({error.name} is missing)"
            ) from error
        self._mistake = RuntimeUserError
        try:
            self.model = Model(folder, batch_size=batch_size, threshold=threshold, threads=threads)
        except RuntimeUserError as error:
            raise UserError(str(error)) from error

    def predict(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        """Return one result per text, as `Predictor.predict` does.

        Args:
            texts: texts, or pairs of texts; may be endless.

        Returns:
            The results.

        Raises:
            UserError: a text is no text, or a pair where the task wants none, or the model cannot be run.
        """
        if isinstance(texts, str):
            raise UserError("predict expects an iterable of texts: give [text] for one text")
        return self._results(texts)

    def _results(self, texts: Iterable[Text]) -> Iterator[dict[str, Any]]:
        try:
            yield from self.model.predict(texts)
        except self._mistake as error:
            raise UserError(str(error)) from error


def is_exported(name: str | Path) -> bool:
    """Tell whether a name is that of an exported folder."""
    return (Path(name) / EXPORT_FILE).is_file()


def load_predictor(
    name: str,
    *,
    batch_size: int = 32,
    threshold: float = 0.5,
    precision: str = "auto",
    **options: Any,
) -> Predictor | ExportedPredictor:
    """Return the predictor of a tuned model, or of an exported folder.

    Args:
        name: directory or hub id of a tuned model, or a folder that `minialbert export` wrote.
        batch_size: inputs per forward pass.
        threshold: probability over which a label of a multi-label task applies.
        precision: "auto", "fp32", "bf16" or "fp16"; an exported folder has its own, and takes "auto" alone.
        **options: further options of `Predictor.load`; those that are None are left at their defaults.

    Returns:
        The predictor.

    Raises:
        UserError: the model cannot be loaded, or an option is out of range or settled by the export.
    """
    chosen = {option: value for option, value in options.items() if value is not None}
    if not is_exported(name):
        from .prediction import Predictor

        return Predictor.load(name, batch_size=batch_size, threshold=threshold, precision=precision, **chosen)
    settled = [*chosen, *(["precision"] if precision != "auto" else [])]
    if settled:
        raise UserError(
            f"{name} is an exported folder, in which {' and '.join(settled).replace('_', ' ')} cannot be chosen any "
            "more: leave it out, or give the model that was exported"
        )
    return ExportedPredictor(name, batch_size=batch_size, threshold=threshold)
