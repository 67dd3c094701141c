import dataclasses
import errno
import hashlib
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from minialbert_runtime.encoding import encode_documents, split_at_whitespace
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

import minialbert.data.prepare as windows_module
from minialbert.data import tokenizers, window_store
from minialbert.data.corpora import find_sources, read_documents
from minialbert.data.prepare import make_windows
from minialbert.data.tokenizers import (
    load_tokenizer,
    serialized_backend,
    special_affixes,
    tokenizer_fingerprint,
)
from minialbert.data.window_store import WindowDataset, WindowsManifest, check_tokenizer
from minialbert.errors import UserError
from minialbert.runs.files import sole_user

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer"
ROOT = Path(__file__).parents[2]
SMALL = {"window_length": 12, "overlap": 4, "held_out_fraction": 0.1, "progress": False}
WORDS = [
    "the",
    "small",
    "king",
    "was",
    "in",
    "a",
    "large",
    "city",
    "and",
    "the",
    "river",
    "had",
    "one",
    "house",
    "of",
    "words",
    "with",
    "water",
]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


def documents(count, seed=0, longest=200):
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("\n\n".join(documents(120)))
    rows = [json.dumps({"text": text}) for text in [*documents(60, seed=1), " "]]
    (folder / "b.jsonl").write_text("\n".join(rows))
    (folder / "c.txt").write_text("\n\n".join(documents(40, seed=2)))
    return folder


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(windows_module, "BATCH_CHARACTERS", 3000)
    monkeypatch.setattr(windows_module, "BATCHES_PER_SAVE", 2)


def digest(folder):
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def refused(*arguments, **options):
    with pytest.raises(UserError) as caught:
        make_windows(*arguments, **{**SMALL, **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Windows


def test_windows_are_those_of_the_tokenizer(tmp_path, tokenizer):
    texts = documents(30)
    (tmp_path / "a.txt").write_text("\n\n".join(texts))
    options = {**SMALL, "held_out_fraction": 0, "max_windows_per_document": None}
    manifest = make_windows([tmp_path / "a.txt"], tokenizer, tmp_path / "out", **options)
    expected = tokenizer(texts, max_length=12, stride=4, truncation=True, return_overflowing_tokens=True)
    dataset = WindowDataset(tmp_path / "out")
    assert [dataset[i]["input_ids"].tolist() for i in range(len(dataset))] == expected["input_ids"]
    assert [dataset[i]["window_id"] for i in range(len(dataset))] == list(range(len(dataset)))
    assert dataset[0]["input_ids"].dtype == np.int64
    counts = manifest.splits["train"]
    assert counts.documents == 30 and counts.windows == len(dataset)
    # Every token is stored once, though most are in several windows.
    assert counts.tokens == sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in texts)
    assert counts.token_slots > 1.3 * counts.tokens
    assert (tmp_path / "out/train.tokens.bin").stat().st_size == 2 * counts.tokens


def test_the_windows_of_the_paper_are_126_tokens_apart(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("the river " * 254)  # 508 tokens
    make_windows([tmp_path / "a.txt"], tokenizer, tmp_path / "out", held_out_fraction=0, progress=False)
    rows = np.fromfile(
        tmp_path / "out/train.windows.bin", WindowDataset(tmp_path / "out").manifests[0].types[1]
    )
    assert rows.tolist() == [(0, 254), (126, 254), (252, 254), (378, 130)]


def test_long_documents_give_a_random_choice(tmp_path, tokenizer):
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, 900)) for i in range(5)]
    (tmp_path / "a.txt").write_text("\n\n".join(texts))

    def drawn(name, **options):
        options = {**SMALL, "held_out_fraction": 0, **options}
        manifest = make_windows([tmp_path / "a.txt"], tokenizer, tmp_path / name, **options)
        dataset = WindowDataset(tmp_path / name)
        return manifest, [tuple(dataset[i]["input_ids"].tolist()) for i in range(len(dataset))]

    manifest, chosen = drawn("ten")
    _, every = drawn("all", max_windows_per_document=None)
    assert len(chosen) == 50 and set(chosen) <= set(every)
    positions = [every.index(window) for window in chosen]
    assert positions == sorted(positions) and positions[-1] - positions[-10] > 20
    # No id is stored that no window covers.
    assert manifest.splits["train"].tokens <= manifest.splits["train"].token_slots == 500
    assert drawn("again")[1] == chosen
    assert drawn("seed", seed=1)[1] != chosen
    first = drawn("first", truncate=True, overlap=128)[1]
    assert first == [tuple(tokenizer(text, truncation=True, max_length=12)["input_ids"]) for text in texts]


