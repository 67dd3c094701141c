"""Labelled data from any format that is read into any that is written, whole or in splits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from minialbert.data import formats
from minialbert.data.cells import Overlaps, Quotes
from minialbert.data.columns import COMMON_NAMES, ROLES, Columns, find, find_spans, is_in_words
from minialbert.data.formats import conll, rows
from minialbert.data.formats.documents import DOCUMENT, Document, Reading, checked
from minialbert.data.labelled import Labelled
from minialbert.data.ner import TagReader
from minialbert.data.rows import LabelledData
from minialbert.data.splits import apart, shared_texts
from minialbert.data.table_files import Table
from minialbert.errors import UserError, listed, local_path, quoted
from minialbert.runs.files import check_apart, check_file, check_folder, whole_folder, writing

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Converted:
    """Labelled data that were written: where, how many documents in each split, and notes on them, a line each."""

    output: Path
    documents: Mapping[str, int]
    notes: tuple[str, ...]


def convert_data(
    data: LabelledData,
    output: str | Path,
    *,
    format: str,
    read_as: str | None = None,
    columns: Columns | None = None,
    split: Sequence[float] | None = None,
    group: str | None = None,
    seed: int = 0,
    overlaps: Overlaps | Literal["layers"] = "refuse",
    overwrite: bool = False,
) -> Converted:
    """Write labelled data in another format, and part them into splits if asked to.

    Examples:
        >>> rows = [{"text": "Ebola causes fever.", "spans": [{"start": 0, "end": 5, "label": "Virus"}]}]
        >>> minialbert.convert_data(rows, "ebola.conll", format="conll").documents
        {'train': 1}

    Args:
        data: whatever `finetune` reads: a file or folder, `hub:OWNER/NAME`, or rows in memory.
        output: a file if it has a suffix and there is one split, else a folder with a file for each split. brat's is
            always a folder, with folders in it where there are several splits.
        format: what to write: brat, pubtator, bioc, bioc-json, doccano, label-studio, prodigy, spacy, jsonl, conll,
            conll2003, conllu, iob1, iob2, bioes or bilou.
        read_as: what the files are, if they do not show it; also bigbio, label-studio-min, spacy-json or table.
        columns: the columns of a table that do not have usual names, as {"text": "note"}.
        split: the shares of train, validation and test, as (80, 10, 10), for data without splits. Documents stay whole,
            and each class or type of entity has its share in each part.
        group: the column or key whose documents of one value stay in one part, as "patient".
        seed: of the choice.
        overlaps: what to do with entities that overlap where a format has one tag for a word: refuse the data, keep
            the longest or the first, or write the data several times into "layers": `layer-1` with the longest,
            `layer-2` with the longest of the others, and so on.
        overwrite: replace existing files.

    Returns:
        What was written, and what was left out.

    Raises:
        UserError: if the data cannot be read, or hold what cannot be written; the message names file and row.
    """
    if format not in formats.FORMATS:
        advice = f"expected one of {', '.join(formats.FORMATS)}"
        raise UserError(f"no format {quoted(format)} is written: {advice}")
    notes: list[str] = []
    splits = read_documents(data, notes, read_as=read_as, columns=columns)
    if split is not None:
        splits = _parted(splits, split, group, seed, notes)
    elif group is not None:
        raise UserError("group is for splitting: give split too, as in 80,10,10")
    notes += shared_texts({name: [one.text for one in documents] for name, documents in splits.items()})
    target = local_path(output)
    form = formats.FORMATS[format]
    if overlaps == "layers":
        splits, overlaps = _in_layers(splits, form, notes), "refuse"
    splits = formats.fit(splits, format, overlaps, notes)
    read = [data] if isinstance(data, str | Path) else []
    if len(splits) == 1 and form.suffix and target.suffix:
        check_apart(target, read)
        check_file(target, overwrite=overwrite)
        with writing(target, advice=None):
            formats.write(next(iter(splits.values())), format, target, notes)
    else:
        alone = len(splits) == 1 and not form.suffix
        places = {name: Path() if alone else Path(f"{name}{form.suffix}") for name in splits}
        for place in places.values():
            check_apart(target / place, read)
        check_folder(target, "converted data", overwrite=overwrite)
        with writing(target, advice=None), whole_folder(target) as staging:
            for name, documents in splits.items():
                place = staging / places[name]
                place.parent.mkdir(exist_ok=True)
                formats.write(documents, format, place, notes)
    return Converted(target, {name: len(documents) for name, documents in splits.items()}, tuple(notes))


def _in_layers(
    splits: Mapping[str, list[Document]], form: formats.Format, notes: list[str]
) -> dict[str, list[Document]]:
    """Returns every split once for each layer of entities; as it is where the format can hold all of them."""
    if "overlaps" in form.holds.split():
        notes.append(f"{form.title} can hold entities that overlap: all are written together, not in layers")
        return dict(splits)
    parted = {name: [list(formats.layers(one)) for one in documents] for name, documents in splits.items()}
    found = {}
    for layer in range(max(len(layers) for documents in parted.values() for layers in documents)):
        counts = dict.fromkeys(parted, 0)
        for name, documents in parted.items():
            emptied = (replace(one, entities=one.entities and ()) for one in splits[name])
            pairs = zip(documents, emptied, strict=True)
            own = [layers[layer] if layer < len(layers) else empty for layers, empty in pairs]
            found[f"layer-{layer + 1}/{name}"] = own
            counts[name] = sum(len(one.entities or ()) for one in own)
        told = listed(f"{count:,} {name}" for name, count in counts.items())
        notes.append(f"layer-{layer + 1}: {told} entities")
    return found


def read_documents(
    data: LabelledData, notes: list[str], *, read_as: str | None = None, columns: Columns | None = None
) -> dict[str, list[Document]]:
    """Return the documents of each split, from whatever `finetune` reads; what was left out goes to the notes."""
    if unknown := set(columns or ()) - {*ROLES}:
        raise UserError(f"no such column: {listed(map(quoted, unknown))}; expected {', '.join(ROLES)}")
    source = Labelled(True, columns or {}, needs_train=False, format=read_as, whole=True, notes=notes)
    _, tables = source.splits(data)
    notes += [f"{name}: read as {table.format}" for name, table in tables.items() if table.format]
    splits = {name: _documents(table, name, columns or {}, notes) for name, table in tables.items()}
    for name, documents in splits.items():
        ids = [(one.id, one.annotator) for one in documents if one.id]
        if again := [known for (known, _), count in Counter(ids).items() if count > 1]:
            others = f"{len(ids) - len(set(ids)):,} documents have the id of an earlier one"
            notes.append(f"{name}: {others}, as {quoted(again[0])}; all are kept")
    return splits


def _documents(table: Table, split: str, columns: Columns, notes: list[str]) -> list[Document]:
    if DOCUMENT in table.rows[0][1]:
        return [cells[DOCUMENT] for _, cells in table.rows]
    names = {name for role in ("tokens", "tags", "spans") for name in COMMON_NAMES[role]}
    names -= {*COMMON_NAMES["label"]}  # tags beside words alone
    if any(column.lower() in names for column in table.columns) and is_in_words(table, columns):
        reader = TagReader(table.error, "repair")
        found = list(conll.documents_of(table, reader, columns))
        notes += reader.notes(split)
        return found
    named = {role: find(table, role, columns, required=role == "text") for role in ("text", "id")}
    named["spans"] = find_spans(table, columns, required=False)
    label = find(table, "label", columns, required=False)
    named["label"] = None if label == named["spans"] else label
    quotes = Quotes()
    documents = [rows.document_of(table, row, cells, named, quotes) for row, cells in table.rows]
    notes += quotes.notes()
    return checked(documents, Reading())


def _parted(
    splits: Mapping[str, list[Document]],
    shares: Sequence[float],
    group: str | None,
    seed: int,
    notes: list[str],
) -> dict[str, list[Document]]:
    """Returns documents in parts of these shares; those of one group, id or text stay together."""
    if len(splits) > 1:
        raise UserError(f"the data have splits already, {listed(splits)}: leave split out")
    are_shares = len(shares) in (2, 3) and all(0 <= one < math.inf for one in shares)
    if not are_shares or not (shares[0] and sum(shares[1:])):
        told = "expected the shares of train, validation and test, as 80,10,10"
        raise UserError(f"split {listed(shares)}: {told}")
    (documents,) = splits.values()
    groups = [_group(one, group) for one in documents]
    if group is None:  # a text stays in one part, whatever ids it has
        first: dict[str, object] = {}
        groups = [first.setdefault(one.text, own) for one, own in zip(documents, groups, strict=True)]
    kinds = [{*(entity.label for entity in one.entities or ()), *(one.labels or ())} for one in documents]
    parts: dict[str, list[int]] = {"train": list(range(len(documents)))}
    for at in [at for at in (2, 1) if at < len(shares) and shares[at]]:
        left, share = parts["train"], shares[at] / sum(shares[: at + 1])
        chosen = apart([kinds[one] for one in left], [groups[one] for one in left], share, seed)
        if not chosen:
            wanted = f"a {_PARTS[at]} split in which each class can be"
            raise UserError(f"{len(documents)} documents are too few for {wanted}")
        parts[_PARTS[at]] = [one for place, one in enumerate(left) if place in chosen]
        parts["train"] = [one for place, one in enumerate(left) if place not in chosen]
    together = f"; those of one {group} stay together" if group else ""
    notes.append(f"split at random by class, seed {seed}{together}")
    return {name: [documents[one] for one in parts[name]] for name in _PARTS if name in parts}


def _group(document: Document, group: str | None) -> object:
    if group is None:
        return document.id or document.text
    value: Any = document.id if group == "id" else document.meta.get(group)
    if value is None or value == "":
        known = Counter(document.meta)
        raise UserError(f"{document.place}: no {quoted(group)} to group by; found {listed(['id', *known])}")
    return str(value)
