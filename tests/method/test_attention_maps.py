"""Attention maps: against Transformers' own, from a run and from the command line, and what is refused."""

from __future__ import annotations

import base64
import copy
import json
import os
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    LongformerConfig,
    LongformerForMaskedLM,
    MPNetConfig,
    MPNetForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from minialbert import MiniAlbertForMaskedLM
from minialbert.errors import UserError
from minialbert.method.attention_files import (
    MAX_TOKENS,
    decode_map,
    read_attention_maps,
    row_overlap,
    write_attention_maps,
)
from minialbert.method.attention_maps import SENTENCES, attention_maps, compare_attention
from minialbert.method.distill import distill, initialise
from minialbert.method.encoders import Teacher
from minialbert.recipes.load import apply_overrides, load_recipe

SPELT = ("the cat sat on the mat", "a big red dog ran in the sun")
SHAPE = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 66,
}  # fmt: skip
TEACHERS = {
    "bert": (BertForMaskedLM, BertConfig, SHAPE),
    "roberta": (RobertaForMaskedLM, RobertaConfig, SHAPE),
    "mpnet": (MPNetForMaskedLM, MPNetConfig, SHAPE),  # eager alone
    "distilbert": (
        DistilBertForMaskedLM,
        DistilBertConfig,
        {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 66},
    ),
}


@pytest.fixture
def student(tiny_student_config):
    torch.manual_seed(3)
    return MiniAlbertForMaskedLM(tiny_student_config)


@pytest.fixture
def tiny_maps(tiny_teacher, student, tiny_tokenizer):
    def make(teacher=None, **changes):
        arguments = {
            "layers": (2, 4), "sentences": SPELT, "teacher_name": "big", "student_name": "small", **changes,
        }  # fmt: skip
        model = arguments.pop("student", student)
        return attention_maps(Teacher(teacher or tiny_teacher, True), model, tiny_tokenizer, **arguments)

    return make


def own_maps(model, tokenizer, text):
    """Transformers' own maps of all layers, quantised."""
    model = copy.deepcopy(model).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(**tokenizer(text, return_tensors="pt"), output_attentions=True).attentions
    return [np.rint(255 * rows[0].double().numpy()) for rows in attentions]


def assert_same(encoded, expected):
    found = decode_map(encoded, *expected.shape[:2]).astype(float)
    assert np.abs(found - expected).max() <= 1  # 1 where the two sums fall on both sides of a half
    assert (found != expected).mean() < 0.01


@pytest.mark.parametrize("family", TEACHERS)
def test_maps_are_transformers_own(family, tiny_maps, student, tiny_tokenizer):
    model_class, config_class, shape = TEACHERS[family]
    config = config_class(vocab_size=len(tiny_tokenizer), pad_token_id=0, initializer_range=0.5, **shape)
    torch.manual_seed(0)
    teacher = model_class(config)
    maps = tiny_maps(teacher, layers=(1, 3))
    assert {name: maps[name] for name in maps if name != "sentences"} == {
        "format_version": 1, "teacher": "big", "student": "small", "layer_map": [1, 3], "teacher_heads": 4,
        "student_heads": 4,
    }  # fmt: skip
    for sentence, text in zip(maps["sentences"], SPELT, strict=True):
        assert sentence["text"] == text
        assert sentence["tokens"] == tiny_tokenizer(text).tokens()
        of_teacher = own_maps(teacher, tiny_tokenizer, text)
        assert_same(sentence["teacher"][0], of_teacher[0])
        assert_same(sentence["teacher"][1], of_teacher[2])
        for encoded, expected in zip(
            sentence["student"], own_maps(student, tiny_tokenizer, text), strict=True
        ):
            assert_same(encoded, expected)


def test_a_fully_parameterised_student_with_fewer_heads(tiny_maps, tiny_tokenizer):
    torch.manual_seed(5)
    shape = SHAPE | {"num_hidden_layers": 3, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(vocab_size=len(tiny_tokenizer), **shape))
    maps = tiny_maps(student=bert, layers=())
    assert maps["layer_map"] == [2, 3, 4]  # spread evenly, to the last layer
    assert (maps["teacher_heads"], maps["student_heads"]) == (4, 2)
    for sentence, text in zip(maps["sentences"], SPELT, strict=True):
        for encoded, expected in zip(sentence["student"], own_maps(bert, tiny_tokenizer, text), strict=True):
            assert_same(encoded, expected)
    assert all(0 < figure <= 1 for figure in row_overlap(maps))


