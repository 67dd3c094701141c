"""Pairs of texts: how they are read and stored, and that no batch of a training parts one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import datasets
import pandas
import pytest
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoTokenizer

import minialbert.data.prepare as prepare_module
from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.prepare import make_windows, prepare
from minialbert.data.window_store import WindowDataset, WindowsManifest, data_identity
from minialbert.errors import UserError

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer"
# The third question stands in several pairs, and one text is longer than a window.
PAIRS = [
    (f"the cat sat {'on a mat ' * (min(number, 3) % 4)}", f"a dog ran {'and ran ' * (number % 17)}")
    for number in range(45)
]
FLAT = [text for pair in PAIRS for text in pair]
OPTIONS = {"window_length": 12, "overlap": 4, "held_out_fraction": 0, "progress": False, "num_workers": 1}
ROWS = [{"q": one, "number": number, "p": other} for number, (one, other) in enumerate(PAIRS)]
FIELDS = {"text_field": "q", "pair_field": "p"}


def stored(corpus, folder, **options):
    make_windows(corpus, TOKENIZER, folder, **{**OPTIONS, **options})
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def refused(corpus, folder, **options):
    with pytest.raises(UserError) as caught:
        make_windows(corpus, TOKENIZER, folder, **{**OPTIONS, **FIELDS, **options})
    assert "\n" not in str(caught.value) and not list(folder.glob("*.bin"))
    return str(caught.value)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """What the same texts are as single ones, cut to a window each."""
    return stored(FLAT, tmp_path_factory.mktemp("single") / "w", truncate=True)


def written(name):
    def write(folder):
        path, frame = folder / name, pandas.DataFrame(ROWS)
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        elif path.suffix == ".jsonl":
            path.write_text("\n" + "\n".join(map(json.dumps, ROWS)))
        else:
            frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
        return path

    return write


KINDS = {
    "tuples": lambda _: list(PAIRS),
    "iterator of tuples": lambda _: iter(PAIRS),
    "dictionaries": lambda _: ROWS,
    "data set": lambda _: datasets.Dataset.from_list(ROWS),
    "frame": lambda _: pandas.DataFrame(ROWS),
    **{name: written(name) for name in ("a.jsonl", "a.csv", "a.tsv", "a.parquet")},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_texts_of_a_row_become_neighbours(kind, single, tmp_path):
    assert stored(KINDS[kind](tmp_path), tmp_path / "w", **FIELDS) == single
    windows = WindowDataset(tmp_path / "w")
    assert (len(windows), windows.texts_per_row) == (90, 2) and windows.manifests[0].options.truncate


@pytest.mark.parametrize("fraction", [0.3, 0.01])
def test_pairs_are_held_out_whole(fraction, tmp_path):
    rows = [(f"{'a ' * (n % 5)}cat {n}", f"{'a ' * (n % 5)}dog {n}") for n in range(60)]
    stored(rows, tmp_path, **FIELDS, held_out_fraction=fraction)
    kept, held_out = (WindowDataset(tmp_path, split) for split in ("train", "held_out"))
    assert len(kept) + len(held_out) == 120 and len(held_out) >= 2
    for windows in (kept, held_out):  # lengths say which row a text is of, but for one of five
        lengths = [len(windows[index]["input_ids"]) for index in range(len(windows))]
        assert lengths[::2] == lengths[1::2]


@pytest.mark.parametrize("seed", range(4))
def test_one_of_the_first_two_pairs_is_held_out(seed, tmp_path):
    stored(PAIRS, tmp_path, **FIELDS, held_out_fraction=1e-9, seed=seed)
    assert WindowsManifest.load(tmp_path).splits["held_out"].windows == 2
    tokenizer, held_out = AutoTokenizer.from_pretrained(TOKENIZER), WindowDataset(tmp_path, "held_out")
    both = [tokenizer(list(pair), max_length=12, truncation=True)["input_ids"] for pair in PAIRS[:2]]
    assert [held_out[index]["input_ids"].tolist() for index in range(2)] in both


def test_a_row_without_one_of_its_texts_is_left_out_and_counted(single, tmp_path, caplog):
    caplog.set_level("INFO")
    gaps = [{"q": "a dog", "p": None}, {"q": " ", "p": "a cat"}, {"q": "\x00", "p": "a cat"}]
    assert stored([gaps[0], *ROWS[:9], *gaps[1:], *ROWS[9:]], tmp_path, **FIELDS) == single
    assert WindowsManifest.load(tmp_path).skipped_documents == 6
    assert "6 skipped, empty or without a token (with the text that they belong to)" in caplog.text


def test_pairs_that_cannot_be_read(tmp_path):
    (tmp_path / "a.txt").write_text("one text\n\nanother")
    message = refused([tmp_path / "a.txt", written("a.csv")(tmp_path)], tmp_path / "w")
    assert message == (
        "--pair-column 'p': a.txt has no columns: pairs are read from jsonl, csv, tsv and parquet"
    )
    for kind, end in {
        "dictionaries": "the fields are: q, number, p (pair_field)",
        "a.jsonl": "the fields are: q, number, p (--pair-column)",
        "a.csv": "the columns are: q, number, p (--pair-column)",
        "a.parquet": "the columns are: q, number, p (--pair-column)",
    }.items():
        message = refused(KINDS[kind](tmp_path), tmp_path / "w", pair_field="passage")
        assert " 'passage'; " in message and message.endswith(end)
    assert "cannot be both texts of a pair" in refused(ROWS, tmp_path / "w", pair_field="q")
    assert "expected two texts in a tuple, or a dictionary with the fields 'q' and 'p', found str" in refused(
        FLAT, tmp_path / "w"
    )
    with pytest.raises(UserError, match="or both texts of a pair with pair_field='pair'"):
        prepare(PAIRS, TOKENIZER, tmp_path / "w")


def test_a_call_that_was_killed_goes_on_at_a_pair(single, tmp_path, monkeypatch):
    save = prepare_module._save_progress
    saves = []

    def killed(folder, plan, state):
        save(folder, plan, state)
        saves.append(state.documents)
        if state.documents:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(prepare_module, "BATCHES_PER_SAVE", 2)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_save_progress", killed)
        with pytest.raises(KeyboardInterrupt):
            stored(PAIRS, tmp_path, **FIELDS)
    assert saves == [0, 16]  # two batches of 7 texts and the one that belongs to the last
    assert stored(PAIRS, tmp_path, **FIELDS) == single


def loader(folder, seed, *, rank=0, processes=1, micro_batch=6, samples=360):
    """What the Trainer makes of its data set on one process of several."""
    data = ShuffledWindows(WindowDataset(folder), samples, seed)
    masks = MaskedLanguageModelCollator(AutoTokenizer.from_pretrained(TOKENIZER))
    batches = DataLoader(
        data, batch_size=micro_batch, sampler=SequentialSampler(data), collate_fn=masks
    )  # fmt: skip
    return prepare_data_loader(
        batches, num_processes=processes, process_index=rank, put_on_device=False, rng_types=[]
    )


def ids(batches):
    return [batch["window_ids"].tolist() for batch in batches]


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("seed", [1, 42])
def test_no_micro_batch_parts_a_pair(processes, seed, tmp_path):
    stored(PAIRS, tmp_path, **FIELDS)
    # 90 windows, four epochs: batches of 4 go over the end of one.
    shares = [
        ids(loader(tmp_path, seed, rank=rank, processes=processes, micro_batch=4))
        for rank in range(processes)
    ]
    for batch in sum(shares, []):
        assert len(batch) == 4 and all(window ^ 1 in batch for window in batch)
    order = [window for step in zip(*shares, strict=True) for batch in step for window in batch]
    epochs = [order[start : start + 90] for start in range(0, 360, 90)]
    assert all(sorted(epoch) == list(range(90)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4 and epochs[0] != list(range(90))


def test_a_resumed_run_reads_the_same_pairs(tmp_path):
    stored(PAIRS, tmp_path, **FIELDS)
    whole = ids(loader(tmp_path, 3))
    assert ids(skip_first_batches(loader(tmp_path, 3), 17)) == whole[17:]
    assert ids(loader(tmp_path, 4)) != whole


def test_folders_without_pairs_are_what_they_were(tmp_path):
    """A manifest of a version before pairs: the same order and the same identity."""
    stored(FLAT, tmp_path / "w", truncate=True)
    manifest = tmp_path / "w" / "manifest.json"
    said, order = json.loads(manifest.read_text()), ids(loader(tmp_path / "w", 1))
    identity = data_identity(WindowDataset(tmp_path / "w"))
    assert said["options"].pop("pair_field") is None
    manifest.write_text(json.dumps(said))
    assert ids(loader(tmp_path / "w", 1)) == order
    assert data_identity(WindowDataset(tmp_path / "w")) == identity
    for record, names in ((said, ("versions", "files")), (said["sources"][0], ("sha256",))):
        for name in names:
            del record[name]
    known = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    assert identity["folders"][0]["fingerprint"] == known


def test_folders_with_and_without_pairs_do_not_mix(tmp_path):
    stored(FLAT, tmp_path / "single")
    stored(PAIRS, tmp_path / "pairs", **FIELDS)
    assert len(WindowDataset([tmp_path / "pairs"] * 1)) == 90
    with pytest.raises(UserError, match="one alone holds pairs of texts: prepare both with pair_field"):
        WindowDataset([tmp_path / "pairs", tmp_path / "single"])


def test_half_a_pair_is_damage(tmp_path):
    stored(PAIRS, tmp_path, **FIELDS)
    values = json.loads((tmp_path / "manifest.json").read_text())
    values["splits"]["train"]["windows"] = 89
    with pytest.raises(UserError, match=r"is damaged \(splits: half of a pair\)"):
        WindowsManifest.from_dict(values)
