"""Fixtures that every test file may use: recorded releases, a tiny tokenizer, a tiny teacher."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
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

DATA = Path(__file__).parent / "data"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for child processes of tests that change the environment


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


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
    import torch
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForMaskedLM(config).eval()


@pytest.fixture
def tiny_student_config(tiny_tokenizer: PreTrainedTokenizerBase) -> MiniAlbertConfig:
    """Two iterations that match layers 2 and 4 of `tiny_teacher`, rank 16, adapters as published."""
    from minialbert import MiniAlbertConfig

    return MiniAlbertConfig(
        vocab_size=len(tiny_tokenizer),
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        adapter_reduction_factor=8,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )


# Sentences that the tiny tokenizer can spell, in documents of different lengths.
_TEXT = "the cat sat on mat and a dog ran in sun it was big red small old new house tree to of is at"


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty documents of 20 to 200 words, separated by blank lines."""
    import random

    words, generator = _TEXT.split(" "), random.Random(0)
    documents = [" ".join(generator.choices(words, k=generator.randint(20, 200))) for _ in range(60)]
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    path.write_text("\n\n".join(documents) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_windows(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpus as windows of 32 tokens; a tenth of the documents is held out."""
    from minialbert.data.windows import prepare

    folder = tmp_path_factory.mktemp("windows") / "w"
    prepare(
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
    tiny_teacher.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder
