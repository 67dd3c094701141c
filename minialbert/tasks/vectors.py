"""Sentence vectors scored on similarity, retrieval and clustering, by the evaluators that the field uses."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from minialbert_runtime.answers import TextModel
from minialbert_runtime.folder import is_exported
from numpy.typing import NDArray

from minialbert.data.examples import TextExample
from minialbert.data.rows import LabelledData
from minialbert.data.table_files import Table, read_table
from minialbert.data.tasks import load_task
from minialbert.errors import UserError, display_name, listed, needs_extra, quoted
from minialbert.method.adapters import count_parameters
from minialbert.method.live import AnyModel, on_disk
from minialbert.recipes.schema import TaskRecipe
from minialbert.runs.files import writing
from minialbert.runs.progress import speaking
from minialbert.runs.records import PREDICTIONS_FILE, RESULT_FILE, check_output, write_result
from minialbert.runs.results import Result
from minialbert.tasks.embed import Embedder, load_embedder

logger = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
_Sides = tuple[Vectors, Vectors]  # of a task
_BLOCK = 1024  # rows of similarities that are held at a time
_FURTHEST = 10  # examples that a record has
_EQUAL = 1e-6  # cosines that differ by less do so by rounding
# mteb's names of the figures, the one that counts first; and its settings of k-means.
METRICS = {
    "sts": ("cosine_spearman", "cosine_pearson"),
    "retrieval": ("ndcg_at_10", "mrr_at_10", "recall_at_10", "map_at_100"),
    "clustering": ("v_measure",),
}
_K_MEANS = {"batch_size": 500, "n_init": "auto", "random_state": 42}


@dataclass(frozen=True)
class VectorTask:
    """Texts to compare: one with one (sts), queries with documents (retrieval), or all with each other (clustering).

    `score` takes the vectors of both sides and gives the figures by name. `difference` says of each text of the first
    side how much worse the first two sides do than the last two, for examples; None where a text alone has no score.
    """

    task: str
    name: str
    split: str
    first: Sequence[str]
    second: Sequence[str]
    score: Callable[[Vectors, Vectors], dict[str, float]]
    difference: Callable[[_Sides, _Sides], list[dict[str, Any]]] | None = None
    notes: Sequence[str] = ()


def evaluate_vectors(
    model: AnyModel,
    data: LabelledData | None,
    *,
    columns: TaskRecipe,
    split: str | None = None,
    reference: AnyModel | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    batch_size: int = 64,
    tokenizer: Any = None,
    progress: bool = True,
) -> Result:
    """Score a sentence encoder, see `evaluate`; `columns` are named sts, retrieval or clustering."""
    task = str(columns.name)
    started = time.perf_counter()
    with speaking(progress), ExitStack() as stack:
        if output is not None:
            check_output(Path(output), PREDICTIONS_FILE, kind="evaluation", overwrite=overwrite)
        with needs_extra("embeddings", f"scoring vectors ({task})"):
            import sentence_transformers.sentence_transformer.evaluation  # noqa: F401 - before models are loaded
            import sklearn.cluster  # noqa: F401
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)  # the figures come in a table
        found = read_vector_task(columns, data, split)
        name, embed, entry = _embedder(stack, model, batch_size, tokenizer)
        own = embed(found)
        metrics = found.score(*own)
        record: dict[str, Any] = {
            "kind": "evaluation", "name": name, "task": found.name, "problem": "embedding",
            "metric": METRICS[task][0], "split": found.split, "score": metrics[METRICS[task][0]],
            "metrics": {found.split: metrics}, "seed": None, "model": entry,
            "rows": {found.split: len(found.first)},
            "data": {"documents": len(found.second)} if task == "retrieval" else {},
            "notes": [*found.notes],
        }  # fmt: skip
        if reference is not None:
            other, embed_too, _ = _embedder(stack, reference, batch_size, None)
            theirs = embed_too(found)
            if theirs[0].shape[1] != own[0].shape[1]:
                record["notes"].append(
                    f"vectors of {name} have {own[0].shape[1]} dimensions, those of {other} {theirs[0].shape[1]}: "
                    "they are not compared with each other"
                )
            record["reference"] = _beside(found, metrics, other, own, theirs)
        record["wall_seconds"] = round(time.perf_counter() - started, 2)
        if output is None:
            return Result(record)
        with writing(Path(output), advice=None):
            return Result(write_result(Path(output) / RESULT_FILE, record), Path(output))


def _beside(
    found: VectorTask, metrics: Mapping[str, float], name: str, own: _Sides, theirs: _Sides
) -> dict[str, Any]:
    """Return a reference's figures, the share of them that the model has, and those of both together."""
    scored, main = found.score(*theirs), METRICS[found.task][0]
    values: dict[str, Any] = {
        "name": name,
        "metrics": scored,
        "share": metrics[main] / scored[main] if scored[main] else None,
    }
    if len(found.second) and theirs[0].shape[1] == own[0].shape[1]:
        halves = [found.score(own[0], theirs[1])]
        if found.task == "sts":  # the texts of a pair have no order
            halves.append(found.score(theirs[0], own[1]))
        mixed = {key: statistics.fmean(half[key] for half in halves) for key in scored}
        values |= {"mixed": mixed, "mixed_share": mixed[main] / scored[main] if scored[main] else None}
    if found.difference is not None:
        furthest = sorted(found.difference(own, theirs), key=lambda one: -one["lost"])
        values["furthest"] = [one for one in furthest[:_FURTHEST] if one["lost"] > 0]
    return values


