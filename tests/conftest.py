"""Fixtures that every test file may use: recorded releases, a tiny tokenizer, tiny models, the command line."""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import BertForMaskedLM, PreTrainedTokenizerBase

    from minialbert import MiniAlbertConfig

# Hugging Face reads this once, at import: set before anything imports it.
os.environ["HF_HUB_OFFLINE"] = "1"
# Two threads on tensors this small only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# ONNX Runtime reads this one then, which some tests import themselves.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

DATA = Path(__file__).parent / "fixtures"
_THIS_MACHINE = (None, "", "localhost", "::1", "0.0.0.0", socket.gethostname())
_asked: list[str] = []


def _refuse_the_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("socket.connect", "socket.sendto"):
        host = arguments[1][0] if isinstance(arguments[1], tuple) else None  # else a socket of this system
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if host not in _THIS_MACHINE and not str(host).startswith("127."):
        _asked.append(str(host))
        raise OSError(f"tests have no network, and this one asked for {host}")


sys.addaudithook(_refuse_the_network)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Iterator[None]:
    """Keep what a fuzz test counted for the page of the slow tests."""
    report = yield
    if report.when == "call":
        lines = (line for line in report.capstdout.splitlines() if line.startswith("fuzz "))
        item.user_properties += [("measured", line.removeprefix("fuzz ")) for line in lines]
    return report


@pytest.fixture(autouse=True)
def hosts_asked_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Refuse every other machine, and fail a test that asked for one even if it was told of no error."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for child processes of tests that change the environment
    _asked.clear()
    yield _asked
    assert not _asked, f"tests have no network, and this one asked for {_asked}"


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """What a process wrote, every other one can read: only a loss of power would tell, and no test makes one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _little_garbage() -> None:
    """Trainer collects garbage in every run, and need not look at the objects of all modules each time."""
    import hypothesis  # noqa: F401 - which looks for referrers as it is imported, and finds none that are frozen

    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def release_dir() -> Path:
    """Directory of the recorded checkpoints and outputs of the paper's release."""
    return DATA / "release"


