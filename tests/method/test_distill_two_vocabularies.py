"""A student that learns from a teacher with another tokenizer: the whole run, its start, and what is refused."""

import os
import signal

import pytest
import torch
from conftest import _teacher
from transformers import BertTokenizer

from minialbert import DistillationObjective
from minialbert.data.prepare import make_windows
from minialbert.errors import UserError
from minialbert.method.costs import distillation_price, forward_flops_per_token
from minialbert.method.distill import distill
from minialbert.method.encoders import Teacher
from minialbert.method.objective import register_loss
from minialbert.method.plan import plan_distillation
from minialbert.method.trainer import DistillationTrainer
from minialbert.recipes.load import apply_overrides, load_recipe

CUT = {"window_length": 32, "overlap": 8, "held_out_fraction": 0.15, "num_workers": 1, "progress": False}


@pytest.fixture(scope="module")
def own_tokenizer(tiny_tokenizer):
    """A cased tokenizer with the letters of the tiny one and a few words, of which the tiny one lacks one."""
    letters = [word for word in tiny_tokenizer.get_vocab() if len(word.removeprefix("##")) == 1]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(letters), "the", "house", "cat"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=False)


@pytest.fixture(scope="module")
def own_windows(own_tokenizer, tiny_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "w"
    make_windows([tiny_corpus], own_tokenizer, folder, **CUT)
    return folder


def recipe(teacher, *overrides):
    settings = ["student.own_vocabulary=true", "student.adapter_reduction_factor=8", "training.batch_size=4"]
    settings += ["training.eval_windows=4", "training.eval_steps=100"]
    named = [] if teacher is None else [f"teacher.model='{teacher}'"]
    return apply_overrides(load_recipe("tiny"), [*settings, *named, *overrides])


LEARNING = [
    "training.max_steps=10",
    "training.learning_rate=1e-2",
    "student.init=random",
    "training.save_steps=5",
]


@pytest.fixture(scope="module")
def learnt(own_windows, tiny_tokenizer, tmp_path_factory):
    """The result of a run that learns, its directory, and its teacher's."""
    folder = tmp_path_factory.mktemp("learnt")
    _teacher(tiny_tokenizer).save_pretrained(folder / "teacher")
    tiny_tokenizer.save_pretrained(folder / "teacher")
    chosen = recipe(folder / "teacher", *LEARNING)
    result = distill(None, own_windows, recipe=chosen, output=folder / "run", progress=False)
    return result, folder / "run", folder / "teacher"


@pytest.fixture
def run(tiny_teacher_dir, own_windows, tmp_path):
    def start(*overrides, output="run", teacher=tiny_teacher_dir, data=own_windows, **arguments):
        chosen = recipe(teacher, *overrides)
        return distill(None, data, recipe=chosen, output=tmp_path / output, progress=False, **arguments)

    return start


def test_a_student_of_another_vocabulary_learns(learnt, own_tokenizer):
    result, folder, _ = learnt
    record = result.record
    first, last = (record["metrics"][name] for name in ("student_start", "student_end"))
    assert last["cosine_1"] > first["cosine_1"] + 0.1 and last["cosine_2"] > first["cosine_2"] + 0.1
    assert last["mlm_loss"] < first["mlm_loss"] and "output_kl" not in last and "attention_kl_1" not in last
    assert result.tokenizer.get_vocab() == own_tokenizer.get_vocab()
    assert result.model.config.vocab_size == len(own_tokenizer)
    assert "teacher" not in record["metrics"] and not (folder / "attention.json").exists()
    weights = {
        name: record["objective"][f"{name}_weight"] for name in ("attention", "output", "hidden", "mlm")
    }
    assert weights == {"attention": 0, "output": 0, "hidden": 3, "mlm": 1}
    assert record["recipe"]["student"]["own_vocabulary"] is True
    [note] = [note for note in record["notes"] if note.startswith("two vocabularies")]
    assert '"\' s dose 1. 5 mg" for ' in note  # the unknown word is left out
    assert "compared for 100.0% of the tokens; attention rows, relations and predictions are not" in note


def test_a_stopped_run_resumes_to_the_same_student(learnt, run, monkeypatch):
    whole, _, teacher = learnt
    original, calls = DistillationTrainer.training_step, []

    def stop_in_the_sixth_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DistillationTrainer, "training_step", stop_in_the_sixth_step)
        with pytest.raises(KeyboardInterrupt):
            run(*LEARNING, teacher=teacher)
    resumed = run(*LEARNING, teacher=teacher, resume=True)
    assert same_weights(whole.model, resumed.model)
    assert whole.record["training"]["last_logged_losses"] == resumed.record["training"]["last_logged_losses"]


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for (_, a), b in pairs)


def test_equal_tokens_give_the_student_of_one_vocabulary(run, tiny_teacher, tiny_tokenizer, tmp_path):
    """A teacher whose tokenizer has one more word, which no text has, reads what the student reads."""
    (tmp_path / "texts.txt").write_text(
        "\n\n".join(["the house of the king", "a small river by the city"] * 8)
    )
    make_windows([tmp_path / "texts.txt"], tiny_tokenizer, tmp_path / "w", **CUT)
    more = BertTokenizer(
        vocab={**tiny_tokenizer.get_vocab(), "more": len(tiny_tokenizer)}, do_lower_case=True
    )
    tiny_teacher.save_pretrained(tmp_path / "one")
    tiny_tokenizer.save_pretrained(tmp_path / "one")
    tiny_teacher.resize_token_embeddings(len(more), mean_resizing=False)
    tiny_teacher.save_pretrained(tmp_path / "two")
    more.save_pretrained(tmp_path / "two")
    off = ["distill.output_weight=0", "distill.attention_weight=0", "training.pack_windows=false"]
    off += ["data.mask_probability=0.5", "training.max_steps=2"]
    one, two = (
        run(*off, output=f"run-{name}", teacher=tmp_path / name, data=tmp_path / "w")
        for name in ("one", "two")
    )
    losses = [result.record["training"]["last_logged_losses"] for result in (one, two)]
    assert losses[0] == losses[1] and losses[0]["loss_hidden"] > 0
    assert same_weights(one.model, two.model)
    assert any(note.startswith("one vocabulary") for note in one.record["notes"])
    assert any(note.startswith("two vocabularies") for note in two.record["notes"])