@pytest.mark.parametrize("training", [True, False])
def test_models_and_random_numbers_stay_as_they_were(training, tiny_teacher, student, tiny_tokenizer):
    student.train(training)
    student.minialbert.embeddings.eval()
    student.set_attn_implementation("eager")
    teacher = Teacher(tiny_teacher, True)
    teacher.model.train(training).to(torch.bfloat16)
    models = (teacher.model, student)

    def state():
        return [
            (
                [module.training for module in model.modules()],
                model.config._attn_implementation,
                {name: weight.clone() for name, weight in model.state_dict().items()},
                [weight.requires_grad for weight in model.parameters()],
            )
            for model in models
        ]

    before, random = state(), torch.get_rng_state()
    attention_maps(teacher, student, tiny_tokenizer, layers=(2, 4), teacher_name="t", student_name="s")
    assert torch.equal(torch.get_rng_state(), random)
    for one, other in zip(before, state(), strict=True):
        assert one[:2] == other[:2] and one[3] == other[3]
        for name, weight in one[2].items():
            assert weight.dtype == other[2][name].dtype and torch.equal(weight, other[2][name]), name


def test_dropout_and_half_precision_do_not_show(tiny_maps, tiny_teacher, student):
    """A teacher in half precision reads in fp32: with the rounded weights, and no rounding after that."""
    rounded = copy.deepcopy(tiny_teacher).to(torch.bfloat16)
    upcast = copy.deepcopy(rounded).float()
    assert tiny_maps(rounded) == tiny_maps(upcast)
    student.config.attention_probs_dropout_prob = student.config.hidden_dropout_prob = 0.5
    dropping = MiniAlbertForMaskedLM(student.config).train()
    dropping.load_state_dict(student.state_dict())
    assert tiny_maps(student=dropping)["sentences"] == tiny_maps()["sentences"]


def test_a_long_sentence_is_cut(tiny_maps, tiny_tokenizer):
    text = "the cat sat " * 40
    (sentence,) = tiny_maps(sentences=[text])["sentences"]
    assert sentence["text"] == text
    whole = tiny_tokenizer(text).tokens()
    assert sentence["tokens"] == [*whole[: MAX_TOKENS - 1], whole[-1]]
    assert len(base64.b64decode(sentence["teacher"][0])) == 4 * MAX_TOKENS**2


def test_an_iteration_without_a_layer_is_shown_beside_one_of_the_same_depth(tiny_maps):
    assert tiny_maps(layers=(0, 3)) == tiny_maps(layers=(2, 3))
    assert tiny_maps(layers=(0, 0)) == tiny_maps(layers=()) == tiny_maps(layers=(2, 4))


def test_what_cannot_be_shown_is_refused(tiny_maps, tiny_tokenizer):
    with pytest.raises(UserError, match="iteration 2 with teacher layer 9"):
        tiny_maps(layers=(2, 9))
    with pytest.raises(UserError, match="3 entries but the student has 2"):
        tiny_maps(layers=(2, 3, 4))
    for sentences, message in (
        (["the cat", " \n"], "sentence 2 is empty"),
        (["a" * 1001], "1,001 letters"),
        (["\ud800"], "UTF-8"),
        ([], "found 0"),
        (["a"] * 101, "found 101"),
    ):
        with pytest.raises(UserError, match=message):
            tiny_maps(sentences=sentences)
    sliding = LongformerForMaskedLM(
        LongformerConfig(vocab_size=len(tiny_tokenizer), attention_window=4, pad_token_id=0, **SHAPE)
    )
    with pytest.raises(UserError, match="kind longformer does not show a row"):
        tiny_maps(sliding)


def test_the_sentences_are_short_and_the_first_is_that_of_figure_3():
    assert SENTENCES[0] == "This is the first book I've ever done"
    assert len(set(SENTENCES)) == 5
    assert all(len(text.split()) <= 10 for text in SENTENCES)


