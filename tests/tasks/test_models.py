"""Encoders with a task head: loaded for tuning, saved, and loaded again, or refused by name."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from minialbert import MiniAlbertForMaskedLM, MiniAlbertForTokenClassification
from minialbert.data.examples import Task, TextExample
from minialbert.errors import UserError
from minialbert.method.live import on_disk
from minialbert.tasks.models import (
    Scale,
    TaskInputs,
    check_labels,
    is_minialbert,
    load_for_tuning,
    load_task_tokenizer,
    load_tuned,
    model_labels,
    read_task_file,
    save_tuned,
    scale_of,
)


def task(*labels: str, problem="single-label", name="mine") -> Task:
    return Task(name, problem, labels, "accuracy", {})


TAGS = task("O", "B-Animal", "I-Animal", problem="token")
SCORE = task(problem="regression")


@pytest.fixture
def save(tiny_tokenizer, tmp_path):
    """Saves a model with the tiny tokenizer; returns its directory."""

    def saved(model, name: str = "model") -> Path:
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


def bert(config, *labels: str, kind=BertForSequenceClassification, **changes):
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    for name, value in changes.items():
        setattr(config, name, value)
    return kind(config)


def dropouts(model) -> set[float]:
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


def scores(*values: float | None) -> Task:
    examples = [TextExample("a text", label=value) for value in values]
    return Task("mine", "regression", (), "pearson_spearman", {"train": examples})


# Units of scores


def test_scores_are_learnt_in_units_of_their_spread_where_it_is_unusual(tiny_teacher):
    model = bert(tiny_teacher.config, "LABEL_0")
    assert scale_of(scores(1.0, 4.0, 2.0), model) == Scale()  # STS-B's
    assert scale_of(scores(3.0, 3.0), model) == Scale()
    assert scale_of(scores(95_000.0, 105_000.0), model) == Scale(100_000.0, 5_000.0)
    assert scale_of(scores(0.01, 0.03), model) == Scale(0.02, pytest.approx(0.01))
    assert scale_of(scores(1e-29, 3e-29), model) == Scale(pytest.approx(2e-29), pytest.approx(1e-29))
    for lost in (scores(1e-300, 3e-300), scores(1e9, 1e9 + 2)):  # 32 bits give 0, and 1e9 twice
        with pytest.raises(
            UserError, match="is too small for 32 bits: subtract their mean, or multiply them"
        ):
            scale_of(lost, model)


def test_a_folded_head_answers_in_the_scores_own_unit(tiny_teacher):
    model, scale = bert(tiny_teacher.config, "LABEL_0").eval(), Scale(100_000.0, 5_000.0)
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    before = copy.deepcopy(model.classifier.state_dict())
    standard = model(**inputs).logits
    with scale.folded(model):
        torch.testing.assert_close(model(**inputs).logits, 5_000 * standard + 100_000)
    for name, value in model.classifier.state_dict().items():
        assert torch.equal(value, before[name])  # to the bit, so that a resumed run is the same
    scale.fold(model)
    assert scale.to_standard(model(**inputs).logits).item() == pytest.approx(standard.item(), abs=1e-5)
    scale.unfold(model)
    torch.testing.assert_close(model(**inputs).logits, standard, rtol=1e-4, atol=1e-5)


# For tuning


def test_an_encoder_gets_a_head_with_the_tasks_labels(save, tiny_student_config):
    folder = save(MiniAlbertForMaskedLM(tiny_student_config))
    model, tokenizer, notes = load_for_tuning(str(folder), TAGS)
    assert isinstance(model, MiniAlbertForTokenClassification)
    assert is_minialbert(model)
    assert notes == []
    assert model_labels(model) == TAGS.labels
    assert model.config.label2id == {"O": 0, "B-Animal": 1, "I-Animal": 2}
    assert tokenizer.pad_token_id == 0
    scorer, _, _ = load_for_tuning(str(folder), SCORE)
    assert (scorer.config.num_labels, scorer.config.problem_type) == (1, "regression")


def test_a_checkpoint_in_half_precision_is_tuned_in_fp32(save, tiny_student_config):
    folder = save(MiniAlbertForMaskedLM(tiny_student_config).to(torch.bfloat16))
    model = load_for_tuning(str(folder), TAGS)[0]
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_dropout_is_that_of_the_recipe_everywhere(save, tiny_student_config, tiny_teacher, tiny_tokenizer):
    student = save(MiniAlbertForMaskedLM(tiny_student_config), "student")
    distil = DistilBertConfig(vocab_size=len(tiny_tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    folders = [
        student, save(tiny_teacher, "bert"), save(DistilBertForSequenceClassification(distil), "distilbert"),
    ]  # fmt: skip
    for folder in folders:
        for rate in (0.0, 0.3):
            model = load_for_tuning(str(folder), task("a", "b"), dropout=rate)[0].train()
            assert dropouts(model) == {rate}
            model.config._attn_implementation = "eager"
            ids = torch.randint(5, 30, (2, 6))
            assert torch.equal(model(ids).logits, model(ids).logits) == (rate == 0)
    assert dropouts(load_for_tuning(str(student), task("a", "b"))[0]) == {0.1}


def test_heads_for_the_same_labels_are_kept(save, tiny_teacher):
    source = bert(tiny_teacher.config, "a", "b")
    model, _, notes = load_for_tuning(str(save(source)), task("a", "b"))
    assert notes == ["head: the checkpoint's"]
    assert torch.equal(model.classifier.weight, source.classifier.weight)


@pytest.mark.parametrize("labels", [("b", "a"), ("a", "c"), ("a", "b", "c")])
def test_heads_for_other_labels_are_new(labels, save, tiny_teacher):
    source = bert(tiny_teacher.config, "a", "b")
    source.classifier.bias.data += 1
    folder = save(source)
    torch.manual_seed(1)
    model, _, notes = load_for_tuning(str(folder), task(*labels))
    assert notes == ["head: new (the checkpoint's is for a, b)"]
    assert model.classifier.weight.shape == (len(labels), 32)
    assert not model.classifier.bias.any()
    assert 0 < float(model.classifier.weight.detach().std()) < 0.05
    assert torch.equal(model.bert.pooler.dense.weight, source.bert.pooler.dense.weight)
    torch.manual_seed(1)
    again = load_for_tuning(str(folder), task(*labels))[0]
    assert torch.equal(again.classifier.weight, model.classifier.weight)


def test_a_new_head_of_a_regression_starts_from_the_mean(
    save, tiny_student_config, tiny_teacher, tiny_tokenizer
):
    distil = DistilBertConfig(vocab_size=len(tiny_tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    folders = [
        save(MiniAlbertForMaskedLM(tiny_student_config), "student"), save(tiny_teacher, "bert"),
        save(DistilBertForSequenceClassification(distil), "distilbert"),
    ]  # fmt: skip
    for folder in folders[:2]:  # whose checkpoints have no head
        model, _, notes = load_for_tuning(str(folder), scores(1.0, 4.0, 2.5, None))
        assert notes == ["head: new, starts from 2.5, the mean of the training scores"]
        assert model.classifier.bias.tolist() == [2.5]
    model, _, notes = load_for_tuning(str(folders[2]), scores(3.0, 4.0))  # a head for two classes
    assert notes == ["head: new, starts from 3.5, the mean of the training scores"]
    assert model.classifier.bias.tolist() == [3.5]
    assert not model.pre_classifier.bias.any()


def test_a_head_that_is_kept_keeps_its_bias(save, tiny_teacher):
    source = bert(tiny_teacher.config, "LABEL_0", problem_type="regression")
    source.classifier.bias.data.fill_(7.0)
    model, _, notes = load_for_tuning(str(save(source)), scores(1.0, 4.0))
    assert notes == ["head: the checkpoint's"]
    assert model.classifier.bias.tolist() == [7.0]


def test_a_regression_without_scores_starts_from_0(save, tiny_teacher):
    model, _, notes = load_for_tuning(str(save(tiny_teacher)), scores(None))
    assert (model.classifier.bias.tolist(), notes) == ([0.0], [])


def test_a_head_whose_parts_have_no_bias_is_renewed_too(save, tiny_tokenizer):
    config = ModernBertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        cls_token_id=2, sep_token_id=3, id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1},
    )  # fmt: skip
    source = ModernBertForSequenceClassification(config)
    model, _, notes = load_for_tuning(str(save(source)), task("x", "y"))
    assert notes == ["head: new (the checkpoint's is for a, b)"]
    assert not torch.equal(model.head.dense.weight, source.head.dense.weight)


def test_weights_that_do_not_fit_the_config(save, tiny_teacher):
    folder = save(tiny_teacher)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "intermediate_size": 48}))
    with pytest.raises(
        UserError, match="do not fit its config.json; missing or of another shape: bert.encoder"
    ):
        load_for_tuning(str(folder), task("a", "b"))
    (folder / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 5}))
    with pytest.raises(UserError, match="missing or of another shape: bert.encoder.layer.4.* …"):
        load_for_tuning(str(folder), task("a", "b"))


def test_damaged_weights(save, tiny_teacher):
    folder = save(tiny_teacher)
    (folder / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(UserError, match="its weights could not be loaded") as caught:
        load_for_tuning(str(folder), task("a", "b"))
    assert "\n" not in str(caught.value)


# Saved and loaded


@pytest.mark.parametrize("described", [TAGS, SCORE, task("a", "b"), task("a", "b", problem="multi-label")])
def test_what_was_saved_comes_back(described, save, tiny_student_config, tmp_path):
    student = save(MiniAlbertForMaskedLM(tiny_student_config), "student")
    model, tokenizer, _ = load_for_tuning(str(student), described)
    inputs = TaskInputs("mine", described.problem, "accuracy", 48, 8)
    save_tuned(model, tokenizer, inputs, tmp_path / "tuned")
    again, other_tokenizer, read = load_tuned(str(tmp_path / "tuned"))
    assert read == inputs
    assert not again.training
    assert other_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert str(tmp_path) not in (tmp_path / "tuned" / "config.json").read_text()


@pytest.mark.parametrize(
    ("labels", "changes", "kind", "problem"),
    [
        (("a", "b"), {}, BertForSequenceClassification, "single-label"),
        (("a",), {}, BertForSequenceClassification, "regression"),
        (
            ("a", "b"),
            {"problem_type": "multi_label_classification"},
            BertForSequenceClassification,
            "multi-label",
        ),
        (("O", "B-X", "I-X"), {}, BertForTokenClassification, "token"),
    ],
)
def test_models_that_others_tuned(labels, changes, kind, problem, save, tiny_teacher):
    folder = save(bert(tiny_teacher.config, *labels, kind=kind, **changes))
    model, _, inputs = load_tuned(str(folder))
    assert isinstance(model, kind)
    assert inputs == TaskInputs("", problem, "", 64, 16)


def test_a_model_without_a_head(save, tiny_teacher):
    folder = save(tiny_teacher)
    with pytest.raises(UserError, match=r"has no task head \(BertForMaskedLM\): give a model that"):
        load_tuned(str(folder))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**values, "architectures": ["BertForSequenceClassification"]})
    )
    with pytest.raises(
        UserError, match=r"no trained head for sequence classification \(missing: .*classifier"
    ):
        load_tuned(str(folder))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"task": "x", "problem": "odd", "metric": "f1", "max_length": 64, "overlap": 8}',
             '{"task": "x", "problem": "token", "metric": "f1", "max_length": 2, "overlap": 8}',
             '{"task": "x", "problem": "token", "metric": "f1", "max_length": null, "overlap": 8}'],
)  # fmt: skip
def test_a_damaged_task_file(text, save, tiny_teacher):
    folder = save(bert(tiny_teacher.config, "a", "b"))
    (folder / "task.json").write_text(text)
    with pytest.raises(UserError, match="task.json is damaged") as caught:
        load_tuned(str(folder))
    assert "\n" not in str(caught.value)


def test_labels_of_another_task(tiny_teacher):
    model = bert(tiny_teacher.config, "a", "b")
    check_labels(model, task("b", "a"), "it")
    with pytest.raises(UserError, match="it was tuned for other labels: it has a, b, mine has a, c"):
        check_labels(model, task("a", "c"), "it")
    with pytest.raises(UserError, match="it has 2 classes, but mine is a regression"):
        check_labels(model, SCORE, "it")


def test_a_tokenizer_without_padding(tiny_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(UserError, match="has no padding token: add one"):
        load_task_tokenizer(str(tmp_path / "tokenizer"), words=True)


def test_byte_level_pieces_of_words_begin_with_their_space(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import RobertaConfig, RobertaTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {
        token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *alphabet])
    }
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    RobertaTokenizerFast(tokenizer_object=backend, vocab=vocabulary, merges=[]).save_pretrained(
        tmp_path / "t"
    )
    RobertaConfig(vocab_size=len(vocabulary)).save_pretrained(tmp_path / "t")
    words = {"is_split_into_words": True, "add_special_tokens": False}
    tokenizer = load_task_tokenizer(str(tmp_path / "t"), words=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer(["a", "b"], **words)["input_ids"]) == [
        "Ġ",
        "a",
        "Ġ",
        "b",
    ]


# From the hub


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Puts a folder where a download leaves it, as me/tuned at a branch; the hub itself cannot be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(folder: Path, branch: str = "main", sha: str = SHA) -> str:
        root = tmp_path / "hub" / "models--me--tuned"
        (root / "refs").mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, root / "snapshots" / sha)
        (root / "refs" / branch).write_text(sha)
        return "me/tuned"

    return put


def test_a_hub_id_gives_what_its_folder_gives(hub, tiny_teacher, tiny_tokenizer, tmp_path, caplog):
    model = bert(tiny_teacher.config, "a", "b", architectures=["BertForSequenceClassification"])
    inputs = TaskInputs("mine", "multi-label", "f1", 24, 8)
    save_tuned(model, tiny_tokenizer, inputs, tmp_path / "new")
    save_tuned(model, tiny_tokenizer, replace(inputs, max_length=16), tmp_path / "old")
    settings = tmp_path / "old" / "tokenizer.json"
    values = json.loads(settings.read_text())
    vocabulary = values["model"]["vocab"]
    vocabulary["the"], vocabulary["king"] = vocabulary["king"], vocabulary["the"]
    settings.write_text(json.dumps(values))
    name = hub(tmp_path / "new")
    hub(tmp_path / "old", "v1", SHA[::-1])
    for revision, folder in ((None, "new"), ("v1", "old"), (SHA[::-1], "old")):
        loaded, tokenizer, found = load_tuned(name, revision=revision)
        assert found == read_task_file(tmp_path / folder) == load_tuned(str(tmp_path / folder))[2]
        assert (
            tokenizer("The KING").input_ids
            == load_task_tokenizer(str(tmp_path / folder), words=False)("The KING").input_ids
        )
        with on_disk(loaded) as place:  # a live model from there, too
            assert load_tuned(place)[2] == found
    assert tokenizer("The KING").input_ids != tiny_tokenizer("The KING").input_ids
    assert "could not be asked" not in caplog.text


def test_what_could_not_be_asked_is_said(hub, tiny_teacher, tiny_tokenizer, tmp_path, caplog):
    save_tuned(
        bert(tiny_teacher.config, "a", "b"),
        tiny_tokenizer,
        TaskInputs("mine", "single-label", "f1", 24, 8),
        tmp_path / "m",
    )
    (tmp_path / "m" / "task.json").unlink()
    name = hub(tmp_path / "m")
    with caplog.at_level(logging.WARNING, "minialbert"):
        assert read_task_file(name) is None
    assert "me/tuned: the hub could not be asked for its task.json" in caplog.text
    caplog.clear()
    (tmp_path / "hub" / "models--me--tuned" / ".no_exist" / SHA).mkdir(parents=True)
    (tmp_path / "hub" / "models--me--tuned" / ".no_exist" / SHA / "task.json").touch()
    assert read_task_file(name) is None and not caplog.records
    assert read_task_file(tmp_path / "m") is None


def test_ids_beyond_the_word_table_are_refused_before_tuning(tiny_teacher_dir, tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["zzz1"])
    tokenizer.save_pretrained(tiny_teacher_dir)
    with pytest.raises(
        UserError, match=f"ids beyond the {len(tiny_tokenizer)} rows of the model's word table"
    ):
        load_for_tuning(str(tiny_teacher_dir), task("a", "b"))
