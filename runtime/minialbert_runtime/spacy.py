"""A spaCy component: `nlp.add_pipe("minialbert", config={"model": "exported/"})`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import filter_spans

from .model import Model


class Component:
    """Adds a model's answers to documents; each document has its whole answer in `doc.user_data["minialbert"]`.

    Entities become `doc.ents`, in place of those of earlier components that they overlap, and are widened to whole
    tokens of spaCy. Classes become `doc.cats`, and the vector of a sentence encoder `doc.vector`.
    """

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, doc: Doc) -> Doc:
        """Return the document with its answer."""
        return next(self.pipe([doc]))

    def pipe(self, stream: Iterable[Doc], *, batch_size: int = 128) -> Iterator[Doc]:
        """Yield documents with their answers; the texts of a batch go to the model together."""
        documents = iter(stream)
        while batch := list(islice(documents, batch_size)):
            for doc, result in zip(batch, self.model.predict([doc.text for doc in batch]), strict=True):
                yield _with(doc, result)


def _with(doc: Doc, result: dict[str, Any]) -> Doc:
    answer = {key: value for key, value in result.items() if key not in ("text", "vector")}
    if "entities" in result:
        spans = [
            doc.char_span(one["start"], one["end"], one["label"], alignment_mode="expand")
            for one in result["entities"]
        ]
        doc.set_ents(filter_spans([span for span in spans if span is not None]), default="unmodified")
    elif "vector" in result:
        doc.vector = np.array(result["vector"], np.float32)
    elif "scores" in result:
        doc.cats.update(result["scores"])
    doc.user_data["minialbert"] = answer
    return doc


@Language.factory(  # type: ignore[untyped-decorator]
    "minialbert",
    default_config={"model": "", "threshold": None, "batch_size": None, "threads": None},
    assigns=["doc.ents", "doc.cats"],
)
def make(
    nlp: Language, name: str, model: str, threshold: float | None, batch_size: int | None, threads: int | None
) -> Component:
    """Return the component of an exported folder; the options are those of `Model`."""
    return Component(Model(model, threshold=threshold, batch_size=batch_size, threads=threads))