def test_held_out_documents_are_a_hash_of_seed_and_index():
    options = windows_module.WindowOptions(12, 4, 10, False, 0.01, 42, "blank-line", "text", 100)
    held = [window_store.is_held_out(i, options) for i in range(20_000)]
    assert 150 < sum(held) < 250
    assert sum(held[:2]) == 1  # so neither split of a small corpus is empty
    other = dataclasses.replace(options, seed=1)
    assert held != [window_store.is_held_out(i, other) for i in range(20_000)]
    more = dataclasses.replace(options, held_out_fraction=0.02)
    assert all(window_store.is_held_out(i, more) for i in range(2, 20_000) if held[i])
    none = dataclasses.replace(options, held_out_fraction=0.0)
    assert not any(window_store.is_held_out(i, none) for i in range(100))


def test_splits_share_no_document(tmp_path, corpus, tokenizer):
    manifest = make_windows([corpus], tokenizer, tmp_path / "out", **SMALL)
    assert {s: manifest.splits[s].documents for s in manifest.splits} == {"train": 200, "held_out": 20}
    assert manifest.skipped_documents == 1
    assert [source.name for source in manifest.sources] == ["a.txt", "b.jsonl", "c.txt"]
    assert manifest == WindowsManifest.load(tmp_path / "out")
    assert 2 < manifest.bytes_per_token < 4
    assert str(tmp_path) not in (tmp_path / "out/manifest.json").read_text()
    check_tokenizer(manifest.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "out/tokenizer"))


def test_two_documents_are_enough_for_two_splits(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("one house\n\nthe river")
    manifest = make_windows([tmp_path / "a.txt"], tokenizer, tmp_path / "out", progress=False)
    assert [counts.documents for counts in manifest.splits.values()] == [1, 1]


def test_one_document_cannot_be_split(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("one house")
    message = refused([tmp_path / "a.txt"], tokenizer, tmp_path / "out")
    assert "1 document(s)" in message and "--held-out-fraction 0" in message and "--documents line" in message
    # The mended call goes through without --overwrite.
    make_windows([tmp_path / "a.txt"], tokenizer, tmp_path / "out", **{**SMALL, "held_out_fraction": 0})
    assert len(WindowDataset(tmp_path / "out")) == 1 and len(WindowDataset(tmp_path / "out", "held_out")) == 0


# Tokenizers


def byte_level_tokenizer(template="<s> $A </s>", **options):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(documents(50), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, i) for i, token in enumerate(special)]
    )
    backend.enable_truncation(16)
    backend.enable_padding(length=16)
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **named)


def test_pieces_give_the_tokens_of_the_whole(tokenizer):
    text = "".join(f"{t}{gap}" for t in documents(20) for gap in (" ", "  ", "\n", " \t "))
    for tried in (tokenizer, byte_level_tokenizer()):
        backend = Tokenizer.from_str(serialized_backend(tried))
        whole = backend.encode(text, add_special_tokens=False).ids
        pieces = list(split_at_whitespace(text, 200))
        assert "".join(pieces) == text and max(map(len, pieces)) <= 200 and len(pieces) > 10
        assert [i for piece in pieces for i in backend.encode(piece, add_special_tokens=False).ids] == whole


