"""Labelled data wherever they lie, as a table for each split: files, tools' exports, the hub, rows in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minialbert.data import formats
from minialbert.data.cells import flag_of
from minialbert.data.columns import COMMON_NAMES, Columns, is_by_split
from minialbert.data.formats import brat
from minialbert.data.formats.documents import DOCUMENT, Reading
from minialbert.data.formats.rows import ANSWERS
from minialbert.data.hub import PREFIX, SPLIT_NAMES, assign_splits, load_saved, load_splits
from minialbert.data.ner import LINES
from minialbert.data.rows import LabelledData, table_in_memory
from minialbert.data.table_files import Table, find_tables, is_split_table
from minialbert.errors import UserError, listed, local_path, quoted, shown


@dataclass
class Labelled:
    """Reads labelled data."""

    tagging: bool  # whether words are labelled rather than texts
    columns: Columns = field(default_factory=dict)  # those that are named, by what they hold
    needs_train: bool = True
    format: str | None = None  # which of `formats.NAMES` the files are; None: what they show
    whole: bool = False  # whether documents are wanted whole, rather than what a task learns from
    notes: list[str] = field(default_factory=list)  # what was left out, a line each

    def splits(self, data: LabelledData) -> tuple[str, dict[str, Table]]:
        """Returns a name for the data, and the table of each split, without the rows that an annotator rejected."""
        if self.format is not None and self.format not in formats.NAMES:
            known = ", ".join(formats.NAMES)
            raise UserError(f"no format is called {quoted(self.format)}: expected one of {known}")
        splits: Mapping[str, Any] | None = None
        name = title = "rows in memory"
        if isinstance(data, str) and data.startswith(PREFIX):
            (name, splits), title = load_splits(data), data
            name = name.lower()
        elif isinstance(data, str | Path):
            path = local_path(data)
            name = path.resolve().name if path.is_dir() else path.stem
            title, splits = str(path), load_saved(path)
            if splits is None:
                tables = self._read_files(path)
                if any(LINES in table.rows[0][1] for table in tables.values()):
                    name = name.lower()
        else:
            name, splits = "in-memory", data if is_by_split(data, self.columns) else {"train": data}
        if splits is not None:
            if self.format not in (None, formats.TABLE):
                told = f"these are rows, not a file in the format {self.format}: leave the format out"
                raise UserError(f"{title}: {told}")
            tables = self._tables_of(splits, title)
        return name, {split: self._accepted(table, split) for split, table in tables.items()}

    def _read_files(self, path: Path) -> dict[str, Table]:
        files = self._brat_folders(path)
        left_out: list[str] = []
        if not files:
            also = formats.TAGGED_SUFFIXES if self.tagging else formats.SUFFIXES
            files, left_out = find_tables(path, also=also, needs_train=self.needs_train)
        if left_out:
            self.notes.append(f"{shown(path.name)}: left out {listed(left_out)}")
        roles = ("text", "tokens", "tags", "spans", "label")
        names = [*(name for role in roles for name in COMMON_NAMES[role]), *map(str, self.columns.values())]
        tables = {}
        for split, paths in files.items():
            tables[split] = formats.read(
                paths, self.format, tagging=self.tagging, columns=names, reading=self._reading()
            )
            self._note(split, tables[split])
            own = paths[0].name.partition(".")[0].partition("-")[0].lower() in SPLIT_NAMES[split]
            if path.is_dir() and not paths[0].is_dir() and (paths[0].name.count(".") > 1 or not own):
                self.notes.append(f"{split}: read from {shown(paths[0].name)}")
        return tables

    def _reading(self) -> Reading:
        return Reading(None if self.columns.get("text") is None else str(self.columns["text"]))

    def _note(self, split: str, table: Table) -> None:
        unused = () if self.whole else table.unused
        self.notes += (f"{split}: {note}" for note in (*table.notes, *unused))

    def _brat_folders(self, path: Path) -> dict[str, list[Path]]:
        """Returns the folders of brat's files for each split, none where there are no such files.

        The folders train, dev and test may lie in one below, if no other holds such files. Tables that are named as
        splits are meant rather than files of brat in some folder beside them.
        """
        if not path.is_dir() or self.format not in (None, "brat"):
            return {}
        entries = [one for one in sorted(path.iterdir()) if not one.name.startswith(".")]
        folders = {one.name: one.name for one in entries if one.is_dir()}
        own = any(map(brat.is_file, entries))
        with_files = [name for name in folders if brat.is_folder(path / name)]
        found = {} if own or not with_files else assign_splits(folders, str(path))
        if found and "train" not in found and self.needs_train:
            raise UserError(f"{path}: no train split; expected a folder train, found {listed(folders)}")
        others = [name for name in with_files if name not in found.values()]
        if found and others:
            self.notes.append(f"{shown(path.name)}: left out {listed(f'{name}/' for name in others)}")
        if found:
            return {split: [path / name] for split, name in found.items()}
        if self.format is None and any(map(is_split_table, entries)):
            return {}
        within = self._brat_folders(path / with_files[0]) if len(with_files) == 1 and not own else {}
        return within if len(within) > 1 else {"train": [path]} if own or with_files else {}

    def _tables_of(self, splits: Mapping[str, Any], title: str) -> dict[str, Table]:
        found = assign_splits({str(key): str(key) for key in splits}, title)
        if "train" not in found and (self.needs_train or not found):
            raise UserError(f"{title} has no train split: expected train, found {listed(splits)}")
        if others := [str(key) for key in splits if key not in found.values()]:
            self.notes.append(f"{title}: left out the split{'s' if len(others) > 1 else ''} {listed(others)}")
        tables = {}
        for split, key in found.items():
            table = table_in_memory(splits[key], f"{title} ({key})", in_words=self.tagging)
            tables[split] = table if self.format else formats.in_documents(table, self._reading())
            self._note(split, tables[split])
        return tables

    def _accepted(self, table: Table, split: str) -> Table:
        """Returns the rows that nobody rejected, ignored (Prodigy) or cancelled (Label Studio), and notes the rest."""
        answers = [str(cells.get("answer") or "accept").strip().casefold() for _, cells in table.rows]
        from_prodigy = table.format == "Prodigy" or all(answer in ANSWERS for answer in answers)
        kept = []
        for answer, (row, cells) in zip(answers, table.rows, strict=True):
            if from_prodigy and answer not in ANSWERS:
                told = f"expected accept, reject or ignore as an answer of Prodigy, found {quoted(answer)}"
                raise table.error(row, f"{told}; for other rows give --format table")
            if (answer == "accept" or not from_prodigy) and not flag_of(cells.get("was_cancelled")):
                kept.append((row, cells))
        if left_out := len(table.rows) - len(kept):
            rows = f"{left_out:,} row{'s' if left_out > 1 else ''}"
            self.notes.append(f"{split}: {rows} left out that an annotator rejected, ignored or cancelled")
        if not kept:
            told = "an annotator rejected, ignored or cancelled every row; 0 rows are left"
            raise UserError(f"{table.name}: {told}")
        return replace(table, rows=kept)


def annotated(table: Table, split: str, column: str, notes: list[str], *, one_class: bool) -> Table:
    """Returns a tool's texts without empty ones and those that nobody annotated, unless nobody annotated any.

    Where a text has `one_class` that also leaves out those with none. Rows of no tool are as given.
    """
    full = [pair for pair in table.rows if DOCUMENT not in pair[1] or pair[1][DOCUMENT].text.strip()]
    if full and (empty := len(table.rows) - len(full)):
        notes.append(f"{split}: empty texts left out: {empty:,}")
        table = replace(table, rows=full)
    lacks: tuple[Any, ...] = (None, "", []) if one_class else (None,)
    kept = [
        (row, cells)
        for row, cells in table.rows
        if not (DOCUMENT in cells or (table.format and column in table.columns and column != "spans"))
        or cells.get(column) not in lacks
    ]
    if kept and (left_out := len(table.rows) - len(kept)):
        texts = "1 text left out that has" if left_out == 1 else f"{left_out:,} texts left out that have"
        notes.append(f"{split}: {texts} no annotation of {column}")
    return replace(table, rows=kept or table.rows)
