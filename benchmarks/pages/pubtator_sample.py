"""Writes a sample of tagged sentences as PubTator, for a tutorial: joined to running text, a passage of some sentences.

    python benchmarks/pages/pubtator_sample.py bc5cdr/test.tsv docs/tutorials/bc5cdr-sample.pubtator --passages 90

Files of words and tags have no borders of documents and no blanks between words. So a passage is so many sentences in
their order, the first of them as its title, and blanks are left out where English has none.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import minialbert
from minialbert.data.ner import read_tagged

_NO_BLANK_BEFORE, _NO_BLANK_AFTER = set(".,;:)]}%?!'"), set("([{")
_TIGHT = set("-/'")  # as in Parkinson's and beta-blocker


def running(sentences: list[dict[str, list[str]]]) -> tuple[str, list[dict[str, object]]]:
    """Return sentences as one text with its entities."""
    text, spans = "", []
    for number, sentence in enumerate(sentences):
        text += "\n" if number else ""
        before = ""
        for word, tag in zip(sentence["tokens"], sentence["tags"], strict=True):
            tight = (
                not before or word[0] in _NO_BLANK_BEFORE | _TIGHT or before[-1] in _NO_BLANK_AFTER | _TIGHT
            )
            text += ("" if tight else " ") + word
            if tag.startswith("I-"):
                spans[-1]["end"] = len(text)
            elif tag != "O":
                spans.append({"start": len(text) - len(word), "end": len(text), "label": tag[2:]})
            before = word
    return text, spans


def main() -> None:
    """Write the sample, and say what it has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--passages", type=int, default=90)
    parser.add_argument("--sentences", type=int, default=9)
    given = parser.parse_args()
    sentences = (cells for _, cells in read_tagged(given.source).rows)
    rows = []
    for number in range(given.passages):
        text, spans = running(list(islice(sentences, given.sentences)))
        rows.append({"id": str(number + 1), "text": text, "spans": spans})
    made = minialbert.convert_data(rows, given.output, format="pubtator", overwrite=True)
    print(made.documents, given.output.stat().st_size, *made.notes, sep="\n")


if __name__ == "__main__":
    main()
