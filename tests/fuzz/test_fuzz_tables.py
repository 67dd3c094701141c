"""Whatever a table holds, it is a task whose rows fit its labels, or refused in one line."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pandas
import pytest
from hostile import NAMES, hunt, mutated, spelled, tiers, values
from hypothesis import strategies as st
from pydantic import ValidationError

from minialbert.data.examples import Task, TextExample, TokenExample
from minialbert.data.tables import load_table
from minialbert.data.tasks import load_task, task_summary, understood
from minialbert.recipes.schema import TaskRecipe
from minialbert.tasks.predict import read_inputs

ROWS: dict[str, list[dict[str, Any]]] = {
    "single-label": [{"text": "one, two", "label": "A"}, {"text": "three", "label": "B"}],
    "multi-label": [{"text": "one; two", "label": "A|B"}, {"text": 'a "quote"', "label": ""}],
    "regression": [{"text": "one", "label": 0.5}, {"text": "two\nlines", "label": -1}],
    "token": [{"tokens": "the new kinase", "tags": "O B-Gene I-Gene"}, {"tokens": "it", "tags": "O"}],
}
SPANS = [
    {"text": "the new kinase", "spans": [{"start": 4, "end": 14, "label": "Gene"}]},
    {"text": "it", "spans": []},
]
PROBLEMS = st.sampled_from(list(ROWS))


def check(task: Task) -> None:
    assert len(set(task.labels)) == len(task.labels)
    assert all(isinstance(label, str) and label.strip() for label in task.labels)
    assert bool(task.labels) == (task.problem != "regression")
    for split, examples in task.splits.items():
        assert examples
        for example in examples:
            if isinstance(example, TokenExample):
                assert example.tags is None or len(example.tags) == len(example.words)
                assert split != "train" or set(example.tags or ()) <= set(task.labels)
                assert all(word.strip() for word in example.words)
                if example.text is not None and example.offsets is not None:
                    cut = tuple(example.text[start:end] for start, end in example.offsets)
                    assert cut == example.words
            else:
                check_text(example, task, split)
    assert all(line.isprintable() for line in (*task.notes, *understood(task)))
    json.dumps(task_summary(task), ensure_ascii=False).encode()


def check_text(example: TextExample, task: Task, split: str) -> None:
    for text in (example.text, example.pair, example.id):
        assert text is None or text.encode() is not None
    assert example.text.strip()
    label = example.label
    if label is None:
        assert split == "test"
    elif task.problem == "regression":
        assert isinstance(label, float) and math.isfinite(label)
    else:
        assert split != "train" or set((label,) if isinstance(label, str) else label) <= set(task.labels)


def separated(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    def cell(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value)
        return (
            f'"{text}"'.replace('""', '"')
            if delimiter != "\t" and delimiter in text
            else text.replace("\n", " ")
        )

    lines = [rows[0].keys(), *(row.values() for row in rows)]
    return "\n".join(delimiter.join(map(cell, line)) for line in lines).encode() + b"\n"


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def samples(suffix: str, problem: str) -> list[bytes]:
    tables = [ROWS[problem], SPANS] if problem == "token" else [ROWS[problem]]
    if suffix == ".jsonl":
        return [b"".join(spelled(row) + b"\n" for row in rows) for rows in tables]
    if suffix == ".parquet":
        return [parquet(rows) for rows in tables]
    return [separated(rows, "\t" if suffix == ".tsv" else d) for rows in tables for d in (",", ";")]


@tiers
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_files(examples: int, suffix: str, tmp_path: Path) -> None:
    def attack(hostile: tuple[str, str, bytes]) -> None:
        problem, split, content = hostile
        for name in ("train", "test"):
            (tmp_path / f"{name}{suffix}").write_bytes(
                content if name == split else samples(suffix, problem)[0]
            )
        check(load_table(tmp_path, problem))

    def inputs(problem: str) -> st.SearchStrategy[Any]:
        contents = mutated(samples(suffix, problem), most_steps=3)
        return st.tuples(st.just(problem), st.sampled_from(["train", "train", "test"]), contents)

    hunt(f"tables {suffix}", examples, PROBLEMS.flatmap(inputs), attack, folder=tmp_path)


@tiers
@pytest.mark.parametrize("suffix", [".jsonl", "list", "frame"])
def test_rows(examples: int, suffix: str, tmp_path: Path) -> None:
    """Rows that are all JSON, with any value in any cell, from a file and in memory."""
    path = tmp_path / "train.jsonl"

    def attack(hostile: tuple[str, list[dict[str, Any]]]) -> None:
        problem, rows = hostile
        if suffix == ".jsonl":
            path.write_bytes(b"".join(spelled(row) + b"\n" for row in rows))
        frame = pandas.DataFrame(rows, dtype=object) if suffix == "frame" else rows
        check(load_table(path if suffix == ".jsonl" else frame, problem))

    def inputs(problem: str) -> st.SearchStrategy[Any]:
        good = ROWS[problem] + (SPANS if problem == "token" else [])
        span = st.fixed_dictionaries({"start": values(), "end": values(), "label": values()})
        cell = st.one_of(values(), st.lists(span, max_size=2), st.lists(span, max_size=2).map(json.dumps))
        keys = sorted({key for row in good for key in row})
        bad = st.tuples(st.sampled_from(good), st.sampled_from([*keys, "id", "\n"]), cell).map(
            lambda change: {**change[0], change[1]: change[2]}
        )
        return st.tuples(
            st.just(problem), st.lists(st.one_of(st.sampled_from(good), bad), min_size=1, max_size=4)
        )

    hunt(f"tables rows {suffix}", examples, PROBLEMS.flatmap(inputs), attack, folder=tmp_path)


@tiers
def test_task_recipes(examples: int, tmp_path: Path) -> None:
    """Any names of columns, labels and options, on a file that is well."""
    for problem, rows in ROWS.items():
        (tmp_path / problem).mkdir()
        for split in ("train", "test"):
            (tmp_path / problem / f"{split}.jsonl").write_bytes(
                b"".join(spelled(row) + b"\n" for row in rows * 3)
            )

    def attack(hostile: dict[str, Any]) -> None:
        data = hostile["data"]
        given = {**hostile, "data": str(tmp_path / data) if data in ROWS else data if data != "hub" else "x"}
        try:
            recipe = TaskRecipe(**given)
        except ValidationError as error:
            raise ValueError("the schema refused it") from error
        check(load_task(recipe))

    column = st.one_of(
        st.none(), st.none(), st.none(), st.sampled_from(["text", "label", "tokens", "tags"]), NAMES
    )
    data = st.one_of(PROBLEMS, PROBLEMS, NAMES).filter(lambda name: not name.startswith("hub:"))
    own = {
        "single-label": "classification",
        "multi-label": "multi-label",
        "regression": "regression",
        "token": "ner",
    }
    hostile = {
        "problem": PROBLEMS,
        "label_separator": NAMES,
        "metric": st.sampled_from(["accuracy", "f1_micro", "entity_f1", "x", "\n", ""]),
        "labels": st.lists(NAMES, max_size=3),
        "max_train_rows": st.integers(-1, 9),
        "validation_fraction": st.floats(),
        **dict.fromkeys(("text", "pair", "label", "tokens", "tags", "spans"), column),
    }
    well = PROBLEMS.map(lambda problem: {"name": own[problem], "data": problem})
    name = st.one_of(st.sampled_from([*own.values(), "mine"]), NAMES)
    inputs = st.one_of(
        st.tuples(
            well,
            st.sampled_from(sorted(hostile)).flatmap(lambda key: st.fixed_dictionaries({key: hostile[key]})),
        ).map(lambda parts: {**parts[0], **parts[1]}),
        st.fixed_dictionaries({"name": name, "data": data}, optional=hostile),
    )
    hunt("task recipes", examples, inputs, attack, folder=tmp_path, contract=(ValueError,))


@tiers
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_inputs_of_predict(examples: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"in{suffix}"

    def attack(hostile: tuple[bytes, str | None, str | None]) -> None:
        content, column, pair_column = hostile
        path.write_bytes(content)
        for text, _ in read_inputs([str(path)], column=column, pair_column=pair_column):
            for part in text if isinstance(text, tuple) else (text,):
                part.encode()

    content = b"one\ntwo\r\nthree" if suffix == ".txt" else samples(suffix, "single-label")[0]
    given = {".txt": None}.get(suffix, "label")
    columns = st.one_of(st.none(), st.none(), st.just(given), NAMES)
    inputs = st.tuples(mutated([content]), columns, st.one_of(st.none(), st.none(), st.just(given), NAMES))
    # These messages name every column of a table in full.
    hunt(f"predict {suffix}", examples, inputs, attack, folder=tmp_path)
