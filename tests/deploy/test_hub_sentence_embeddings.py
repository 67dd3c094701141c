"""Students as sentence encoders, tried with sentence-transformers itself against pooling by hand.

Where the package is not installed, `test_hub` tries them.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from minialbert import MiniAlbertConfig, MiniAlbertModel
from minialbert.deploy.hub import SENTENCE_FILES, export_to_hub_folder, max_tokens, write_sentence_embeddings
from minialbert.errors import UserError

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


def test_files_are_named_and_a_length_without_positions_is_refused(tiny_student_config, tmp_path):
    assert (
        tuple(write_sentence_embeddings(tmp_path, tiny_student_config, max_seq_length=32)) == SENTENCE_FILES
    )
    assert all((tmp_path / name).is_file() for name in SENTENCE_FILES)
    for wrong in (0, 65):
        with pytest.raises(UserError, match="between 1 and the model's 64 positions"):
            write_sentence_embeddings(tmp_path, tiny_student_config, max_seq_length=wrong)