@pytest.fixture
def release_copy(release_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy a release checkpoint and change it: `weights` and `config` are called with its dictionaries."""

    def copy(
        name: str = "adapter-factorised/student-mlm",
        weights: Callable[[dict[str, Any]], object] | None = None,
        config: Callable[[dict[str, Any]], object] | None = None,
    ) -> Path:
        import torch

        target = tmp_path / "release"
        shutil.copytree(release_dir / name, target)
        if weights is not None:
            tensors = torch.load(target / "pytorch_model.bin", weights_only=True)
            weights(tensors)
            torch.save(tensors, target / "pytorch_model.bin")
        if config is not None:
            values = json.loads((target / "config.json").read_text())
            config(values)
            (target / "config.json").write_text(json.dumps(values))
        return target

    return copy


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    """WordPiece tokenizer of about 120 entries."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(DATA / "tiny-tokenizer")


@pytest.fixture
def tiny_teacher(tiny_tokenizer: PreTrainedTokenizerBase) -> BertForMaskedLM:
    """Four-layer, 32-wide BERT with random weights, the same in every test, in eval mode."""
    return _teacher(tiny_tokenizer)


def _teacher(tokenizer: PreTrainedTokenizerBase) -> BertForMaskedLM:
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForMaskedLM(config).eval()


@pytest.fixture
def tiny_student_config(tiny_tokenizer: PreTrainedTokenizerBase) -> MiniAlbertConfig:
    """Two iterations that match layers 2 and 4 of `tiny_teacher`, rank 16, adapters as published."""
    return _student_config(tiny_tokenizer)


def _student_config(tokenizer: PreTrainedTokenizerBase) -> MiniAlbertConfig:
    from minialbert import MiniAlbertConfig

    return MiniAlbertConfig(
        vocab_size=len(tokenizer),
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        adapter_reduction_factor=8,
        pad_token_id=tokenizer.pad_token_id,
    )


# Sentences that the tiny tokenizer can spell, in documents of different lengths.
_TEXT = "the cat sat on mat and a dog ran in sun it was big red small old new house tree to of is at"


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of 20 to 200 words, separated by blank lines."""
    words, generator = _TEXT.split(" "), random.Random(0)
    documents = [" ".join(generator.choices(words, k=generator.randint(20, 200))) for _ in range(60)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_windows(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus as windows of 32 tokens; a tenth of the documents is held out."""
    from minialbert.data.prepare import make_windows

    folder = tmp_path_factory.mktemp("windows") / "w"
    make_windows(
        [tiny_corpus], DATA / "tiny-tokenizer", folder, window_length=32, overlap=8, held_out_fraction=0.15,
        num_workers=1, progress=False,
    )  # fmt: skip
    return folder


@pytest.fixture
def tiny_teacher_dir(
    tiny_teacher: BertForMaskedLM, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> Path:
    """`tiny_teacher` with its tokenizer, saved."""
    folder = tmp_path / "teacher"
    _save(tiny_teacher, tiny_tokenizer, folder)
    return folder


def _save(teacher: BertForMaskedLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    teacher.save_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()  # as an earlier test may have set it, which the file would hold
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="session")
def distilled(
    tiny_tokenizer: PreTrainedTokenizerBase, tiny_windows: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The directory of a run of the recipe "tiny" with `tiny_teacher` on `tiny_windows`; not to be changed."""
    from minialbert.method.distill import distill
    from minialbert.recipes.load import apply_overrides, load_recipe

    folder = tmp_path_factory.mktemp("distilled")
    _save(_teacher(tiny_tokenizer), tiny_tokenizer, folder / "teacher")
    settings = ["student.adapter_reduction_factor=8", "training.eval_windows=8"]
    recipe = apply_overrides(load_recipe("tiny"), [*settings, f"teacher.model='{folder / 'teacher'}'"])
    distill(None, tiny_windows, recipe=recipe, output=folder / "run", progress=False)
    return folder / "run"


@dataclass(frozen=True)
class Tuned:
    """A tiny model that was tuned on a tiny task.

    Attributes:
        run: the run directory.
        data: the directory of the task.
        record: what the tuning recorded.
    """

    run: Path
    data: Path
    record: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.run / "model"


_FILLER = "the of and to in is it was for on as with at by one"


def _tiny_rows(count: int, seed: int) -> list[list[str]]:
    """Sentences of 3 to 12 words; about half have a king, about half a river, anywhere."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.choices(_FILLER.split(" "), k=10)
        words = words[: generator.randint(3, 10)]
        for name in ("king", "river"):
            if generator.random() < 0.5:
                words.insert(generator.randint(0, len(words)), name)
        rows.append(words)
    return rows


def write_tiny_task(folder: Path, kind: str) -> Path:
    """Write a task that one word decides, 160 rows to train on; returns its directory."""
    folder.mkdir()
    for seed, (split, count) in enumerate({"train": 160, "dev": 24, "test": 32}.items()):
        rows = _tiny_rows(count, seed)
        if kind == "ner":
            tags = {"king": "B-Person", "river": "B-Place"}
            blocks = ("".join(f"{word}\t{tags.get(word, 'O')}\n" for word in row) for row in rows)
            (folder / f"{split}.tsv").write_text("\n".join(blocks))
            continue
        labels: dict[str, Callable[[list[str]], object]] = {
            "classification": lambda row: "with" if "king" in row else "without",
            "multi-label": lambda row: [name for name in ("king", "river") if name in row],
            "regression": lambda row: 2.0 * ("king" in row) - ("river" in row),
        }
        lines = [json.dumps({"text": " ".join(row), "label": labels[kind](row)}) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_student_dir(
    tiny_tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A student of `tiny_student_config` with random weights, and its tokenizer, saved; not to be changed."""
    import torch

    from minialbert import MiniAlbertForMaskedLM

    folder = tmp_path_factory.mktemp("student") / "student"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MiniAlbertForMaskedLM(_student_config(tiny_tokenizer))
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tuned(tiny_student_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    """Tune a tiny student on "classification", "multi-label", "regression" or "ner", each once; not to be changed."""
    made: dict[str, Tuned] = {}

    def tune(kind: str) -> Tuned:
        from minialbert.recipes.load import apply_overrides, load_recipe
        from minialbert.recipes.schema import FinetuneRecipe
        from minialbert.tasks.finetune import finetune

        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            data = write_tiny_task(folder / f"my-{kind}", kind)
            recipe = apply_overrides(
                load_recipe("default", FinetuneRecipe),
                [
                    f"model.name={tiny_student_dir}", f"task.name={kind}", f"task.data={data}",
                    "tuning.batch_size=8", "tuning.epochs=6", "tuning.learning_rate=3e-3", "tuning.dropout=0",
                ],
            )  # fmt: skip
            made[kind] = Tuned(
                folder / "tuned",
                data,
                finetune(recipe=recipe, output=folder / "tuned", progress=False).record,
            )
        return made[kind]

    return tune


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in this process; returns exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        from minialbert.cli import main

        monkeypatch.setattr(sys, "argv", ["minialbert", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


@pytest.fixture
def refuse(call: Callable[..., tuple[int, str, str]]) -> Callable[..., str]:
    """Run a command that must be refused: status 2, one line, no traceback; returns the line."""

    def run(*arguments: object) -> str:
        status, _, err = call(*arguments)
        assert status == 2, err
        assert "Traceback" not in err
        lines = [line for line in err.strip().splitlines() if line.startswith("minialbert:")]
        assert len(lines) == 1, err
        assert err.strip().splitlines()[-1] == lines[0]
        return lines[0]

    return run