def _embedder(
    stack: ExitStack, model: AnyModel, batch_size: int, tokenizer: Any
) -> tuple[str, Callable[[VectorTask], _Sides], dict[str, Any]]:
    """Return a model's name, what gives the vectors of a task's both sides, and what a record says of the model.

    Anything with a method `encode` that takes texts and gives vectors is a model too.
    """
    if not isinstance(model, str | Path | Result) and hasattr(model, "encode"):
        name, count = type(model).__name__, sum(one.numel() for one in getattr(model, "parameters", list)())

        def encode(texts: Sequence[str], *_: str) -> Vectors:
            return np.asarray(model.encode(list(texts)), dtype=np.float32)
    else:
        source = stack.enter_context(on_disk(model, tokenizer))
        # An exported folder chooses its own: what is scored is then what it gives in use.
        embedder: TextModel = load_embedder(source, batch_size=None if is_exported(source) else batch_size)
        name = str(display_name(source))
        count = count_parameters(embedder.model).total if isinstance(embedder, Embedder) else 0
        known = embedder.prompts

        def encode(texts: Sequence[str], *names: str) -> Vectors:
            prompt = next((known[one] for one in names if one in known), "")
            logger.info("%s: vectors of %s texts", name, f"{len(texts):,}")
            return embedder.embed(texts, prompt=prompt)

    def both(found: VectorTask) -> _Sides:
        # The names of prompts under which sentence-transformers looks for queries and documents.
        sides = ("query",), ("document", "passage", "corpus")
        first = encode(found.first, *(sides[0] if found.task == "retrieval" else ()))
        if not found.second:
            return first, first[:0]
        return first, encode(found.second, *(sides[1] if found.task == "retrieval" else ()))

    return name, both, {"name": name, "parameters": count or None}


def read_vector_task(columns: TaskRecipe, data: LabelledData | None, split: str | None = None) -> VectorTask:
    """Return texts to compare, from a folder, a file, or memory; docs/embeddings.md has the shapes.

    `columns` say which task it is, and what the columns of a table are called where they have no usual names.
    Raises UserError, with file and row, where the data are not of such a shape.
    """
    task = str(columns.name)
    if data is None:
        raise UserError(f"task {task} has no data: give --data, a directory or file")
    if task == "retrieval":
        return _retrieval(data, split)
    place = Path(data).expanduser() if isinstance(data, str | Path) else None
    is_glue = task == "sts" and place is not None and (place / "dev.tsv").is_file()
    kind = None if is_glue else "regression" if task == "sts" else "single-label"
    name = "stsb" if is_glue else place.stem if place else task
    found = load_task(
        columns.model_copy(update={"name": name, "problem": kind}), data=data, carve=False, model_labels=()
    )
    chosen = split or (
        found.reported_split if found.reported_split in found.splits else next(iter(found.splits))
    )
    if chosen not in found.splits:
        raise UserError(f"{found.name} has no split {quoted(chosen)}: there are {listed(found.splits)}")
    rows = [row for row in found.splits[chosen] if isinstance(row, TextExample) and row.label is not None]
    if len(rows) < 2:
        raise UserError(f"{found.name}: expected at least 2 labelled rows in {chosen}, found {len(rows)}")
    first, labels = [row.text for row in rows], [row.label for row in rows]
    if len(set(labels)) < 2:
        raise UserError(
            f"{found.name}: every row of {chosen} has {quoted(labels[0])}, so nothing can be scored"
        )
    if task == "clustering":
        if any(row.pair is not None for row in rows):
            raise UserError(f"{found.name}: clustering wants single texts; found pairs ({found.columns})")
        return VectorTask(task, found.name, chosen, first, [], lambda vectors, _: _clusters(labels, vectors))
    if any(row.pair is None for row in rows):
        raise UserError(
            f"{found.name}: sts wants pairs of texts and a score; found single texts ({found.columns})"
        )
    second, gold = [str(row.pair) for row in rows], [float(str(label)) for label in labels]
    return VectorTask(
        task, found.name, chosen, first, second,
        partial(_similarity, gold),
        partial(_misjudged, first, second, gold),
    )  # fmt: skip