def test_a_student_starts_from_the_teachers_words(
    tiny_teacher_dir, tiny_teacher, tiny_tokenizer, own_tokenizer, own_windows
):
    theirs = tiny_teacher.get_input_embeddings().weight
    ours, ids = own_tokenizer.get_vocab(), tiny_tokenizer.get_vocab()
    pieces = tiny_tokenizer("cat", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    student = plan_distillation(recipe(tiny_teacher_dir, "student.embedding_size=null"), own_windows).student
    table, bias = student.minialbert.embeddings.word_embeddings.weight, student.mlm_head.decoder.bias
    for word in ("the", "house", "##t", "[CLS]"):
        assert torch.equal(table[ours[word]], theirs[ids[word]])
        assert torch.equal(bias[ours[word]], tiny_teacher.get_output_embeddings().bias[ids[word]])
    assert torch.allclose(table[ours["cat"]], theirs[pieces].mean(0))
    low_rank = plan_distillation(recipe(tiny_teacher_dir), own_windows)
    assert any(note.startswith("embedding projection: least squares") for note in low_rank.notes)
    full = [
        "student.arch=bert", "student.init=alternate-layers", "student.embedding_size=null",
        "student.adapter_reduction_factor=null",
    ]  # fmt: skip
    bert = plan_distillation(recipe(tiny_teacher_dir, *full), own_windows).student
    assert torch.equal(bert.get_input_embeddings().weight[ours["house"]], theirs[ids["house"]])
    assert torch.equal(bert.get_output_embeddings().weight[ours["house"]], theirs[ids["house"]])


def test_the_price_counts_what_the_teacher_reads(tiny_teacher_dir, own_windows):
    plan = plan_distillation(recipe(tiny_teacher_dir), own_windows)
    assert 0.5 < plan.teacher_share < 1.5 and plan.teacher_share != 1 and not plan.packs
    more = type(plan)(**{**vars(plan), "teacher_share": plan.teacher_share + 1})
    added = distillation_price(more).flops - distillation_price(plan).flops
    assert added == pytest.approx(forward_flops_per_token(plan.teacher.model.config, 32))


def test_vectors_of_texts_in_memory_are_learnt_too(tiny_teacher_dir, own_tokenizer, tmp_path):
    texts = ["the house of the king", "a small river", "the cat and the city"] * 8
    chosen = recipe(tiny_teacher_dir, "distill.preset=embeddings", "training.max_steps=2")
    record = distill(
        str(tiny_teacher_dir), texts, recipe=chosen, tokenizer=own_tokenizer, output=tmp_path / "run",
        progress=False,
    ).record  # fmt: skip
    assert any(note.startswith("two vocabularies") for note in record["notes"])
    assert -1 < record["metrics"]["student_end"]["vector_cosine"] < 1
    assert {"loss_vector", "loss_similarity", "loss_hidden"} <= set(record["training"]["last_logged_losses"])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["distill.output_weight=5"],
            "distill.output_weight is 5, but predictions of two vocabularies cannot be compared",
        ),
        (
            ["training.cache_teacher=true"],
            "training.cache_teacher keeps nothing for a student.own_vocabulary",
        ),
        (["distill.hidden_weight=0", "distill.mlm_weight=0"], "nothing is left to learn"),
    ],
)
def test_what_two_vocabularies_rule_out(run, overrides, expected):
    with pytest.raises(UserError, match=expected) as caught:
        run(*overrides)
    assert "\n" not in str(caught.value)


def test_tokenizers_that_cannot_be_used(tiny_teacher, own_windows):
    class Slow:
        is_fast, name_or_path, get_vocab = False, "some/slow", staticmethod(lambda: {"the": 0})

    for tokenizer, expected in ((None, "needs the teacher's tokenizer"), (Slow(), "has no fast backend")):
        with pytest.raises(UserError, match=expected):
            plan_distillation(recipe(None), own_windows, teacher=Teacher(tiny_teacher, True, tokenizer))
    register_loss("of_rows", needs=("attention_rows",))(lambda *_: torch.zeros(()))
    with pytest.raises(UserError, match="may read hidden states alone"):
        DistillationObjective(extra={"of_rows": 1.0}).for_two_vocabularies()


def test_two_vocabularies_from_the_command_line(call, tiny_teacher_dir, own_windows, tmp_path):
    command = ["distill", "--recipe", "tiny", "--teacher", tiny_teacher_dir, "--data", own_windows]
    command += ["--output", tmp_path / "run"]
    code, _, said = call(*command)
    assert code == 2 and "student.own_vocabulary=true" in said
    command += ["--set", "student.own_vocabulary=true"]
    code, _, said = call(*command, "--set", "distill.output_weight=1")
    assert code == 2 and "cannot be compared: set it to 0" in said and not (tmp_path / "run").exists()
