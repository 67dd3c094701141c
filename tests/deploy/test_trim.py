"""A trimmed vocabulary: the same tokens and bits for texts of tokens that stay, and a model as any other."""

from __future__ import annotations

import shutil

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, MobileBertConfig, MobileBertForMaskedLM

import minialbert
from minialbert.errors import UserError
from minialbert.method.sentence_vectors import Pooling, write_pooling

TEXTS = ["the cat sat on the mat", "a dog ran in the sun", "the big red house is old"]
OTHER = "the small tree is new"


@pytest.fixture(scope="module")
def trimmed(tiny_student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trimmed")
    shutil.copytree(tiny_student_dir, folder / "whole")
    write_pooling(folder / "whole", Pooling("mean"), width=32, max_tokens=24)
    record = minialbert.trim(folder / "whole", TEXTS, folder / "small").record
    return folder / "whole", folder / "small", record


def both(folders, text):
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        yield (
            tokenizer,
            tokenizer(text, return_tensors="pt"),
            AutoModelForMaskedLM.from_pretrained(folder).eval(),
        )


@torch.no_grad()
def test_texts_of_its_tokens_give_the_same_numbers(trimmed):
    whole, small, record = trimmed
    assert record["tokens"] < record["tokens_before"] and record["parameters"] < record["parameters_before"]
    assert record["occurrences_kept"] == 1 and record["texts_proved"] == 3
    for text in (*TEXTS, "the dog is on the red mat"):
        (old, ids, model), (new, cut, smaller) = both((whole, small), text)
        assert ids.tokens() == cut.tokens()
        torch.testing.assert_close(
            smaller.base_model(**cut).last_hidden_state,
            model.base_model(**ids).last_hidden_state,
            rtol=0,
            atol=0,
        )
        kept = [
            old.get_vocab()[token] for token, _ in sorted(new.get_vocab().items(), key=lambda one: one[1])
        ]
        torch.testing.assert_close(smaller(**cut).logits, model(**ids).logits[..., kept])


def test_characters_stay_but_for_continuations_that_no_text_has(trimmed):
    (old, _, _), (new, _, _) = both(trimmed[:2], OTHER)
    single = {token for token in old.get_vocab() if len(token.removeprefix("##")) == 1}
    gone = single - new.get_vocab().keys()
    assert gone == {f"##{sign}" for sign in ".,!?" if f"##{sign}" in single}
    assert all(old.tokenize(f"a{token[-1]}")[-1] == token[-1] for token in gone)


def test_other_words_are_spelled_in_smaller_pieces(trimmed):
    whole, small, _ = trimmed
    (_, ids, _), (new, cut, _) = both((whole, small), OTHER)
    assert len(cut.tokens()) > len(ids.tokens()) and new.unk_token not in cut.tokens()
    assert new.decode(cut["input_ids"][0], skip_special_tokens=True) == OTHER


def test_the_folder_is_a_model_for_every_verb(trimmed, tmp_path):
    whole, small, _ = trimmed
    vectors = [minialbert.embed(folder, TEXTS, precision="fp32") for folder in (whole, small)]
    torch.testing.assert_close(*map(torch.from_numpy, vectors), rtol=0, atol=0)
    exported = minialbert.export(small, tmp_path / "graph", head="features")
    torch.testing.assert_close(
        torch.from_numpy(minialbert.embed(exported, TEXTS)), torch.from_numpy(vectors[0])
    )


def test_a_tagger_keeps_its_task_and_answers(tiny_student_dir, tmp_path):
    rows = [{"tokens": text.split(), "tags": ["B-X", *"O" * (len(text.split()) - 1)]} for text in TEXTS * 4]
    tuned = minialbert.finetune(tiny_student_dir, "ner", {"train": rows, "validation": rows[:3]}, epochs=1)
    small = minialbert.trim(tuned, TEXTS, tmp_path / "small")
    assert minialbert.predict(small.path, TEXTS) == minialbert.predict(tuned, TEXTS)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"corpus": [{"text": "  "}]}, "the corpus has no text"),
        ({"corpus": TEXTS, "min_count": 0}, "expected min_count and keep of at least 1"),
        ({"corpus": TEXTS, "keep": 5}, "keep 5: special tokens and single characters stay always"),
    ],
)
def test_what_cannot_be_trimmed_is_refused(tiny_student_dir, tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        minialbert.trim(tiny_student_dir, output=tmp_path / "small", **options)
    assert not (tmp_path / "small").exists()


def test_a_head_with_further_tables_is_refused(tiny_tokenizer, tmp_path):
    sizes = {"hidden_size": 32, "embedding_size": 16, "intra_bottleneck_size": 16, "intermediate_size": 48}
    config = MobileBertConfig(
        vocab_size=len(tiny_tokenizer), num_hidden_layers=1, num_attention_heads=4, **sizes
    )
    MobileBertForMaskedLM(config).save_pretrained(tmp_path / "whole")
    tiny_tokenizer.save_pretrained(tmp_path / "whole")
    said = "a mobilebert model with this head cannot be trimmed: cls.predictions.dense.weight is not cut by tokens"
    with pytest.raises(UserError, match=said):
        minialbert.trim(tmp_path / "whole", TEXTS, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_model_is_never_replaced_by_its_trimmed_one(tiny_student_dir, tmp_path):
    weights = shutil.copytree(tiny_student_dir, tmp_path / "run" / "model") / "model.safetensors"
    before = weights.read_bytes()
    for output in (tmp_path / "run" / "model", tmp_path / "run"):
        with pytest.raises(UserError, match="would replace what is read"):
            minialbert.trim(tmp_path / "run" / "model", TEXTS, output, overwrite=True)
    assert weights.read_bytes() == before
