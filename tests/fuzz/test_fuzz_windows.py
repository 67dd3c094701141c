"""Whatever became of a folder of windows, it gives windows of its vocabulary or is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import hunt, mutated, mutated_json, tiers
from hypothesis import strategies as st

from minialbert.data.prepare import make_windows
from minialbert.data.window_store import WindowDataset, WindowsManifest
from minialbert.errors import UserError

TOKENIZER = Path(__file__).parent.parent / "fixtures" / "tiny-tokenizer"
OPTIONS: dict[str, Any] = {"window_length": 16, "overlap": 4, "held_out_fraction": 0.3, "num_workers": 1}
MANIFEST, PROGRESS = "manifest.json", "progress.json"
BINARIES = [f"{split}.{part}.bin" for split in ("train", "held_out") for part in ("tokens", "windows")]

Prepare = Callable[..., Any]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text(
        "\n\n".join(f"the cat sat on the mat {'and a dog ran ' * number}" for number in range(8)) + "\n"
    )
    return path


@pytest.fixture(scope="module")
def again(corpus: Path) -> Prepare:
    """`prepare` on the corpus, with a tokenizer that is loaded once."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)

    def call(folder: Path, **options: Any) -> Any:
        return make_windows([corpus], tokenizer, folder, progress=False, **{**OPTIONS, **options})

    return call


@pytest.fixture(scope="module")
def whole(again: Prepare, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("windows") / "w"
    again(folder)
    return folder


@pytest.fixture(scope="module")
def unfinished(again: Prepare, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as a call that was killed after its last batch leaves it."""
    manifest = json.loads((whole / MANIFEST).read_text())
    folder = tmp_path_factory.mktemp("unfinished") / "w"
    shutil.copytree(whole, folder)
    (folder / MANIFEST).unlink()
    state = {"source": 0, "documents_in_source": 8, "documents": 8, "skipped_before": 0, "empty": 0}
    values = {
        "format": manifest["format"],
        "format_version": manifest["format_version"],
        "plan": {key: manifest[key] for key in ("tokenizer", "options", "sources")},
        "state": {**state, "splits": manifest["splits"]},
    }
    (folder / PROGRESS).write_text(json.dumps(values))
    return folder


def read(folder: Path) -> None:
    manifest = WindowsManifest.load(folder)
    for split in ("train", "held_out"):
        data = WindowDataset(folder, split)  # type: ignore[arg-type]
        vocabulary, length = manifest.tokenizer.vocab_size, manifest.options.window_length
        for index in {0, len(data) // 2, len(data) - 1} if len(data) else ():
            ids = data[index]["input_ids"]
            assert 0 < len(ids) <= length
            assert ids.min() >= 0 and ids.max() < vocabulary


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@tiers
def test_reading(examples: int, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "w"
    shutil.copytree(whole, folder)
    good = {name: (folder / name).read_bytes() for name in (MANIFEST, *BINARIES)}

    def attack(hostile: tuple[str, bytes]) -> None:
        name, content = hostile
        (folder / name).write_bytes(content)
        try:
            read(folder)
        finally:
            (folder / name).write_bytes(good[name])

    manifest = st.tuples(st.just(MANIFEST), mutated_json(json.loads(good[MANIFEST])))
    binary = st.sampled_from(BINARIES).flatmap(lambda name: st.tuples(st.just(name), _same_size(good[name])))
    hunt("windows reading", examples, st.one_of(manifest, binary), attack, folder=tmp_path)


def _same_size(content: bytes) -> st.SearchStrategy[bytes]:
    """Mutations, most of which have as many bytes as before: a file of another size is refused at once."""
    return st.one_of(
        *[mutated([content]).map(lambda raw: (raw + content)[: len(content)])] * 3, mutated([content])
    )


@tiers
def test_preparing_again(
    examples: int, whole: Path, unfinished: Path, again: Prepare, tmp_path: Path
) -> None:
    """A call that is refused changes nothing; one that is not leaves a folder that can be read."""
    folder = tmp_path / "w"

    def attack(hostile: tuple[str, bytes]) -> None:
        name, content = hostile
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole if name == MANIFEST else unfinished, folder)
        (folder / name).write_bytes(content)
        before = contents(folder)
        try:
            again(folder)
        except UserError:
            assert contents(folder).items() >= {key: before[key] for key in BINARIES}.items()
            assert (folder / name).read_bytes() == content
            raise
        read(folder)

    finished = st.tuples(st.just(MANIFEST), mutated_json(json.loads((whole / MANIFEST).read_bytes())))
    progress = st.tuples(st.just(PROGRESS), mutated_json(json.loads((unfinished / PROGRESS).read_bytes())))
    hunt("windows prepared again", examples, st.one_of(finished, progress, progress), attack, folder=tmp_path)


@tiers
def test_a_hostile_corpus(examples: int, again: Prepare, tmp_path: Path) -> None:
    """What is refused leaves no manifest."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    folder, path = tmp_path / "w", tmp_path / "corpus.txt"

    def attack(content: bytes) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        path.write_bytes(content)
        try:
            make_windows([path], tokenizer, folder, progress=False, **OPTIONS)
        except UserError:
            assert not (folder / MANIFEST).exists()
            raise
        read(folder)

    hunt(
        "windows of a corpus",
        examples,
        mutated([b"the cat\n\nsat on\n\nthe mat\n" * 3]),
        attack,
        folder=tmp_path,
    )
