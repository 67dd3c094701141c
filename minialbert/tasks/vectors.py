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
from minialbert_runtime.answers import TextModel
from minialbert_runtime.folder import is_exported
from numpy.typing import NDArray

from minialbert.data.cells import missing, score_of
from minialbert.data.examples import TextExample
from minialbert.data.rows import LabelledData, table_in_memory
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
from minialbert.tasks.embed import load_embedder
from minialbert.tasks.text_models import Embedder

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
_SIDES = ("queries", "corpus", "relevant")  # of retrieval, in memory
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
        embed, entry = _embedder(stack, model, batch_size, tokenizer)
        own = embed(found)
        metrics = found.score(*own)
        record: dict[str, Any] = {
            "kind": "evaluation", "name": entry["name"], "task": found.name, "problem": "embedding",
            "metric": METRICS[task][0], "split": found.split, "score": metrics[METRICS[task][0]],
            "metrics": {found.split: metrics}, "seed": None, "model": entry,
            "rows": {found.split: len(found.first)},
            "data": {"documents": len(found.second)} if task == "retrieval" else {},
            "notes": [*found.notes],
        }  # fmt: skip
        if reference is not None:
            embed_too, other = _embedder(stack, reference, batch_size, None)
            theirs = embed_too(found)
            if theirs[0].shape[1] != own[0].shape[1]:
                sizes = f"{own[0].shape[1]} and {theirs[0].shape[1]} dimensions"
                names = f"{entry['name']} and {other['name']}"
                record["notes"].append(
                    f"vectors of {names} have {sizes}: they are not compared with each other"
                )
            record["reference"] = _beside(found, metrics, other["name"], own, theirs)
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
    share = metrics[main] / scored[main] if scored[main] else None
    values: dict[str, Any] = {"name": name, "metrics": scored, "share": share}
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
) -> tuple[Callable[[VectorTask], _Sides], dict[str, Any]]:
    """Return what gives the vectors of a task's both sides by a model, and what a record says of the model.

    Anything with a method `encode` that takes texts and gives vectors is a model too.
    """
    known: Mapping[str, str] = {}
    engine = None
    if not isinstance(model, str | Path | Result) and hasattr(model, "encode"):
        name, count = type(model).__name__, sum(one.numel() for one in getattr(model, "parameters", list)())

        def encode(texts: Sequence[str], prompt: str) -> Vectors:
            return np.asarray(model.encode(list(texts)), dtype=np.float32)
    else:
        source = stack.enter_context(on_disk(model, tokenizer))
        # An exported folder chooses its own: what is scored is then what it gives in use.
        embedder: TextModel = load_embedder(source, batch_size=None if is_exported(source) else batch_size)
        name, known, engine = str(display_name(source)), embedder.prompts, getattr(embedder, "engine", None)
        count = count_parameters(embedder.model).total if isinstance(embedder, Embedder) else 0

        def encode(texts: Sequence[str], prompt: str) -> Vectors:
            logger.info("%s: vectors of %s texts", name, f"{len(texts):,}")
            return embedder.embed(texts, prompt=prompt)

    def both(found: VectorTask) -> _Sides:
        # The names of prompts under which sentence-transformers looks for queries and documents.
        names = (("query",), ("document", "passage", "corpus")) if found.task == "retrieval" else ((), ())
        prompts = [next((known[one] for one in side if one in known), "") for side in names]
        first = encode(found.first, prompts[0])
        return first, encode(found.second, prompts[1]) if found.second else first[:0]

    entry = {"name": name, "parameters": count or None}
    return both, entry if engine is None else {**entry, "engine": engine}


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
    named = columns.model_copy(update={"name": name, "problem": kind})
    found = load_task(named, data=data, carve=False, model_labels=())
    default = found.reported_split if found.reported_split in found.splits else next(iter(found.splits))
    chosen = split or default
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
    shapes = ("single texts", "pairs of texts")[:: 1 if task == "clustering" else -1]
    if any((row.pair is None) != (shapes[0] == "single texts") for row in rows):
        raise UserError(f"{found.name}: {task} wants {shapes[0]}; found {shapes[1]} ({found.columns})")
    if task == "clustering":
        return VectorTask(task, found.name, chosen, first, [], lambda vectors, _: _clusters(labels, vectors))
    second, gold = [str(row.pair) for row in rows], [float(str(label)) for label in labels]
    judges = partial(_similarity, gold), partial(_misjudged, first, second, gold)
    return VectorTask(task, found.name, chosen, first, second, *judges)


