"""Whatever a model's folder holds, a loader gives a model that computes, or refuses it in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import hunt, mutated, mutated_json, tiers
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from minialbert import MiniAlbertConfig, MiniAlbertForSequenceClassification
from minialbert.method.adapters import add_adapters, load_adapters, save_adapters
from minialbert.method.encoders import load_encoder_config, load_teacher
from minialbert.method.release import convert
from minialbert.tasks.models import TASK_FILE, TaskInputs, load_tuned, save_tuned
from minialbert.tasks.predict import Predictor

RELEASE = (
    Path(__file__).parent.parent
    / "fixtures"
    / "release"
    / "adapter-factorised"
    / "student-sequence-classification"
)
WORDS = torch.tensor([[2, 7, 8, 3]])


@pytest.fixture(scope="module", autouse=True)
def _no_reports() -> Any:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def tiny_config(vocab_size: int, **options: Any) -> MiniAlbertConfig:
    return MiniAlbertConfig(
        vocab_size=vocab_size, embedding_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16, num_labels=2, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerBase) -> Path:
    """A tiny classifier as `finetune` leaves it."""
    folder = tmp_path_factory.mktemp("tuned") / "model"
    model = MiniAlbertForSequenceClassification(tiny_config(len(tiny_tokenizer), adapter_reduction_factor=4))
    save_tuned(model, tiny_tokenizer, TaskInputs("x", "single-label", "accuracy", 16, 4), folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tiny_tokenizer: PreTrainedTokenizerBase) -> MiniAlbertForSequenceClassification:
    config = tiny_config(len(tiny_tokenizer), adapter_reduction_factor=None)
    return MiniAlbertForSequenceClassification(config).eval()


@pytest.fixture(scope="module")
def adapters(backbone: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import copy

    model = copy.deepcopy(backbone)
    add_adapters(model, reduction_factor=4)
    return save_adapters(model, tmp_path_factory.mktemp("adapters") / "a", metadata={"name": "x"})


def computes(model: Any) -> None:
    """The model runs, or says in PyTorch's own words that its numbers do not fit; it never hangs."""
    with torch.no_grad():
        outputs = model(input_ids=WORDS % model.config.vocab_size)
    assert outputs[0].ndim >= 2


class Mutant:
    """A copy of a folder in which one file changes at a time."""

    def __init__(self, source: Path, target: Path) -> None:
        shutil.copytree(source, target)
        self.folder = target
        self.good = {path.name: path.read_bytes() for path in target.iterdir() if path.is_file()}

    def with_file(self, name: str, content: bytes, read: Callable[[Path], object]) -> None:
        (self.folder / name).write_bytes(content)
        try:
            read(self.folder)
        finally:
            (self.folder / name).write_bytes(self.good[name])

    def config(self, name: str = "config.json") -> st.SearchStrategy[tuple[str, bytes]]:
        return st.tuples(st.just(name), mutated_json(json.loads(self.good[name])))

    def weights(self, name: str) -> st.SearchStrategy[tuple[str, bytes]]:
        content = self.good[name]
        # Most of a file are numbers, of which any are fine: the header, and the end of an archive, are not.
        header = mutated([content[:3_000]]).map(lambda raw: raw + content[3_000:])
        end = mutated([content[-3_000:]]).map(lambda raw: content[:-3_000] + raw)
        cut = st.integers(0, len(content)).map(lambda length: content[:length])
        return st.tuples(st.just(name), st.one_of(header, end, cut, mutated([content]), st.just(content)))