class _Given:
    """A model for sentence-transformers' evaluators, whose vectors of both sides are there already."""

    similarity_fn_name = "cosine"
    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_: None)

    def __init__(self, first: Vectors, second: Vectors) -> None:
        self._sides = iter((first, second))

    def encode(self, *_: object, **__: object) -> Vectors:
        return next(self._sides)

    encode_query = encode_document = encode

    @staticmethod
    def similarity(first: Any, second: Any) -> torch.Tensor:
        from sentence_transformers.util import cos_sim

        return cos_sim(first, second)


def _similarity(gold: Sequence[float], first: Vectors, second: Vectors) -> dict[str, float]:
    """Return the correlation of the pairs' cosines with their scores, by rank (Spearman) and as they are (Pearson)."""
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    if np.ptp(_cosines(first, second)) < _EQUAL:
        raise UserError(
            "the two texts of each pair have equally similar vectors in all pairs, so nothing can be scored"
        )
    blank = [""] * len(gold)
    evaluator = EmbeddingSimilarityEvaluator(
        blank, blank, list(gold), main_similarity="cosine", show_progress_bar=False, write_csv=False
    )
    found = evaluator(_Given(first, second))
    return {name: float(found["_".join(reversed(name.split("_")))]) for name in METRICS["sts"]}


def _misjudged(
    first: Sequence[str], second: Sequence[str], gold: Sequence[float], ours: _Sides, theirs: _Sides
) -> list[dict[str, Any]]:
    """Return how much further from its gold place among all pairs each pair is than by the reference."""
    from scipy.stats import rankdata

    places = [rankdata(values) / len(gold) for values in (_cosines(*ours), _cosines(*theirs), gold)]
    lost = np.abs(places[0] - places[2]) - np.abs(places[1] - places[2])
    return [
        {"first": a, "second": b, "gold": score, "place": mine, "place_of_reference": other, "lost": less}
        for a, b, score, mine, other, less in zip(
            first, second, gold, *(side.tolist() for side in places[:2]), lost.tolist(), strict=True
        )
    ]


def _cosines(first: Vectors, second: Vectors) -> NDArray[np.float64]:
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.einsum("ij,ij->i", first, second, dtype=np.float64) / np.maximum(lengths, 1e-12)


