"""The JSON of SQuAD 1.1 and 2.0, as a row for each question; data in rows already are read as any table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from minialbert.data.formats.documents import reading_as
from minialbert.data.table_files import Table
from minialbert.errors import UserError, quoted


def is_record(record: Mapping[str, Any]) -> bool:
    """Returns whether an object holds articles with paragraphs and their questions."""
    articles = record.get("data")
    first = articles[0] if isinstance(articles, list) and articles else None
    return isinstance(first, Mapping) and "paragraphs" in first


def rows(table: Table) -> Table:
    """Returns a row for each question: id, question, context, answers (left out where nobody gave any), title."""
    found: list[tuple[int, dict[str, Any]]] = []
    places: dict[int, str] = {}
    for row, record in table.rows:
        with reading_as("SQuAD", table.place(row)):
            articles = list(record["data"])
        for number, article in enumerate(articles, start=1):
            place = f"{table.name}: article {number}"
            with reading_as("SQuAD", place):
                for at, paragraph in enumerate(article["paragraphs"], start=1):
                    for asked in paragraph["qas"]:
                        cells = {key: asked[key] for key in ("id", "question", "answers") if key in asked}
                        answers, impossible = cells.get("answers"), asked.get("is_impossible")
                        if impossible is False and not answers:  # nobody gave any
                            cells.pop("answers", None)
                        cells |= {"context": paragraph["context"], "title": article.get("title")}
                        found.append((len(found) + 1, cells))
                        name = asked.get("id", asked["question"])
                        places[len(found)] = f"{place}, paragraph {at}, question {name}"
                        if impossible and answers:
                            told = "is_impossible is true, so expected no answers"
                            advice = f"found {quoted(answers)}; remove one of the two"
                            raise UserError(f"{places[len(found)]}: {told}, {advice}")
    if not found:
        raise UserError(f"{table.name}: 0 questions; expected at least one")
    columns = dict.fromkeys(key for _, cells in found for key in cells)
    return replace(table, columns=tuple(columns), rows=found, places=places)