def _given(first: Vectors, second: Vectors) -> Any:
    """Return a model for sentence-transformers' evaluators, whose vectors of both sides are there already."""
    from sentence_transformers.util import cos_sim

    sides = iter((first, second))
    encoders = dict.fromkeys(("encode", "encode_query", "encode_document"), lambda *_, **__: next(sides))
    card = SimpleNamespace(set_evaluation_metrics=lambda *_: None)
    return SimpleNamespace(similarity_fn_name="cosine", similarity=cos_sim, model_card_data=card, **encoders)


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
    found = evaluator(_given(first, second))
    return {name: float(found["_".join(reversed(name.split("_")))]) for name in METRICS["sts"]}


def _misjudged(
    first: Sequence[str], second: Sequence[str], gold: Sequence[float], ours: _Sides, theirs: _Sides
) -> list[dict[str, Any]]:
    """Return how much further from its gold place among all pairs each pair is than by the reference."""
    from scipy.stats import rankdata

    cosines = (_cosines(*ours), _cosines(*theirs))
    place, other, right = (rankdata(values) / len(gold) for values in (*cosines, gold))
    lost = np.abs(place - right) - np.abs(other - right)
    names = ("first", "second", "gold", "place", "place_of_reference", "lost")
    columns = (first, second, gold, place.tolist(), other.tolist(), lost.tolist())
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _cosines(first: Vectors, second: Vectors) -> NDArray[np.float64]:
    return np.einsum("ij,ij->i", _unit(first), _unit(second), dtype=np.float64)


def _unit(vectors: Vectors) -> Vectors:
    """Return vectors of length one."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _clusters(labels: Sequence[object], vectors: Vectors) -> dict[str, float]:
    """Return how well k-means, with as many clusters as there are labels, finds the labels again (V-measure)."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    found = MiniBatchKMeans(n_clusters=len(set(labels)), **_K_MEANS).fit(vectors).labels_
    return {"v_measure": float(v_measure_score(labels, found))}


def _retrieval(data: LabelledData, split: str | None) -> VectorTask:
    """Return queries, documents, and which answers which, from a folder in the layout of BEIR or from memory."""
    name, split, (queries, documents, judged) = _tables(data, split)
    asked, texts = _texts(queries), _texts(documents)
    relevant, highest = dict[str, set[str]](), 0.0
    for row, cells in judged.rows:
        query, document = (_cell(judged, row, cells, column) for column in ("query-id", "corpus-id"))
        score = score_of(judged, row, cells.get("score"))
        highest = max(highest, score)
        if score > 0:
            relevant.setdefault(query, set()).add(document)
    answers = set[str]().union(*relevant.values())
    for absent, side in ((relevant.keys() - asked, "query"), (answers - texts.keys(), "document")):
        if absent:
            raise UserError(f"{name}: {len(absent):,} judged ids have no {side}, as {quoted(min(absent))}")
    notes = [f"{name}: judgments above 1 count as 1"] if highest > 1 else []
    if unanswered := asked.keys() - relevant:
        none = f"{len(unanswered):,} of {len(asked):,} queries"
        notes.append(f"{name}: {none} have no document in {split}, and are left out")
        asked = {key: text for key, text in asked.items() if key in relevant}
    if not asked:
        raise UserError(f"{name}: no query has a document that answers it in {split}")
    for note in notes:
        logger.info(note)
    places = {key: place for place, key in enumerate(texts)}
    wanted = [[places[one] for one in sorted(relevant[key])] for key in asked]

    def figures(first: Vectors, second: Vectors) -> dict[str, float]:
        from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

        evaluator = InformationRetrievalEvaluator(
            asked, dict.fromkeys(texts, ""), relevant, show_progress_bar=False, write_csv=False,
            corpus_chunk_size=len(texts), main_score_function="cosine",
        )  # fmt: skip
        found = evaluator(_given(first, second))
        return {name: float(found[f"cosine_{name.replace('_at_', '@')}"]) for name in METRICS["retrieval"]}

    def lost(ours: _Sides, theirs: _Sides) -> list[dict[str, Any]]:
        found = [_ranks(*sides, wanted) for sides in (ours, theirs)]
        return [
            {"query": text, "rank": mine, "rank_of_reference": other, "lost": 1 / other - 1 / mine}
            for text, mine, other in zip(asked.values(), *found, strict=True)
        ]

    sides = list(asked.values()), list(texts.values())
    return VectorTask("retrieval", name, split, *sides, figures, lost, notes)