def made_up(teacher, student):
    """Maps of one sentence of two tokens from probabilities of shape (iterations, heads, 2, 2)."""

    def encoded(rows):
        levels = np.rint(255 * np.asarray(rows)).astype(np.uint8)
        return [base64.b64encode(one.tobytes()).decode() for one in levels]

    return {
        "format_version": 1, "teacher": "t", "student": "s", "layer_map": [2],
        "teacher_heads": np.shape(teacher)[1], "student_heads": np.shape(student)[1],
        "sentences": [
            {"text": "a", "tokens": ["a", "b"], "teacher": encoded(teacher), "student": encoded(student)}
        ],
    }  # fmt: skip


def test_row_overlap_by_hand():
    same, first, second = [[0.6, 0.4], [0.2, 0.8]], [[1, 0], [1, 0]], [[0, 1], [0, 1]]
    assert row_overlap(made_up([[same]], [[same]])) == [1]
    assert row_overlap(made_up([[first]], [[second]])) == [0]
    assert row_overlap(made_up([[first]], [[same]])) == [pytest.approx(0.4)]  # (0.6 + 0.2) / 2
    assert row_overlap(made_up([[first, same]], [[same, same]])) == [pytest.approx(0.7)]
    # Means over heads, (0.5, 0.5) in each row, against the single head: (0.9 + 0.7) / 2.
    assert row_overlap(made_up([[first, second]], [[same]])) == [pytest.approx(0.8, abs=0.003)]


@pytest.fixture
def file(tiny_maps, tmp_path):
    path = tmp_path / "attention.json"
    write_attention_maps(path, tiny_maps())
    return path


def test_what_was_written_is_read(file, tiny_maps):
    assert read_attention_maps(file) == tiny_maps()
    assert [path.name for path in file.parent.iterdir()] == ["attention.json"]


def _sentence(field, value):
    return lambda maps: maps["sentences"][1].update({field: value})


BROKEN = [
    (lambda maps: maps.update(format_version=2), "format_version"),
    (lambda maps: maps.update(format_version=True), "format_version"),
    (lambda maps: maps.update(format_version=1.0), "format_version"),
    (lambda maps: maps.update(layer_map=[2, 4.0]), "layer_map.1"),
    (lambda maps: maps.update(teacher=None), "teacher: Input should be a valid string"),
    (lambda maps: maps.update(student="s" * 1001), "student: String should have at most 1000"),
    (lambda maps: maps.pop("layer_map"), "layer_map"),
    (lambda maps: maps.update(layer_map=[2, -4]), "layer_map.1"),
    (lambda maps: maps.update(layer_map=[2, "4"]), "layer_map.1"),
    (lambda maps: maps.update(layer_map=[2, True]), "layer_map.1"),
    (lambda maps: maps.update(layer_map=[0, 4]), "layer_map.0"),
    (lambda maps: maps.update(layer_map=[2]), r"sentences.0.teacher: 2 maps, and layer_map has 1"),
    (lambda maps: maps.update(teacher_heads=0), "teacher_heads"),
    (lambda maps: maps.update(teacher_heads=10**9), "teacher_heads"),
    (lambda maps: maps.update(student_heads=3), r"sentences.0.student.0: .* letters"),
    (lambda maps: maps.update(student_heads=4.5), "student_heads"),
    (lambda maps: maps.update(sentences=[]), "sentences: List should have at least 1"),
    (lambda maps: maps.update(sentences={}), "sentences"),
    (lambda maps: maps.update(sentences=maps["sentences"] * 21), "sentences: List should have at most 20"),
    (lambda maps: maps.update(more=1), "entries that no version of this program writes"),
    (lambda maps: maps["sentences"].append([]), "sentences.2"),
    (_sentence("text", ""), "sentences.1.text"),
    (_sentence("text", ["a"]), "sentences.1.text"),
    (_sentence("tokens", []), "sentences.1.tokens"),
    (_sentence("tokens", ["a"] * 49), "sentences.1.tokens: List should have at most 48"),
    (_sentence("tokens", ["a", 5]), "sentences.1.tokens.1"),
    (_sentence("tokens", ["a"]), r"sentences.1.teacher.0: .* letters, and 8 are 4 bytes"),
    (_sentence("student", "AAAA"), "sentences.1.student"),
    (_sentence("student", [None, None]), "sentences.1.student.0"),
    (_sentence("teacher", [5, 6]), r"sentences.1.teacher.0"),
    (lambda maps: maps["sentences"][1]["student"].append("A" * 4), r"sentences.1.student: 3 maps"),
    (lambda maps: maps["sentences"][1].update(onclick="x"), "entries that no version"),
]