def test_pieces_of_text_without_spaces():
    assert list(split_at_whitespace("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]
    assert list(split_at_whitespace("ab" + " " * 20, 10)) == ["ab", " " * 10, " " * 10]
    assert list(split_at_whitespace("")) == []


def test_a_corpus_cannot_spell_special_tokens(tokenizer):
    backend = Tokenizer.from_str(serialized_backend(tokenizer))
    ids = encode_documents(backend, ["the [MASK] and [SEP]", "", "the"])
    assert not {0, 2, 3, 4} & set(ids[0].tolist()) and len(ids[1]) == 0 and len(ids[2]) == 1


def test_byte_level_tokenizer_and_its_template(tmp_path, corpus):
    tokenizer = byte_level_tokenizer("<s> $A </s> </s>")
    assert special_affixes(tokenizer) == ([1], [2, 2])
    make_windows([corpus], tokenizer, tmp_path / "out", **SMALL)
    dataset = WindowDataset(tmp_path / "out")
    ids = [dataset[i]["input_ids"].tolist() for i in range(len(dataset))]
    assert all(w[0] == 1 and w[-2:] == [2, 2] and len(w) <= 12 for w in ids)
    assert max(map(len, ids)) == 12 and 0 not in ids[0]  # the tokenizer's own truncation and padding are off


def test_large_vocabularies_take_four_bytes(tmp_path, corpus):
    vocab = {**AutoTokenizer.from_pretrained(TOKENIZER).get_vocab()}
    vocab |= {f"extra{i}": len(vocab) + i for i in range(70_000)}
    tokenizer = BertTokenizer(vocab=vocab)
    (tmp_path / "a.txt").write_text("the river extra69999")
    options = {**SMALL, "held_out_fraction": 0}
    manifest = make_windows([tmp_path / "a.txt"], tokenizer, tmp_path / "out", **options)
    assert manifest.types[0] == np.uint32
    assert WindowDataset(tmp_path / "out")[0]["input_ids"][-2] == len(vocab) - 1


def test_fingerprints(tokenizer):
    same = AutoTokenizer.from_pretrained(TOKENIZER)
    same.padding_side = "left"
    assert tokenizer_fingerprint(same) == tokenizer_fingerprint(tokenizer)
    cased = BertTokenizer(vocab=tokenizer.get_vocab(), do_lower_case=False)
    added = AutoTokenizer.from_pretrained(TOKENIZER)
    added.add_tokens(["river-bank"])
    other = [tokenizer_fingerprint(t) for t in (cased, added, byte_level_tokenizer())]
    assert len({*other, tokenizer_fingerprint(tokenizer)}) == 4


def test_another_tokenizer_is_refused(tmp_path, corpus, tokenizer):
    manifest = make_windows([corpus], TOKENIZER, tmp_path / "out", **SMALL)
    check_tokenizer(manifest.tokenizer, tokenizer)
    with pytest.raises(UserError, match=r"tokenizer tiny-tokenizer \(135 .*not with TokenizersBackend"):
        check_tokenizer(manifest.tokenizer, byte_level_tokenizer())


def test_a_cased_vocabulary_alone_is_not_lower_cased(tmp_path, caplog):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcnorpti", *(f"##{c}" for c in "ABCRaeintt1")]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys([*words, "B", "P", "T", "Patient"])))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.tokenize("Patient BRCA1") == ["Patient", "B", "##R", "##C", "##A", "##1"]
    assert (
        "keeps upper case: its vocabulary has it, and no tokenizer_config.json says do_lower_case"
        in caplog.text
    )
    # What it leaves says so, and is read without a word.
    caplog.clear()
    tokenizer.save_pretrained(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").tokenize("Patient") == ["Patient"]
    assert caplog.text == ""
    # Beside a vocabulary, what tokenizer.json says counts too, which Transformers does not read.
    shutil.copy(tmp_path / "saved" / "tokenizer.json", tmp_path)
    assert load_tokenizer(tmp_path).tokenize("Patient") == ["Patient"]
    (tmp_path / "tokenizer.json").write_text(
        (tmp_path / "saved" / "tokenizer.json").read_text().replace('"lowercase": false', '"lowercase": true')
    )
    assert load_tokenizer(tmp_path).tokenize("Pat") == ["p", "##a", "##t"]
    (tmp_path / "tokenizer.json").unlink()
    caplog.clear()
    # Settings count, and are told where they look wrong.
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert load_tokenizer(tmp_path).tokenize("Pat") == ["p", "##a", "##t"]
    assert "is set to lower-case every text, but 35 % of its vocabulary have upper case" in caplog.text
    caplog.clear()
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.txt").write_text("\n".join(words[:14]))
    assert load_tokenizer(tmp_path).tokenize("A") == ["a"] and caplog.text == ""


def test_slow_and_missing_tokenizers(tmp_path):
    class Slow:
        is_fast, name_or_path = False, "some/slow"

    with pytest.raises(UserError, match=r"slow \(Slow\) has no fast backend"):
        load_tokenizer(Slow())
    for nowhere in (tmp_path / "nowhere", "nowhere/"):
        with pytest.raises(
            UserError, match="no tokenizer could be loaded from .*nowhere/?: there is no such"
        ):
            load_tokenizer(nowhere)


# Processes, restarts


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, corpus, small_batches):
    for workers in (1, 2):
        make_windows([corpus], TOKENIZER, tmp_path / str(workers), num_workers=workers, **SMALL)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    assert len(digest(tmp_path / "1")) == 7


def test_an_interrupted_call_goes_on(tmp_path, corpus, small_batches, monkeypatch):
    whole = make_windows([corpus], TOKENIZER, tmp_path / "whole", **SMALL)
    for stop_after in (1, 28):
        out = tmp_path / f"out{stop_after}"
        write, calls = window_store.SplitWriter.write, []

        def interrupted(self, write=write, calls=calls, stop_after=stop_after):
            calls.append(1)
            write(self)
            if len(calls) > 2 * stop_after:
                raise KeyboardInterrupt

        monkeypatch.setattr(window_store.SplitWriter, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_windows([corpus], TOKENIZER, out, **SMALL)
        monkeypatch.setattr(window_store.SplitWriter, "write", write)
        saved = json.loads((out / "progress.json").read_text())["state"]["documents"]
        assert saved < 220 and (saved > 0 or stop_after == 1)
        with pytest.raises(UserError, match="interrupted: run it again"):
            WindowDataset(out)
        sources = [source.path.name for source in find_sources([corpus])]
        first = json.loads((out / "progress.json").read_text())["state"]["source"]
        read = []

        def recorded(source, read=read, **options):
            read.append(source.path.name)
            return read_documents(source, **options)

        monkeypatch.setattr(windows_module, "read_documents", recorded)
        assert make_windows([corpus], TOKENIZER, out, **SMALL) == whole
        assert digest(out) == digest(tmp_path / "whole")
        assert read == sources[first:]  # sources that are finished are not read again
        assert (first > 0) == (stop_after > 1)
        monkeypatch.undo()
        monkeypatch.setattr(windows_module, "BATCH_CHARACTERS", 3000)
        monkeypatch.setattr(windows_module, "BATCHES_PER_SAVE", 2)


SLOW_SCRIPT = """
import sys, time
import minialbert.data.prepare as windows

windows.BATCH_CHARACTERS, windows.BATCHES_PER_SAVE = 3000, 1
save = windows._save_progress
windows._save_progress = lambda *a: (save(*a), time.sleep(0.05))
windows.make_windows([sys.argv[1]], sys.argv[2], sys.argv[3], window_length=12, overlap=4,
                held_out_fraction=0.1, progress=False)
"""


def test_a_killed_process_leaves_what_the_next_needs(tmp_path, corpus):
    make_windows([corpus], TOKENIZER, tmp_path / "whole", **SMALL)
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW_SCRIPT, str(corpus), str(TOKENIZER), str(out)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = out / "progress.json"
        if path.exists() and json.loads(path.read_text())["state"]["documents"] > 20:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "manifest.json").exists()
    with (out / "train.tokens.bin").open("ab") as file:
        file.write(b"half a batch")
    make_windows([corpus], TOKENIZER, out, **SMALL)
    assert digest(out) == digest(tmp_path / "whole")


def test_a_full_disk_is_told_in_one_line(tmp_path, corpus):
    resource = pytest.importorskip("resource")
    out = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A write past this size fails with EFBIG, in the middle of a block, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (16_001, hard))
    try:
        message = refused([corpus], TOKENIZER, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (
        "cannot be written (File too large): free some space" in message
        and "goes on where it stopped" in message
    )
    make_windows([corpus], TOKENIZER, tmp_path / "whole", **SMALL)
    make_windows([corpus], TOKENIZER, out, **SMALL)
    assert digest(out) == digest(tmp_path / "whole")


def test_a_worker_that_dies(tmp_path, corpus, small_batches, monkeypatch):
    monkeypatch.setattr(tokenizers, "_WORKER", "dies_at_once")
    monkeypatch.syspath_prepend(tmp_path)  # the worker looks for modules where this process does
    (tmp_path / "dies_at_once.py").write_text("import sys; sys.stdin.buffer.read(10)")
    assert "worker process of prepare died" in refused([corpus], TOKENIZER, tmp_path / "out", num_workers=2)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "(No space left on device): free some space"),
        (
            Exception("No space left on device (os error 28)"),
            "(No space left on device): free some space",
        ),  # as the backend tells it
        (PermissionError(errno.EACCES, "Permission denied"), "out cannot be written (Permission denied)"),
    ],
)
def test_the_tokenizer_cannot_be_saved(tmp_path, corpus, tokenizer, monkeypatch, raised, expected):
    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr(type(tokenizer), "save_pretrained", fail)
    assert expected in refused([corpus], tokenizer, tmp_path / "out")


