"""What has to be there before the first cell runs: the same teachers as before, and windows of each corpus."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.windows import prepare
from ..errors import UserError
from ..recipe_schema import Recipe
from ..runs import write_atomically, writing
from .cells import Cell, Places, distillation_recipe
from .schema import Suite

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def prepare_windows(
    suite: Suite, cells: Sequence[Cell], places: Places, folder: Path, *, progress: bool = True
) -> dict[str, str]:
    """Cut the corpora of some distillations into windows, once per corpus, tokenizer and settings.

    Args:
        suite: the suite.
        cells: the cells that are to run.
        places: where things are.
        folder: for the windows; those that are there already stay.
        progress: say so, and show bars.

    Returns:
        The folder with the windows of each row.

    Raises:
        UserError: if a corpus or tokenizer is missing or cannot be read.
    """
    made: dict[str, Path] = {}
    found: dict[str, str] = {}
    for cell in cells:
        if not cell.is_distillation:
            continue
        recipe = distillation_recipe(suite, cell.row, places)
        options = _options(recipe, f"suite {suite.name}, row {cell.row}")
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:8]
        name = f"{suite.rows[cell.row].corpus or 'corpus'}-{options['window_length']}-{digest}"
        if name not in made:
            target = made[name] = folder / name
            if progress and not (target / "manifest.json").is_file():
                logger.info("windows of %s, in %s", ", ".join(map(str, options["corpus"])), target)
            prepare(output=target, progress=progress, **options)
        found[cell.row] = str(made[name])
    return found


def check_teachers(file: Path, records: Path | None, teachers: Mapping[str, str]) -> None:
    """Refuse to go on with another teacher than the suite was begun with.

    Args:
        file: where the teachers' checksums are kept; written here.
        records: a folder with records, which may have such a file too.
        teachers: directory or hub id by name.

    Raises:
        UserError: if one differs, or if the file cannot be read or written.
    """
    known: dict[str, str] = {}
    for one in ([records / file.name] if records is not None else []) + [file]:
        if one.is_file():
            try:
                known |= {str(key): str(value) for key, value in json.loads(one.read_text("utf-8")).items()}
            except (OSError, ValueError, AttributeError) as error:
                raise UserError(f"{one} is damaged ({error}): remove it, and run the suite again") from error
    for name, where in teachers.items():
        digest = _checksum(where)
        if known.setdefault(name, digest) != digest:
            raise UserError(
                f"--teacher {name}={where}: other weights than the finished cells of {file.parent} were made with; "
                "give the same teacher, or another --output"
            )
    with writing(file, advice="make room, then start the same command again"):
        write_atomically(file, json.dumps(known, indent=2) + "\n")


def _options(recipe: Recipe, where: str) -> dict[str, Any]:
    data = recipe.data
    tokenizer = data.tokenizer or recipe.teacher.model
    if not data.corpus:
        raise UserError(f"{where}: has no corpus; give it one of the suite's corpora, or one in its recipe")
    if tokenizer is None:
        raise UserError(f"{where}: has no tokenizer; give it a teacher, or a tokenizer in its recipe")
    return {
        "corpus": data.corpus,
        "tokenizer": tokenizer,
        "window_length": data.window_length,
        "overlap": data.overlap,
        "max_windows_per_document": data.max_windows_per_document,
        "truncate": data.truncate,
        "held_out_fraction": data.held_out_fraction,
        "seed": recipe.training.seed,
        "separator": data.documents,
        "text_field": data.text_field,
    }


def _checksum(model: str) -> str:
    """Return the SHA-256 of a local model's weights; a hub id stands for itself."""
    folder = Path(model)
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()