@tiers
@pytest.mark.parametrize("part", ["config.json", "pytorch_model.bin"])
def test_converting_a_release(examples: int, part: str, tmp_path: Path) -> None:
    """What is refused leaves nothing; what is converted loads."""
    release = Mutant(RELEASE, tmp_path / "release")
    output = tmp_path / "output"

    def read(folder: Path) -> None:
        shutil.rmtree(output, ignore_errors=True)
        try:
            convert(folder, output)
        except ValueError:
            assert {path.name for path in tmp_path.iterdir()} <= {"release"}
            raise
        computes(MiniAlbertForSequenceClassification.from_pretrained(output))

    inputs = release.config() if part == "config.json" else release.weights(part)
    hunt(
        f"release {part}",
        examples,
        inputs,
        lambda bad: release.with_file(*bad, read),
        folder=tmp_path,
        shrink=False,
    )


@tiers
@pytest.mark.parametrize("part", ["config.json", "model.safetensors", TASK_FILE, "tokenizer_config.json"])
def test_a_tuned_model(examples: int, part: str, tuned: Path, tmp_path: Path) -> None:
    mutant = Mutant(tuned, tmp_path / "model")

    def read(folder: Path) -> None:
        predictor = Predictor.load(str(folder))
        (answer,) = predictor.predict(["the cat sat on the mat"])
        assert answer

    inputs = mutant.weights(part) if part.endswith(".safetensors") else mutant.config(part)
    hunt(
        f"tuned {part}",
        examples,
        inputs,
        lambda bad: mutant.with_file(*bad, read),
        folder=tmp_path,
        shrink=False,
    )


@tiers
@pytest.mark.parametrize("part", ["adapter_config.json", "adapters.safetensors"])
def test_adapters(examples: int, part: str, adapters: Path, backbone: Any, tmp_path: Path) -> None:
    mutant = Mutant(adapters, tmp_path / "adapters")
    before = backbone.config.to_dict()

    def read(folder: Path) -> None:
        try:
            computes(load_adapters(backbone, folder))
        finally:
            assert backbone.config.to_dict() == before

    inputs = mutant.config(part) if part.endswith(".json") else mutant.weights(part)
    hunt(
        f"adapters {part}",
        examples,
        inputs,
        lambda bad: mutant.with_file(*bad, read),
        folder=tmp_path,
        shrink=False,
    )


@tiers
@pytest.mark.parametrize("part", ["config.json", "model.safetensors"])
def test_a_teacher(examples: int, part: str, tiny_tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=16,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(tmp_path / "made")
    mutant = Mutant(tmp_path / "made", tmp_path / "teacher")

    def read(folder: Path) -> None:
        computes(load_teacher(folder, with_tokenizer=False).model)

    inputs = mutant.config(part) if part.endswith(".json") else mutant.weights(part)
    hunt(
        f"teacher {part}",
        examples,
        inputs,
        lambda bad: mutant.with_file(*bad, read),
        folder=tmp_path,
        shrink=False,
    )


@tiers
@pytest.mark.parametrize("kind", ["ours", "release"])
def test_configurations(examples: int, kind: str, tuned: Path, tmp_path: Path) -> None:
    """`MiniAlbertConfig.from_pretrained` says ValueError or OSError, as Transformers does; our own door UserError."""
    mutant = Mutant(tuned if kind == "ours" else RELEASE, tmp_path / "model")

    def read(folder: Path) -> None:
        try:
            config = MiniAlbertConfig.from_pretrained(folder)
        except (ValueError, OSError) as error:
            load_encoder_config(folder)
            raise ValueError("refused by our class alone") from error
        assert config.hidden_size % config.num_attention_heads == 0
        assert json.loads(json.dumps(config.to_dict()))["hidden_size"] == config.hidden_size

    inputs = mutant.config()
    attack = lambda bad: mutant.with_file(*bad, read)  # noqa: E731
    hunt(
        f"configurations ({kind})",
        examples,
        inputs,
        attack,
        folder=tmp_path,
        contract=(ValueError,),
        shrink=False,
    )


def test_a_tuned_model_is_loaded_as_it_is(tuned: Path) -> None:
    model, _, inputs = load_tuned(str(tuned))
    computes(model)
    assert inputs.max_length == 16
