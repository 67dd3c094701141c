"""A word and its tag a line: sentences as documents, and documents as sentences in every scheme of tags."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from minialbert_runtime.words import spans_to_tags, tags_to_spans

from minialbert.data.cells import missing, tags_of, words_of
from minialbert.data.columns import Columns, find, find_required
from minialbert.data.formats.documents import Document, Entity, Part, flat
from minialbert.data.ner import DOCUMENT_START, GLUED, LINES, TagReader
from minialbert.data.table_files import Table

# First and last word of an entity, and its only one, in each scheme; IOB1 has B- only after one of the same type.
_MARKS = {"iob2": "BIB", "bioes": "BES", "bilou": "BLU", "conll": "BIB", "conll2003": "BIB", "conllu": "BIB"}
SCHEMES = ("iob1", *_MARKS)


def documents_of(table: Table, reader: TagReader, columns: Columns) -> Iterator[Document]:
    """Yields the documents of tagged sentences; where no line parts documents each sentence is one.

    Words have a space between them, but where CoNLL-U says that there is none, and sentences a line end.
    """

    def of(pair: tuple[int, Mapping[str, Any]]) -> object:
        return pair[1].get(DOCUMENT_START, pair[0])

    words_in, tags_in = find_required(table, "tokens", columns), find(table, "tags", columns, required=False)
    for name, rows in groupby(table.rows, key=of):
        text, sentences, first = "", list[tuple[Part, ...]](), ""
        entities: list[Entity] | None = None
        for row, cells in rows:
            place = table.place(row)
            first = first or place
            text += "\n" if text else ""
            offsets, words = [], words_of(table, row, cells[words_in], words_in)
            for word, glued in zip(words, cells.get(GLUED) or [False] * len(words), strict=True):
                offsets.append((len(text), len(text) + len(word)))
                text += word + ("" if glued else " ")
            text = text.rstrip(" ")
            if tags_in is not None and not missing(cells.get(tags_in)):
                given = tags_of(table, row, cells[tags_in], tags_in, words, None)
                tags = reader.read(given, cells.get(LINES) or [row] * len(offsets))
                spans = tags_to_spans(tags, offsets)
                found = (Entity(one.label, ((one.start, one.end),), place=place) for one in spans)
                entities = [*(entities or ()), *found]
            sentences.append(tuple(offsets))
        known = (name[1] if isinstance(name, tuple) else None) or None
        annotated = None if entities is None else tuple(entities)
        yield Document(text, annotated, id=known, words=tuple(sentences), place=first)


def write(documents: Iterable[Document], scheme: str) -> Iterator[str]:
    """Yields documents as lines, whose tags are those of a scheme.

    `conll2003` has four columns, those of part of speech and chunk empty; `conllu` ten, with the tag as NER= in the
    last; all others have a word, TAB and its tag. Words are the file's own, else running text is cut at whitespace and
    punctuation, and its lines are sentences.
    """
    for number, document in enumerate(documents, start=1):
        name = flat(document.id or str(number))
        if scheme == "conll2003":
            yield "-DOCSTART- -X- -X- O\n\n"
        else:
            yield f"# newdoc id = {name}\n"
        for words, touching, tags in _sentences(document):
            tagged = zip(words, touching, _tags(tags, scheme), strict=True)
            for place, (word, glued, tag) in enumerate(tagged, start=1):
                if scheme == "conll2003":
                    yield f"{word.replace(' ', chr(160))} -X- -X- {tag}\n"
                elif scheme == "conllu":
                    misc = f"NER={tag}" + ("|SpaceAfter=No" if glued else "")
                    yield "\t".join([str(place), word, *"_" * 7, misc]) + "\n"
                else:
                    yield f"{word}\t{tag}\n"
            yield "\n"


def _sentences(document: Document) -> Iterator[tuple[list[str], list[bool], list[str]]]:
    """Yields the words of each sentence, whether the next one touches each, and their tags."""
    spans, text = document.spans, document.text
    own = [word for sentence in document.words or () for word in sentence]
    starts, ends = {start for start, _ in own}, {end for _, end in own}
    if own and all(span.start in starts and span.end in ends for span in spans):
        groups: Sequence[Sequence[Part]] = document.words or ()
        order = sorted(starts)
        tags = dict.fromkeys(order, "O")
        for span in spans:
            inside = order[bisect_left(order, span.start) : bisect_left(order, span.end)]
            tags |= {start: f"{'B' if start == span.start else 'I'}-{span.label}" for start in inside}
    else:
        _, offsets, found = spans_to_tags(text, spans)
        tags = {start: tag for (start, _), tag in zip(offsets, found, strict=True)}
        lines: list[list[Part]] = [[]]
        for start, end in offsets:
            if lines[-1] and "\n" in text[lines[-1][-1][1] : start] and not tags[start].startswith("I-"):
                lines.append([])
            lines[-1].append((start, end))
        groups = lines
    for group in filter(None, groups):
        touching = [one[1] == other[0] for one, other in pairwise(group)] + [False]
        yield [text[start:end] for start, end in group], touching, [tags[start] for start, _ in group]


def _tags(tags: Sequence[str], scheme: str) -> Iterator[str]:
    """Yields tags of IOB2 in another scheme."""
    padded = ["O", *tags, "O"]
    for before, tag, after in zip(padded[:-2], tags, padded[2:], strict=True):
        if tag == "O":
            yield tag
        elif scheme == "iob1":
            yield f"{'B' if tag[0] == 'B' and before[2:] == tag[2:] else 'I'}{tag[1:]}"
        else:
            first, last, only = tuple(_MARKS[scheme])
            goes_on = after == f"I-{tag[2:]}"
            mark = (first if goes_on else only) if tag[0] == "B" else ("I" if goes_on else last)
            yield mark + tag[1:]