@pytest.mark.parametrize(("breaks", "message"), BROKEN)
def test_broken_fields_are_named(breaks, message, file):
    maps = json.loads(file.read_text())
    breaks(maps)
    file.write_text(json.dumps(maps))
    with pytest.raises(UserError, match=message) as caught:
        read_attention_maps(file)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda text: "é" + text[1:], lambda text: "\n" + text[1:], lambda text: "====" + text[4:]]
)
def test_what_is_not_base64_is_refused(change, file):
    maps = json.loads(file.read_text())
    maps["sentences"][0]["student"][1] = change(maps["sentences"][0]["student"][1])
    file.write_text(json.dumps(maps))
    with pytest.raises(UserError, match=r"sentences.0.student.1: it is not base64"):
        read_attention_maps(file)


def test_base64_of_as_many_letters_for_more_bytes_is_refused(file):
    maps = json.loads(file.read_text())
    encoded = maps["sentences"][0]["student"][1]
    assert encoded.endswith("==")  # 4 heads, 14 tokens: 784 bytes, one more than 261 times 3
    maps["sentences"][0]["student"][1] = encoded[:-4] + "AAAA"
    file.write_text(json.dumps(maps))
    with pytest.raises(UserError, match=r"sentences.0.student.1: 786 bytes, not 784"):
        read_attention_maps(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"format_version": 1', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON|nested"),
        (b"1" * 5000, "not JSON"),
        (b"[]", "holds no attention maps"),
        (b"null", "holds no attention maps"),
        (b'{"teacher": "\\ud800"}', "holds no attention maps"),
        (b'{"teacher_heads": NaN}', "holds no attention maps"),
    ],
)
def test_a_file_of_something_else_is_refused(content, message, file):
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_attention_maps(file)
    assert str(file) in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path, file, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "nowhere"):
        with pytest.raises(UserError, match="is not a file"):
            read_attention_maps(path)
    monkeypatch.setattr("minialbert.method.attention_files._MOST_BYTES", file.stat().st_size - 1)
    with pytest.raises(UserError, match="is larger than"):
        read_attention_maps(file)


def recipe(teacher, *overrides):
    settings = ["student.adapter_reduction_factor=8", "training.eval_windows=8"]
    named = [] if teacher is None else [f"teacher.model='{teacher}'"]
    return apply_overrides(load_recipe("tiny"), [*settings, *named, *overrides])