def _clusters(labels: Sequence[object], vectors: Vectors) -> dict[str, float]:
    """Return how well k-means, with as many clusters as there are labels, finds the labels again (V-measure)."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    found = MiniBatchKMeans(n_clusters=len(set(labels)), **_K_MEANS).fit(vectors).labels_
    return {"v_measure": float(v_measure_score(labels, found))}


def _retrieval(data: LabelledData, split: str | None) -> VectorTask:
    """Return queries, documents, and which answers which, from a folder in the layout of BEIR or from memory."""
    notes = []
    if isinstance(data, str | Path):
        folder = Path(data).expanduser()
        name, (split, judged) = folder.name, _judged(folder, split)
        queries, documents = (_texts(folder / f"{what}.jsonl") for what in ("queries", "corpus"))
    elif isinstance(data, Mapping) and {"queries", "corpus", "relevant"} <= set(data):
        name, split = "retrieval", split or "test"
        queries, documents = (_texts_in_memory(data[side], side) for side in ("queries", "corpus"))
        judged = {str(key): _judged_in_memory(key, found) for key, found in data["relevant"].items()}
    else:
        raise UserError(
            "retrieval wants a folder with corpus.jsonl, queries.jsonl and qrels/, or a mapping with queries and "
            "corpus (texts by id) and relevant (ids of documents by id of query)"
        )
    if any(score > 1 for found in judged.values() for score in found.values()):
        notes.append(f"{name}: judgments above 1 count as 1")
    positive = ((key, {one for one, score in found.items() if score > 0}) for key, found in judged.items())
    relevant = {key: found for key, found in positive if found}
    for missing, side in (
        (set(relevant) - set(queries), "query"),
        (set().union(*relevant.values()) - set(documents), "document"),
    ):
        if missing:
            raise UserError(f"{name}: {len(missing):,} judged ids have no {side}, as {quoted(min(missing))}")
    asked = {key: queries[key] for key in queries if key in relevant}
    if not asked:
        raise UserError(f"{name}: no query has a document that answers it in {split}")
    if len(asked) < len(queries):
        none = f"{len(queries) - len(asked):,} of {len(queries):,} queries"
        notes.append(f"{name}: {none} have no document in {split}, and are left out")
    for note in notes:
        logger.info(note)
    keys, places = list(documents), {key: place for place, key in enumerate(documents)}
    wanted = [[places[one] for one in sorted(relevant[key])] for key in asked]

    def score(first: Vectors, second: Vectors) -> dict[str, float]:
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

        evaluator = InformationRetrievalEvaluator(
            asked, dict.fromkeys(keys, ""), relevant, show_progress_bar=False, write_csv=False,
            corpus_chunk_size=len(keys), main_score_function="cosine",
        )  # fmt: skip
        found = evaluator(_Given(first, second))
        return {name: float(found[f"cosine_{name.replace('_at_', '@')}"]) for name in METRICS["retrieval"]}

    def lost(ours: _Sides, theirs: _Sides) -> list[dict[str, Any]]:
        found = [_ranks(*sides, wanted) for sides in (ours, theirs)]
        return [
            {"query": text, "rank": mine, "rank_of_reference": other, "lost": 1 / other - 1 / mine}
            for text, mine, other in zip(asked.values(), *found, strict=True)
        ]

    texts = list(asked.values()), list(documents.values())
    return VectorTask("retrieval", name, split, *texts, score, lost, notes)


def _ranks(first: Vectors, second: Vectors, wanted: Sequence[Sequence[int]]) -> list[int]:
    """Return the rank of the best of the wanted documents of each query, counted from 1."""
    first, second = (
        side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-12) for side in (first, second)
    )
    ranks: list[int] = []
    for begin in range(0, len(first), _BLOCK):
        near = first[begin : begin + _BLOCK] @ second.T
        best = [row[places].max() for row, places in zip(near, wanted[begin : begin + _BLOCK], strict=True)]
        ranks += ((near > np.asarray(best)[:, None]).sum(axis=1) + 1).tolist()
    return ranks


def _judged(folder: Path, split: str | None) -> tuple[str, dict[str, dict[str, float]]]:
    """Return the split that is scored, and for each query how relevant documents are, from qrels/SPLIT.tsv."""
    there = {file.stem: file for file in sorted((folder / "qrels").glob("*.tsv"))}
    if not there:
        raise UserError(f"{folder}: expected qrels/test.tsv beside corpus.jsonl and queries.jsonl")
    chosen = split or next((one for one in ("test", "dev") if one in there), min(there))
    if chosen not in there:
        raise UserError(f"{folder} has no split {quoted(chosen)}: there are {listed(there)}")
    table, judged = read_table(there[chosen]), dict[str, dict[str, float]]()
    for row, cells in table.rows:
        query, document, score = (
            _cell(table, row, cells, name) for name in ("query-id", "corpus-id", "score")
        )
        try:
            judged.setdefault(query, {})[document] = float(score)
        except ValueError:
            raise table.error(row, f"the score {quoted(score)} is no number") from None
    return chosen, judged


def _texts(file: Path) -> dict[str, str]:
    """Return texts by id: each with its title before it, as BEIR puts them together."""
    if not file.is_file():
        raise UserError(f"{file} is missing: expected corpus.jsonl, queries.jsonl and qrels/ in one folder")
    table, texts = read_table(file), dict[str, str]()
    for row, cells in table.rows:
        key, text = _cell(table, row, cells, "_id"), _cell(table, row, cells, "text")
        if key in texts:
            raise table.error(row, f"the id {quoted(key)} stands on an earlier line too")
        texts[key] = _titled(cells, text)
    return texts


def _titled(cells: Mapping[str, Any], text: str) -> str:
    return f"{cells.get('title') or ''} {text}".strip()


def _texts_in_memory(given: Any, side: str) -> dict[str, str]:
    """Return texts by id; those of BEIR's loader have a title beside the text."""
    texts = {}
    for key, said in given.items() if isinstance(given, Mapping) else [("", None)]:
        text = _titled(said, said.get("text") or "") if isinstance(said, Mapping) else said
        if not isinstance(text, str):
            raise UserError(f"retrieval: {side} are texts by id, found {quoted(said if key else given)}")
        texts[str(key)] = text
    return texts


def _judged_in_memory(query: object, given: Any) -> dict[str, float]:
    """Return how relevant documents are, by id; those of a list all are."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise UserError(
            f"retrieval: expected ids of documents for query {quoted(query)}, found {quoted(given)}"
        )
    return {str(one): given[one] if isinstance(given, Mapping) else 1 for one in given}


def _cell(table: Table, row: int, cells: Mapping[str, Any], name: str) -> str:
    value = cells.get(name)
    if not isinstance(value, str | int | float):
        raise table.error(row, f"expected {quoted(name)}, found {listed(map(quoted, cells))}")
    return str(value)