def test_output_that_cannot_be_a_folder(tmp_path, corpus):
    (tmp_path / "file").write_text("x")
    assert "out cannot be written (" in refused([corpus], TOKENIZER, tmp_path / "file/out")


def test_two_calls_at_once(tmp_path, corpus):
    (tmp_path / "out").mkdir()
    with sole_user(tmp_path / "out", "prepare"):
        assert "another prepare is running in" in refused([corpus], TOKENIZER, tmp_path / "out")


def test_what_was_understood_of_a_corpus_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = "".join(f'{i},"{text}"\n' for i, text in enumerate(documents(20)))
    (tmp_path / "notes.csv").write_text(f"id,note\n{rows}21,\n")
    (tmp_path / "a.txt").write_text("\n\n".join(documents(10, seed=1)))
    manifest = make_windows(tmp_path, TOKENIZER, tmp_path / "out", **SMALL)
    assert [(source.name, source.kind) for source in manifest.sources] == [
        ("a.txt", "text"),
        ("notes.csv", "csv"),
    ]
    assert any(line.startswith("corpus: 1 text, 1 csv or tsv, ") for line in caplog.messages)
    train, held_out = (manifest.splits[split].documents for split in ("train", "held_out"))
    assert train + held_out == 30
    told = f"documents: {train} train, {held_out} held out; 1 skipped, empty or without a token"
    assert told in caplog.messages


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "a document gives at most 2 (--max-windows-per-document 0 takes all; if each line is a text, give "
             "--documents line)"),
        ({"truncate": True}, "a document gives only its first (--truncate)"),
        ({"separator": "line"}, None),
        ({"max_windows_per_document": None}, None),
    ],
)  # fmt: skip
def test_tokens_in_no_window_are_said_with_what_takes_them(options, why, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for name in ("a.txt", "b.txt"):  # a text on each line, as people have them
        (tmp_path / name).write_text("the king was small\n" * 40)
    chosen = SMALL | {"max_windows_per_document": 2, "held_out_fraction": 0.5} | options
    counts = make_windows(
        [tmp_path / "a.txt", tmp_path / "b.txt"], TOKENIZER, tmp_path / "out", **chosen
    ).splits
    told = [line for line in caplog.messages if "in no window" in line]
    left_out = 1 - sum(count.tokens for count in counts.values()) / 320
    assert told == ([] if why is None else [f"{left_out:.1%} of the tokens are in no window: {why}"])
    assert (left_out > 0.5) == (why is not None)


# What is in the folder already


def test_a_finished_folder_is_left_as_it_is(tmp_path, corpus, monkeypatch):
    manifest = make_windows([corpus], TOKENIZER, tmp_path / "out", **SMALL)
    before = digest(tmp_path / "out")
    monkeypatch.setattr(windows_module, "read_documents", None)
    assert make_windows([corpus], TOKENIZER, tmp_path / "out", num_workers=2, **SMALL) == manifest
    assert digest(tmp_path / "out") == before


@pytest.mark.parametrize(
    "name", ["train.tokens.bin", "progress.json", "tokenizer", "tokenizer/tokenizer.json"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_link_leads_what_is_written_or_removed_outside(name, overwrite, tmp_path, corpus):
    folder, outside = tmp_path / "windows", tmp_path / "outside"
    make_windows([corpus], TOKENIZER, folder, window_length=32, overlap=8)
    outside.mkdir()
    (outside / "tokenizer.json").write_text("mine")
    (folder / "manifest.json").rename(folder / "progress.json")
    target = outside if name == "tokenizer" else outside / "tokenizer.json"
    shutil.rmtree(folder / name) if name == "tokenizer" else (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a link"):
        make_windows([corpus], TOKENIZER, folder, window_length=32, overlap=8, overwrite=overwrite)
    assert (outside / "tokenizer.json").read_text() == "mine"


def test_other_options_need_overwrite(tmp_path, corpus):
    out = tmp_path / "out"
    make_windows([corpus], TOKENIZER, out, **SMALL)
    message = refused([corpus], TOKENIZER, out, overlap=5, seed=1)
    assert "overlap 4, now 5; seed 42, now 1" in message and "--overwrite" in message
    assert "corpus files (b.jsonl, c.txt)" in refused([corpus / "a.txt"], TOKENIZER, out)
    message = refused([corpus], byte_level_tokenizer(), out)
    assert re.search(r"tokenizer tiny-tokenizer \(\w{12}\), now TokenizersBackend \(\w{12}\)", message)
    (out / "notes.md").write_text("mine")
    (out / "tokenizer/notes.md").write_text("mine")
    again = make_windows([corpus], TOKENIZER, out, overwrite=True, **{**SMALL, "overlap": 5})
    assert again.options.overlap == 5
    assert (out / "notes.md").read_text() == (out / "tokenizer/notes.md").read_text() == "mine"


def test_an_unfinished_folder_of_other_options_needs_overwrite(tmp_path, corpus, small_batches, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(windows_module, "_finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_windows([corpus], TOKENIZER, tmp_path / "out", **SMALL)
    assert "overlap 4, now 5" in refused([corpus], TOKENIZER, tmp_path / "out", overlap=5)
    (tmp_path / "out/train.tokens.bin").write_bytes(b"")
    message = refused([corpus], TOKENIZER, tmp_path / "out")
    assert "train.tokens.bin is shorter than progress.json says" in message
    assert (
        make_windows([corpus], TOKENIZER, tmp_path / "out", overwrite=True, **SMALL).splits["train"].windows
    )


def test_a_corpus_edited_to_the_same_size_is_another(tmp_path, corpus, small_batches, monkeypatch, caplog):
    mine, out = shutil.copytree(corpus, tmp_path / "corpus"), tmp_path / "out"

    def edit():
        text = (mine / "c.txt").read_text()
        (mine / "c.txt").write_text(text.swapcase())
        os.utime(mine / "c.txt", (1, 1))

    make_windows([mine], TOKENIZER, out, **SMALL)
    edit()
    assert "other settings (corpus files (c.txt))" in refused([mine], TOKENIZER, out)
    make_windows([mine], TOKENIZER, out, overwrite=True, **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(windows_module, "_finish", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_windows([mine], TOKENIZER, out, overwrite=True, **SMALL)
    edit()
    assert "other settings (corpus files (c.txt))" in refused([mine], TOKENIZER, out)
    edit()
    assert make_windows([mine], TOKENIZER, out, **SMALL).splits["train"].windows
    # A folder of an earlier version knows names and sizes alone, which is said.
    manifest = json.loads((out / "manifest.json").read_text())
    del manifest["files"]
    for source in manifest["sources"]:
        del source["sha256"]
    (out / "manifest.json").write_text(json.dumps(manifest))
    edit()
    assert caplog.text == ""
    make_windows([mine], TOKENIZER, out, **SMALL)
    assert "kept no fingerprint of the corpus" in caplog.text
    (mine / "c.txt").write_text("of another size")
    assert "other settings (corpus files (c.txt))" in refused([mine], TOKENIZER, out)


def test_foreign_folders_are_refused(tmp_path, corpus):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("mine")
    assert "not empty (thesis.tex" in refused([corpus], TOKENIZER, tmp_path / "out")
    make_windows([corpus], TOKENIZER, tmp_path / "out", overwrite=True, **SMALL)
    assert (tmp_path / "out/thesis.tex").read_text() == "mine"
    (tmp_path / "web").mkdir()
    (tmp_path / "web/manifest.json").write_text('{"name": "a web application"}')
    assert "was not written by prepare" in refused([corpus], TOKENIZER, tmp_path / "web", overwrite=True)
    assert "web application" in (tmp_path / "web/manifest.json").read_text()


# Options


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"overlap": 10},
            "overlap must lie in [0, 10) (window_length 12 less 2 special tokens), found 10: give --overlap 5",
        ),
        ({"overlap": -1}, "overlap"),
        ({"window_length": 2}, "give at least 3"),
        ({"max_windows_per_document": 0}, "max_windows_per_document"),
        ({"held_out_fraction": 1.0}, "held_out_fraction"),
        ({"separator": "comma"}, "expected one of blank-line, line, file"),
        ({"max_document_bytes": 0}, "max_document_bytes"),
        ({"num_workers": 0}, "num_workers (--workers)"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range(tmp_path, corpus, options, expected):
    assert expected in refused([corpus], TOKENIZER, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_windows_longer_than_the_model_are_a_warning(tmp_path, corpus, caplog):
    options = {**SMALL, "window_length": 513}
    make_windows([corpus], TOKENIZER, tmp_path / "out", **options)
    assert "longer than the 512 tokens that the tokenizer tiny-tokenizer states" in caplog.text


def test_a_corpus_of_spaces(tmp_path):
    (tmp_path / "a.txt").write_text(" \n\n \n")
    assert "the corpus has no document" in refused([tmp_path], TOKENIZER, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_documents_without_a_token_are_counted(tmp_path):
    (tmp_path / "a.txt").write_text("the river\n\n\u200e\u200f\n\none house\n\nwords")
    manifest = make_windows([tmp_path / "a.txt"], TOKENIZER, tmp_path / "out", **SMALL)
    assert manifest.skipped_documents == 1
    assert sum(counts.documents for counts in manifest.splits.values()) == 3


def test_progress_goes_to_stderr(tmp_path, corpus, capfd):
    make_windows(corpus / "a.txt", TOKENIZER, tmp_path / "one", **{**SMALL, "progress": True})
    out, err = capfd.readouterr()
    assert out == "" and "prepare" in err
    make_windows(corpus / "a.txt", TOKENIZER, tmp_path / "two", **SMALL)
    assert capfd.readouterr() == ("", "")


# Reading


def test_dataset_in_loader_processes(tmp_path, corpus):
    make_windows([corpus], TOKENIZER, tmp_path / "out", **SMALL)
    dataset = WindowDataset(tmp_path / "out")
    first = dataset[3]["input_ids"].tolist()  # the files are mapped before the fork
    assert len(pickle.dumps(dataset)) < 10_000
    assert pickle.loads(pickle.dumps(dataset))[3]["input_ids"].tolist() == first
    loader = DataLoader(dataset, batch_size=None, num_workers=2)
    assert [item["window_id"] for item in loader] == list(range(len(dataset)))
    for index in (-1, len(dataset)):
        with pytest.raises(IndexError):
            dataset[index]
    with pytest.raises(UserError, match="no split 'test'"):
        WindowDataset(tmp_path / "out", "test")


def test_damaged_folders(tmp_path, corpus):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"out does not exist \(run prepare first\)"):
        WindowDataset(out)
    out.mkdir()
    with pytest.raises(UserError, match=r"out: no manifest.json \(run prepare first\)"):
        WindowDataset(out)
    make_windows([corpus], TOKENIZER, out, **SMALL)
    path, manifest = out / "train.tokens.bin", (out / "manifest.json").read_text()
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"train\.tokens\.bin has \d+ bytes, the manifest says"):
        WindowDataset(out)
    path.write_bytes(b"\xff" * len(whole))
    with pytest.raises(UserError, match="window 0 of train is damaged"):
        WindowDataset(out)[0]
    path.unlink()
    with pytest.raises(UserError, match="is missing"):
        WindowDataset(out)
    values = json.loads(manifest)
    wrong_counts = {**values["splits"], "train": {**values["splits"]["train"], "tokens": -1}}
    for changed, expected in [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({**values, "format_version": 99}), "format_version 99"),
        (json.dumps({**values, "splits": {}}), "damaged"),
        (json.dumps({**values, "splits": wrong_counts}), "not a natural number"),
        (json.dumps({**values, "files": {"train": "/etc/passwd"}}), "damaged"),
    ]:
        (out / "manifest.json").write_text(changed)
        with pytest.raises(UserError, match=expected):
            WindowDataset(out)


def test_table_that_points_past_the_tokens(tmp_path, corpus):
    make_windows([corpus], TOKENIZER, tmp_path / "out", **SMALL)
    path = tmp_path / "out/train.windows.bin"
    path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(UserError, match="window 0 of train is damaged"):
        WindowDataset(tmp_path / "out")[0]