def test_a_run_leaves_the_maps_of_its_student(distilled, tiny_teacher_dir, tiny_windows, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(distilled, run)
    maps = read_attention_maps(run / "attention.json")
    assert (maps["teacher"], maps["layer_map"], maps["teacher_heads"]) == ("teacher", [2, 4], 4)
    assert [sentence["text"] for sentence in maps["sentences"]] == list(SENTENCES)
    again = compare_attention(run / "model", tiny_teacher_dir, layers=(2, 4))
    assert again["sentences"] == maps["sentences"]  # of the student as it was saved
    # Hidden states alone, of one iteration: the maps are shown of what was matched.
    distill(
        None,
        tiny_windows,
        recipe=recipe(
            tiny_teacher_dir, "distill.attention_weight=0", "distill.layer_map=[0,3]", "training.max_steps=1"
        ),
        output=run,
        overwrite=True,
    )
    assert read_attention_maps(run / "attention.json")["layer_map"] == [2, 3]


def test_a_run_without_teacher_has_none_and_removes_those_of_another(tiny_windows, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("attention.json", ".attention.json.partial"):
        (run / name).write_text("{}")
    chosen = recipe(None, "student.init=random", "training.max_steps=1")
    distill(None, tiny_windows, recipe=chosen, output=run, overwrite=True)
    assert (run / "result.json").is_file()
    assert not list(run.glob("*attention.json*"))


def test_a_student_as_it_starts_has_maps_too(tiny_teacher_dir, tiny_windows, tmp_path):
    initialise(recipe(tiny_teacher_dir), data=tiny_windows, output=tmp_path / "start")
    maps = read_attention_maps(tmp_path / "start" / "attention.json")
    assert maps["sentences"] == compare_attention(tmp_path / "start" / "model", tiny_teacher_dir)["sentences"]


def test_a_run_that_was_killed_before_its_maps_is_resumed(
    distilled, tiny_teacher_dir, tiny_windows, tmp_path, monkeypatch
):
    from minialbert.method import distill as distillation

    killed = tmp_path / "killed"

    def start(**arguments):
        distill(None, tiny_windows, recipe=recipe(tiny_teacher_dir), output=killed, **arguments)

    with monkeypatch.context() as patch:

        def die(*_):
            raise KeyboardInterrupt

        patch.setattr(distillation, "write_attention_maps", die)
        with pytest.raises(KeyboardInterrupt):
            start()
    assert (killed / "model").is_dir()
    assert not (killed / "attention.json").exists() and not (killed / "result.json").exists()
    start(resume=True)
    assert (killed / "attention.json").read_bytes() == (distilled / "attention.json").read_bytes()


def test_the_verb(call, tiny_student_dir, tiny_teacher_dir, tmp_path):
    output = tmp_path / "new" / "maps.json"
    common = ("attention", "--model", tiny_student_dir, "--teacher", tiny_teacher_dir, "--output", output)
    status, out, _ = call(*common)
    assert status == 0
    maps = read_attention_maps(output)
    assert maps == compare_attention(tiny_student_dir, tiny_teacher_dir)
    for iteration, (layer, figure) in enumerate(zip([2, 4], row_overlap(maps), strict=True), 1):
        assert f"{iteration}{layer}{figure:.3f}" in "".join(out.replace("│", "").split())
    assert f"attention maps of 5 sentences in {output}" in out
    options = ("--layer-map", "1,3", "--sentence", SPELT[0], "--sentence", SPELT[1], "--overwrite")
    status, out, _ = call(*common, *options, "--json")
    assert status == 0
    record = json.loads(out)
    assert (record["student"], record["teacher"], record["layer_map"]) == ("student", "teacher", [1, 3])
    maps = read_attention_maps(output)
    assert [sentence["text"] for sentence in maps["sentences"]] == list(SPELT)
    assert record["row_overlap"] == row_overlap(maps)


def test_mistakes_at_the_command_line(refuse, tiny_student_dir, tiny_teacher, tiny_teacher_dir, tmp_path):
    def told(*options, model=tiny_student_dir, teacher=tiny_teacher_dir, output=tmp_path / "maps.json"):
        return refuse(
            "attention", "--model", model, "--teacher", teacher, "--output", output, *options
        )  # fmt: skip

    assert "sentence 1 is empty" in told("--sentence", " ")
    assert "does not exist" in told(model=tmp_path / "nowhere")
    assert "does not exist" in told(teacher=tmp_path / "nowhere")
    for which in ("model", "teacher"):
        cut = shutil.copytree(
            {"model": tiny_student_dir, "teacher": tiny_teacher_dir}[which], tmp_path / f"cut-{which}"
        )
        (cut / "model.safetensors").write_bytes(b"")
        role = {"model": "student", "teacher": "teacher"}[which]
        assert f"{role} {cut}: its weights could not be loaded" in told(**{which: cut})
    assert "teacher layer 5, but the teacher has layers 1-4" in told("--layer-map", "2,5")
    assert "3 entries but the student has 2 iterations" in told("--layer-map", "1,2,3")
    for wrong in ("2,x", "", "1,,2", "-1,2", "²,3", "9" * 5000):
        assert "divided by commas" in told(f"--layer-map={wrong}")
    assert "counted from 1" in told("--layer-map", "0,2")
    assert "is a directory" in told(output=tmp_path)
    larger = BertConfig(**tiny_teacher.config.to_dict() | {"vocab_size": 200})
    BertForMaskedLM(larger).save_pretrained(tmp_path / "larger")
    assert "200" in told(teacher=tmp_path / "larger")
    assert not (tmp_path / "maps.json").exists()
    (tmp_path / "maps.json").write_text("mine")
    assert "give --overwrite" in told()
    assert (tmp_path / "maps.json").read_text() == "mine"