def _ranks(first: Vectors, second: Vectors, wanted: Sequence[Sequence[int]]) -> list[int]:
    """Return the rank of the best of the wanted documents of each query, counted from 1."""
    first, second = _unit(first), _unit(second)
    ranks: list[int] = []
    for begin in range(0, len(first), _BLOCK):
        near = first[begin : begin + _BLOCK] @ second.T
        best = [row[places].max() for row, places in zip(near, wanted[begin : begin + _BLOCK], strict=True)]
        ranks += ((near > np.asarray(best)[:, None]).sum(axis=1) + 1).tolist()
    return ranks


def _tables(data: LabelledData, split: str | None) -> tuple[str, str, list[Table]]:
    """Return a name, the split, and tables of queries, documents and judgments."""
    if isinstance(data, str | Path):
        folder = Path(data).expanduser()
        sides = [folder / "queries.jsonl", folder / "corpus.jsonl"]
        there = {file.stem: file for file in sorted((folder / "qrels").glob("[!.]*.tsv"))}
        if not there or not all(file.is_file() for file in sides):
            raise UserError(f"{folder}: expected qrels/test.tsv beside corpus.jsonl and queries.jsonl")
        chosen = split or next((one for one in ("test", "dev") if one in there), min(there))
        if chosen not in there:
            raise UserError(f"{folder} has no split {quoted(chosen)}: there are {listed(there)}")
        return folder.name, chosen, [read_table(file) for file in (*sides, there[chosen])]
    if not isinstance(data, Mapping) or not all(isinstance(data.get(side), Mapping) for side in _SIDES):
        raise UserError(
            "retrieval wants a folder with corpus.jsonl, queries.jsonl and qrels/, or a mapping with queries and "
            f"corpus (texts by id) and relevant (ids of documents by id of query), found {quoted(data)}"
        )
    rows: dict[str, list[dict[str, Any]]] = {
        side: [
            {**(said if isinstance(said, Mapping) else {"text": said}), "_id": key}
            for key, said in data[side].items()
        ]
        for side in ("queries", "corpus")
    }
    rows["relevant"] = [
        {"query-id": key, "corpus-id": one, "score": ids[one] if isinstance(ids, Mapping) else 1}
        for key, ids in data["relevant"].items()
        for one in (ids if isinstance(ids, Iterable) and not isinstance(ids, str) else [ids])
    ]
    tables = [table_in_memory(given, side, in_words=False) for side, given in rows.items()]
    return "retrieval", split or "test", tables


def _texts(table: Table) -> dict[str, str]:
    """Return texts by id: each with its title before it, as BEIR puts them together."""
    texts: dict[str, str] = {}
    for row, cells in table.rows:
        key, text = (_cell(table, row, cells, name) for name in ("_id", "text"))
        if key in texts:
            raise table.error(row, f"the id {quoted(key)} stands on an earlier line too")
        texts[key] = f"{'' if missing(title := cells.get('title')) else title} {text}".strip()
    return texts


def _cell(table: Table, row: int, cells: Mapping[str, Any], name: str) -> str:
    value = cells.get(name)
    if not isinstance(value, str | int | float):
        raise table.error(row, f"expected {quoted(name)}, found {quoted(dict(cells))}")
    return str(value)
