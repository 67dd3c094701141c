"""Windows of several folders as one data set, and what each process of a job reads of them."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoTokenizer, TrainerCallback, TrainingArguments

from minialbert import MiniAlbertForMaskedLM
from minialbert.data.masking import MaskedLanguageModelCollator, ShuffledWindows
from minialbert.data.prepare import make_windows
from minialbert.data.window_store import WindowDataset, data_identity
from minialbert.errors import UserError
from minialbert.method.costs import estimate
from minialbert.method.distill import distill
from minialbert.method.encoders import Teacher
from minialbert.method.objective import DistillationObjective
from minialbert.method.plan import plan_distillation
from minialbert.method.trainer import DistillationTrainer
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.runs.directory import data_differences

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Three folders of different sizes and window lengths; the last holds nothing out."""
    root = tmp_path_factory.mktemp("folders")
    words = ["the", "cat", "sat", "on", "mat", "and", "a", "dog", "ran", "in", "sun", "big", "red", "small"]
    made = []
    for number, (documents, length, held_out) in enumerate([(20, 16, 0.2), (40, 32, 0.2), (10, 24, 0.0)]):
        generator = np.random.default_rng(number)
        texts = [" ".join(generator.choice(words, generator.integers(5, 60))) for _ in range(documents)]
        (root / f"{number}.txt").write_text("\n\n".join(texts))
        folder = root / f"w{number}"
        make_windows(
            root / f"{number}.txt", TOKENIZER, folder, window_length=length, overlap=4,
            held_out_fraction=held_out, num_workers=1, progress=False,
        )  # fmt: skip
        made.append(folder)
    return made


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        WindowDataset(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Several folders


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_windows_of_all_folders_in_order(folders, split):
    together = WindowDataset(folders, split)
    parts = [WindowDataset(folder, split) for folder in folders]
    expected = [part[index]["input_ids"].tolist() for part in parts for index in range(len(part))]
    assert len(together) == len(expected) and (len(parts[2]) == 0) == (split == "held_out")
    assert [together[index]["input_ids"].tolist() for index in range(len(together))] == expected
    assert [together[index]["window_id"] for index in range(len(together))] == list(range(len(expected)))
    assert together.window_length == 32
    assert [source.name for source in together.sources] == ["0.txt", "1.txt", "2.txt"]
    for index in (-1, len(together)):
        with pytest.raises(IndexError):
            together[index]
    copied = pickle.loads(pickle.dumps(together))
    assert copied[len(together) - 1]["input_ids"].tolist() == expected[-1]


def test_one_folder_needs_no_list(folders):
    one, listed = WindowDataset(str(folders[0])), WindowDataset([folders[0]])
    assert len(one) == len(listed) and np.array_equal(one[3]["input_ids"], listed[3]["input_ids"])


def test_folders_are_mixed_in_proportion(folders):
    windows = WindowDataset(folders)
    sizes = [len(WindowDataset(folder)) for folder in folders]
    ends = np.cumsum(sizes)
    samples = ShuffledWindows(windows, len(windows), seed=0)
    origin = np.searchsorted(ends, [samples[i]["window_id"] for i in range(len(windows))], side="right")
    assert np.bincount(origin).tolist() == sizes
    half = np.bincount(origin[: len(origin) // 2], minlength=3)
    # Draws without replacement: the hypergeometric deviation of each folder's count.
    share = np.array(sizes) / sum(sizes)
    deviation = np.sqrt(len(windows) / 4 * share * (1 - share))
    assert (np.abs(half - np.array(sizes) / 2) < 4.5 * deviation).all()


def test_folders_that_do_not_go_together(folders, tmp_path):
    assert "is given twice" in refusal([folders[0], folders[1], folders[0].parent / "." / "w0"])
    (tmp_path / "link").symlink_to(folders[0])
    assert "link is given twice" in refusal([folders[0], tmp_path / "link"])
    assert "at least one" in refusal([])
    assert "run prepare first" in refusal([folders[0], tmp_path / "nowhere"])
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.add_tokens(["river-bank"])
    make_windows(
        folders[0].parent / "0.txt",
        tokenizer,
        tmp_path / "other",
        window_length=16,
        overlap=4,
        progress=False,
    )
    message = refusal([folders[0], tmp_path / "other"])
    assert (
        str(folders[0]) in message
        and str(tmp_path / "other") in message
        and "different tokenizers" in message
    )
    unfinished = shutil.copytree(folders[1], tmp_path / "unfinished")
    (unfinished / "manifest.json").rename(unfinished / "progress.json")
    assert "prepare was interrupted" in refusal([folders[0], unfinished])


def edited(folder, target, change):
    shutil.copytree(folder, target)
    manifest = json.loads((target / "manifest.json").read_text())
    change(manifest)
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


def test_other_special_tokens_and_empty_folders(folders, tmp_path):
    other = edited(folders[1], tmp_path / "suffix", lambda m: m["tokenizer"].update(suffix_ids=[3, 3]))
    assert "different tokenizers" in refusal([folders[0], other])
    nothing = {"documents": 0, "windows": 0, "tokens": 0, "token_slots": 0}
    empty = edited(folders[1], tmp_path / "empty", lambda m: m["splits"].update(train=nothing))
    for part in ("tokens", "windows"):
        (empty / f"train.{part}.bin").write_bytes(b"")
    assert "empty has no windows to train on" in refusal([folders[0], empty])
    assert len(WindowDataset([folders[0], empty], "held_out")) > len(WindowDataset(folders[0], "held_out"))


# Knowing the windows of a run again


def test_the_identity_of_windows(folders, tmp_path):
    identity = data_identity(WindowDataset(folders))
    assert json.loads(json.dumps(identity)) == identity == data_identity(WindowDataset(folders, "held_out"))
    assert [folder["name"] for folder in identity["folders"]] == ["w0", "w1", "w2"]
    assert identity["folders"][1]["windows"] == len(WindowDataset(folders[1]))
    assert len({folder["fingerprint"] for folder in identity["folders"]}) == 3
    # Neither another place nor other versions of the libraries make other windows.
    moved = edited(folders[0], tmp_path / "moved", lambda m: m["versions"].update(numpy="9"))
    assert data_differences(identity, data_identity(WindowDataset([moved, *folders[1:]]))) == ""


def test_ids_that_were_shuffled_are_other_windows(folders, tmp_path):
    before = data_identity(WindowDataset(folders[0]))
    changed = shutil.copytree(folders[0], tmp_path / "changed")
    ids = np.fromfile(changed / "train.tokens.bin", "<u2")
    ids[::-1].tofile(changed / "train.tokens.bin")
    with pytest.raises(UserError, match="'train.tokens.bin' does not hold what prepare wrote: prepare again"):
        data_identity(WindowDataset(changed))
    # Of an earlier version: no fingerprint in the manifest, so that of a run is all there is.
    old = edited(folders[0], tmp_path / "w0", lambda manifest: manifest.pop("files"))
    assert data_differences(before, data_identity(WindowDataset(old))) == ""
    shutil.copy(changed / "train.tokens.bin", old)
    told = data_differences(before, data_identity(WindowDataset(old)))
    assert told.startswith("windows w0: content ") and ", now " in told


def test_differences_are_named(folders):
    w0, w1, w2 = folders
    before = data_identity(WindowDataset([w0, w1]))

    def differences(*now):
        line = data_differences(before, data_identity(WindowDataset(list(now))))
        assert "\n" not in line
        return line

    assert differences(w0, w1) == ""
    assert differences(w1, w0) == "the same folders in another order: w0, w1, now w1, w0"
    assert differences(w0) == "2 folders (w0, w1), now 1 folder (w0)"
    assert differences(w0, w1, w2) == "2 folders (w0, w1), now 3 folders (w0, w1, w2)"
    changed = differences(w0, w2)
    assert changed.startswith(f"w1 ({len(WindowDataset(w1))} windows, fingerprint ")
    assert f", now w2 ({len(WindowDataset(w2))} windows, fingerprint " in changed
    for damaged in ({}, [], {"folders": 3}, {"folders": [1]}, None):
        assert data_differences(damaged, before) == "what the run says of its windows is damaged"
    hostile = {"folders": [{"name": "a\nb", "windows": 10**9000, "fingerprint": ["\n"]}, {}]}
    assert "\n" not in data_differences(hostile, before)


# Whole runs


def recipe(*overrides):
    return apply_overrides(
        load_recipe("tiny"),
        ["student.adapter_reduction_factor=8", "student.init=random", "training.eval_windows=8", *overrides],
    )


def test_a_plan_and_a_run_of_several_folders(folders, tmp_path):
    settings = recipe("training.max_steps=null", "training.epochs=1.0", "training.batch_size=4")
    plan = plan_distillation(settings, folders)
    windows = WindowDataset(folders)
    assert len(plan.windows) == len(windows) and plan.max_steps == round(len(windows) / 4)
    assert len(plan.held_out) == len(WindowDataset(folders, "held_out"))
    tokens = sum(len(window["input_ids"]) for window in windows)
    assert windows.num_tokens == tokens
    assert estimate(plan)["tokens_in_all"] == round(plan.max_steps * 4 / len(windows) * tokens)
    record = distill(
        None, folders, recipe=recipe("training.max_steps=2"), output=tmp_path / "run", progress=False
    ).record
    assert record["data"]["sources"] == ["0.txt", "1.txt", "2.txt"]
    assert record["data"]["folders"] == data_identity(windows)["folders"]
    assert record["data"]["windows"] == len(windows)


def test_the_longest_windows_count(folders):
    with pytest.raises(UserError, match="windows are 32 tokens long, but the student takes at most 24"):
        plan_distillation(recipe("student.max_position_embeddings=24"), folders)


def test_the_command_takes_several_folders(call, folders):
    arguments = ["--recipe", "tiny", "--set", "student.adapter_reduction_factor=8", "--dry-run", "--json"]
    status, out, err = call(
        "distill", "--data", folders[0], "--data", folders[1], "--output", "run", *arguments
    )
    assert status == 0, err
    estimated = json.loads(out)["estimate"]
    assert estimated["passes"].endswith(f" over {len(WindowDataset(folders[:2]))} windows")


def test_the_command_refuses_a_folder_twice(refuse, folders, tmp_path):
    arguments = ("--data", folders[0], "--data", folders[0], "--output", tmp_path / "run", "--recipe", "tiny")
    assert "is given twice" in refuse("distill", *arguments)


# What is read


class Counted(WindowDataset):
    """Writes down which windows are asked for."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def loader_of(samples, rank, processes, micro_batch):
    """What the Trainer makes of its data set on one process of several."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    loader = DataLoader(
        samples, batch_size=micro_batch, sampler=SequentialSampler(samples),
        collate_fn=MaskedLanguageModelCollator(tokenizer),
    )  # fmt: skip
    return prepare_data_loader(
        loader, num_processes=processes, process_index=rank, put_on_device=False, rng_types=[]
    )


def test_each_process_reads_its_share_and_no_more(folders):
    processes, micro_batch, steps = 4, 2, 6
    alone = Counted(folders)
    samples = steps * processes * micro_batch
    batches = list(loader_of(ShuffledWindows(alone, samples, seed=3), 0, 1, processes * micro_batch))
    per_rank, reads = [], []
    for rank in range(processes):
        windows = Counted(folders)
        loader = loader_of(ShuffledWindows(windows, samples, seed=3), rank, processes, micro_batch)
        per_rank.append([batch["window_ids"].tolist() for batch in loader])
        reads.append(windows.read)
    assert [len(read) for read in reads] == [samples // processes] * processes
    assert Counter(sum(reads, [])) == Counter(alone.read)  # all of them, none twice
    for step, batch in enumerate(batches):  # the same windows in each optimiser step, in the same order
        assert sum((ids[step] for ids in per_rank), []) == batch["window_ids"].tolist()


def test_skipped_batches_are_not_read(folders):
    windows = Counted(folders)
    loader = loader_of(ShuffledWindows(windows, 32, seed=3), 1, 2, 4)
    whole = [batch["window_ids"].tolist() for batch in loader]
    windows.read.clear()
    rest = [batch["window_ids"].tolist() for batch in skip_first_batches(loader, 3)]
    assert rest == whole[3:] and windows.read == whole[3]


def test_a_resumed_run_reads_only_what_is_left(
    folders, tiny_teacher, tiny_student_config, tiny_tokenizer, tmp_path
):
    class StopAfterThree(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3
            control.should_save = state.global_step == 3

    def train(callbacks, checkpoint=None):
        windows = Counted(folders)
        torch.manual_seed(0)
        args = TrainingArguments(
            output_dir=str(tmp_path / "checkpoints"), max_steps=5, per_device_train_batch_size=3,
            gradient_accumulation_steps=2, save_strategy="no", remove_unused_columns=False, report_to="none",
            disable_tqdm=True, use_cpu=True, seed=1,
        )  # fmt: skip
        trainer = DistillationTrainer(
            MiniAlbertForMaskedLM(copy.deepcopy(tiny_student_config)), Teacher(tiny_teacher, True),
            DistillationObjective(), args=args, train_dataset=ShuffledWindows(windows, 30, seed=1),
            data_collator=MaskedLanguageModelCollator(tiny_tokenizer, seed=1), callbacks=callbacks,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=checkpoint)
        return windows.read

    whole = train([])
    assert len(whole) == 30
    first = train([StopAfterThree()])
    assert first[:18] == whole[:18] and len(first) <= 18 + 3  # the loader looks one batch ahead
    assert train([], str(tmp_path / "checkpoints" / "checkpoint-3")) == whole[18:]
