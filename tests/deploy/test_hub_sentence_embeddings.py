"""Students as sentence encoders, tried with sentence-transformers itself against pooling by hand.

Where the package is not installed, `test_hub` tries them.
"""

from __future__ import annotations

import logging
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from minialbert import MiniAlbertConfig, MiniAlbertModel
from minialbert.deploy.hub import export_to_hub_folder, max_tokens
from minialbert.method.sentence_vectors import Dense, Pooling, read_pooling, write_pooling

SENTENCES = ["the cat sat on the mat", "a dog", "the big red house is old and the small tree is new", ""]


@pytest.fixture(scope="module")
def folder(tiny_student_dir, tmp_path_factory):
    """A masked LM, exported."""
    path = tmp_path_factory.mktemp("exported") / "hub"
    export_to_hub_folder(tiny_student_dir, path)
    return path


@pytest.fixture
def encoder(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


@torch.no_grad()
def pooled_by_hand(folder, sentences, max_length=64):
    """One sentence at a time, so that there is no padding to get wrong."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), MiniAlbertModel.from_pretrained(folder)
    vectors = []
    for sentence in sentences:
        inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=max_length)
        vectors.append(model(**inputs).last_hidden_state[0].mean(dim=0).numpy())
    return np.stack(vectors)


def test_vectors_are_the_mean_over_tokens(folder, encoder):
    vectors = encoder.encode(SENTENCES)
    assert vectors.shape == (4, 32)
    np.testing.assert_allclose(vectors, pooled_by_hand(folder, SENTENCES), rtol=0, atol=1e-5)
    assert type(encoder[0].auto_model) is MiniAlbertModel
    similar = encoder.similarity(vectors[:1], vectors[:1])
    assert similar.item() == pytest.approx(1, abs=1e-5)  # cosine


def test_long_sentences_are_cut_at_the_models_positions(folder, encoder):
    assert encoder.max_seq_length == 64
    long = ["the cat sat on the mat and a dog ran in the sun " * 20]
    np.testing.assert_allclose(encoder.encode(long), pooled_by_hand(folder, long), rtol=0, atol=1e-5)


def test_no_weight_of_the_encoder_is_drawn_at_random(folder, caplog):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    _, info = MiniAlbertModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    library = logging.getLogger("transformers")
    library.addHandler(caplog.handler)
    try:
        sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    finally:
        library.removeHandler(caplog.handler)
    assert not [line for line in caplog.messages if "MISSING" in line or "newly initialized" in line]


def test_saving_by_the_library_and_loading_again_changes_nothing(encoder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    before = encoder.encode(SENTENCES)
    encoder.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(again.encode(SENTENCES), before)
    assert again.max_seq_length == 64


def test_the_limit_is_the_lower_of_positions_and_tokenizer(tiny_student_config, tiny_tokenizer):
    assert tiny_tokenizer.model_max_length == 512
    assert max_tokens(tiny_student_config, tiny_tokenizer) == 64
    assert max_tokens(MiniAlbertConfig(max_position_embeddings=1024), tiny_tokenizer) == 512


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len_tokens"])
def test_a_students_own_pooling_is_that_of_the_library(mode, tiny_student_dir, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source, target = tmp_path / "student", tmp_path / "hub"
    shutil.copytree(tiny_student_dir, source)
    pooling = Pooling(mode, (Dense(torch.randn(8, 32), torch.randn(8), "Tanh"),))
    write_pooling(source, pooling, width=32, max_tokens=12)
    export_to_hub_folder(source, target)
    encoder = sentence_transformers.SentenceTransformer(str(target), device="cpu")
    assert encoder.max_seq_length == 12
    batch = AutoTokenizer.from_pretrained(target)(
        SENTENCES, padding=True, truncation=True, max_length=12, return_tensors="pt"
    )
    with torch.no_grad():
        states = MiniAlbertModel.from_pretrained(target)(**batch).last_hidden_state
    np.testing.assert_allclose(encoder.encode(SENTENCES), pooling(states, batch), rtol=0, atol=1e-5)
    # And what the library itself saves is read.
    encoder.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    again = read_pooling(
        "saved", lambda file: path if (path := tmp_path / "saved" / file).is_file() else None
    )
    torch.testing.assert_close(again(states, batch), pooling(states, batch))
