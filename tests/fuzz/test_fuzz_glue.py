"""Whatever a GLUE folder holds, it is a task with known labels, or refused in one line; submissions likewise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hostile import NAMES, VALUES, hunt, mutated, tiers, values
from hypothesis import strategies as st

from minialbert.data.examples import Task, TextExample, first_rows
from minialbert.data.glue import GLUE_TASKS, GlueTask, load_glue, write_submission


def check(task: Task) -> None:
    known = GLUE_TASKS[task.name]
    assert task.labels == known.labels
    assert {"train", "validation"} <= set(task.splits)
    for split, examples in task.splits.items():
        assert examples
        for example in examples:
            assert isinstance(example, TextExample)
            assert example.text.strip() or known.known_defects
            assert (example.pair is None) == (len(known.columns) == 1)
            if split.startswith(("test", "diagnostic")):
                assert example.label is None
            elif known.labels:
                assert example.label in known.labels
            else:
                assert isinstance(example.label, float) and 0 <= example.label <= 5
    assert all(note.isprintable() for note in task.notes)


def official(task: GlueTask, *, labelled: bool) -> bytes:
    """Three rows as the official file of a task has them."""
    header = ["index", *task.columns, task.label_column] if labelled else ["index", *task.columns]
    if labelled and task.header:
        header = list(task.header)
    cells = dict.fromkeys(header, "a text")
    rows = [] if labelled and task.header else ["\t".join(header)]
    for number, label in enumerate(list(task.spellings) or ["0.0", "2.5", "5.0"]):
        rows.append(
            "\t".join({**cells, "index": str(number), task.label_column: label}[name] for name in header)
        )
    return "\n".join(rows).encode() + b"\n"


@tiers
def test_files(examples: int, tmp_path: Path) -> None:
    def attack(hostile: tuple[GlueTask, str, bytes, int | None]) -> None:
        known, split, content, limit = hostile
        folder = tmp_path / known.folder
        folder.mkdir(exist_ok=True)
        for name, (file, *_) in known.files.items():
            labelled = not name.startswith("test")
            (folder / file).write_bytes(content if name == split else official(known, labelled=labelled))
        check(first_rows(load_glue(known.name, tmp_path), limit))

    def inputs(known: GlueTask) -> st.SearchStrategy[Any]:
        samples = [official(known, labelled=labelled) for labelled in (True, True, False)]
        limits = st.sampled_from([None, None, 1, 0, -3])
        return st.tuples(
            st.just(known), st.sampled_from(sorted(known.files)), mutated(samples, most_steps=2), limits
        )

    hunt(
        "GLUE files",
        examples,
        st.sampled_from(list(GLUE_TASKS.values())).flatmap(inputs),
        attack,
        folder=tmp_path,
    )


@tiers
def test_rows_of_the_hub(examples: int) -> None:
    def attack(hostile: tuple[str, dict[str, list[dict[str, Any]]]]) -> None:
        check(load_glue(*hostile))

    def inputs(known: GlueTask) -> st.SearchStrategy[Any]:
        columns = known.hub_columns or known.columns
        cell = st.one_of(st.just("a text"), st.just("a text"), values())
        label = st.one_of(st.sampled_from([0, 1, 0.5]), st.sampled_from([0, 1]), values())
        row = st.fixed_dictionaries(
            {**dict.fromkeys(columns, cell), "label": label}, optional={"idx": values()}
        )
        rows = st.lists(row, max_size=2)
        splits = {"train": rows, "validation": rows}
        return st.tuples(
            st.just(known.name), st.fixed_dictionaries(splits, optional={"test": rows, "x": rows})
        )

    hunt("GLUE hub rows", examples, st.sampled_from(list(GLUE_TASKS.values())).flatmap(inputs), attack)


@tiers
def test_names(examples: int, tmp_path: Path) -> None:
    (tmp_path / "RTE").mkdir()
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / "RTE" / file).write_bytes(official(GLUE_TASKS["rte"], labelled=True))

    def attack(hostile: tuple[str, str]) -> None:
        name, data = hostile
        check(load_glue(name, tmp_path if data == "here" else data if data != "hub" else "x"))

    names = st.one_of(st.sampled_from(["rte", "RTE", "sst-2"]), NAMES)
    hunt("GLUE names", examples, st.tuples(names, st.one_of(st.just("here"), NAMES)), attack, folder=tmp_path)


@tiers
def test_submissions(examples: int, tmp_path: Path) -> None:
    """What is refused leaves nothing behind; what is written has two columns and the rows that were given."""

    def attack(hostile: tuple[str, str, list[str | None], list[Any]]) -> None:
        for path in tmp_path.iterdir():
            path.unlink()
        task, split, ids, predictions = hostile
        try:
            path = write_submission(task, split, ids, predictions, tmp_path)
        except ValueError:
            assert list(tmp_path.iterdir()) == []
            raise
        assert list(tmp_path.iterdir()) == [path]
        rows = [line.split("\t") for line in path.read_bytes().decode("utf-8").split("\n")[1:-1]]
        assert len(rows) == len(predictions) and all(len(row) == 2 for row in rows)

    label = st.sampled_from([*GLUE_TASKS["mnli"].labels, "not_entailment", "acceptable", 0.0, 2, 5.0])
    hostile_prediction = st.sampled_from([value for value in VALUES if isinstance(value, (str, int, float))])
    one = st.one_of(label, label, label, hostile_prediction)
    row_id = st.one_of(st.integers(0, 99).map(str), st.integers(0, 99).map(str), st.none(), NAMES)
    inputs = st.tuples(
        st.one_of(st.sampled_from(["mnli", "stsb", "rte", "wnli"]), NAMES),
        st.one_of(st.just("test"), st.just("test"), st.just("diagnostic"), NAMES),
        st.one_of(st.lists(row_id, max_size=2), st.just([None]), st.just(["7"])),
        st.one_of(st.lists(one, min_size=1, max_size=2), st.lists(label, min_size=1, max_size=1)),
    )
    hunt("GLUE submissions", examples, inputs, attack, folder=tmp_path)
