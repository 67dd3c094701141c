"""The models in the box: what their cards say is what was measured, nothing is damaged, and they work by name."""

from __future__ import annotations

import hashlib
import importlib.util
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from minialbert_runtime import Model, RuntimeUserError
from minialbert_runtime.folder import boxed_models, read_folder
from onnxruntime import InferenceSession
from transformers import AutoModelForMaskedLM

import minialbert
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "models" / "minialbert_models"
SPEC = importlib.util.spec_from_file_location(
    "boxed_models", ROOT / "benchmarks" / "pages" / "boxed_models.py"
)
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)
NAMES = sorted(boxed_models())


def test_files_are_those_that_were_checked():
    sums = dict(reversed(line.split("  ")) for line in (HOME / "SHA256SUMS").read_text().splitlines())
    files = {file.relative_to(HOME).as_posix(): file for name in NAMES for file in (HOME / name).rglob("*.*")}
    assert sums.keys() == files.keys()
    assert sums == {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    assert sum(file.stat().st_size for file in files.values()) <= page.MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_made_from_records(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert (HOME / name / "README.md").read_text() == page.card(name)
    assert page.summary() in Path("README.md").read_text()
    assert (ROOT / "models" / "README.md").read_text() == page.overview()


def test_sentences_that_mean_the_same_are_near():
    started = time.perf_counter()
    first, alike, other = Model("minilm-5mb").embed(
        ["A man is playing a guitar.", "Someone plays an instrument.", "Stocks fell in London."]
    )
    assert time.perf_counter() - started < 3
    assert first @ alike > 0.5 > 0.3 > first @ other
    np.testing.assert_allclose(np.linalg.norm(first), 1, atol=1e-6)
    assert load_tokenizer("minilm-5mb").tokenize("a guitar") == ["a", "guitar"]
    again = minialbert.load("minilm-5mb").embed("A man is playing a guitar.")
    np.testing.assert_allclose(minialbert.embed("minilm-5mb", "A man is playing a guitar."), again, atol=1e-6)
    np.testing.assert_allclose(again[0], first, atol=1e-6)


def test_a_name_that_is_no_model_says_which_there_are():
    with pytest.raises(RuntimeUserError, match=f"no such folder: minilm-9mb; .* or one of .*{NAMES[0]}"):
        read_folder("minilm-9mb")


def test_a_folder_of_that_name_comes_first(tmp_path, monkeypatch):
    (tmp_path / "minilm-5mb").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeUserError, match=r"minilm-5mb has no export\.json"):
        read_folder("minilm-5mb")


@pytest.mark.parametrize("name", page.MASKED)
def test_a_masked_lm_predicts_what_its_graph_predicts_and_has_no_task(name, tmp_path):
    text, words = page.MASKED[name]
    model = minialbert.load(name)
    found = model(text, top_k=3)
    assert [guess["token_str"] for guess in found] == words
    model.model.save_pretrained(tmp_path)
    tokens = load_tokenizer(name)(text)
    inputs = {key: torch.tensor([values]) for key, values in tokens.items()}
    with torch.no_grad():
        again = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()(**inputs).logits
    graph = InferenceSession(HOME / name / "model.onnx")
    (logits,) = graph.run(None, {key: values.numpy() for key, values in inputs.items()})
    masked = tokens["input_ids"].index(model.tokenizer.mask_token_id)
    assert torch.cosine_similarity(again, torch.tensor(logits), dim=-1)[0, masked] > 0.99
    assert model.tokenizer.convert_ids_to_tokens(logits[0, masked].argmax().item()) == words[0]
    with pytest.raises(UserError, match="takes no options: give them with the text"):
        minialbert.load(name, top_k=3)
    with pytest.raises(RuntimeUserError, match=f"has no task, .*`minialbert finetune --model {name}"):
        Model(name)
