"""Vectors of texts: pooling, what they are trained for, and a student that learnt them, by hand and by SciPy."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch.nn import functional
from transformers import AutoModel, BertModel

import minialbert
from minialbert import MiniAlbertModel, distill
from minialbert.data.masking import MaskedLanguageModelCollator
from minialbert.errors import UserError
from minialbert.method.distill import distillation_recipe
from minialbert.method.encoders import find_pooling
from minialbert.method.objective import DistillationObjective
from minialbert.method.plan import plan_distillation
from minialbert.method.sentence_vectors import (
    Dense,
    Pooling,
    VectorObjective,
    read_pooling,
    similarity_correlation,
    write_pooling,
)

# Two texts of 3 and 1 tokens.
STATES = torch.tensor([[[1.0, 5.0], [3.0, 1.0], [2.0, 0.0]], [[4.0, -2.0], [9.0, 9.0], [9.0, 9.0]]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]])


def finder(folder):
    return lambda file: path if (path := folder / file).is_file() else None


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [[2.0, 2.0], [4.0, -2.0]]),
        ("cls", [[1.0, 5.0], [4.0, -2.0]]),
        ("max", [[3.0, 5.0], [4.0, -2.0]]),
        ("mean_sqrt_len_tokens", [[6 / 3**0.5, 6 / 3**0.5], [4.0, -2.0]]),
    ],
)
def test_a_vector_of_each_text(mode, expected):
    pooling = Pooling(mode, normalize=False)
    torch.testing.assert_close(pooling(STATES, {"attention_mask": MASK}), torch.tensor(expected))


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "mean_sqrt_len_tokens"])
def test_texts_that_share_a_row_have_the_same_vectors(mode):
    states = torch.randn(2, 6, 4)
    packed = {
        "sequence_ids": torch.tensor([[0, 0, 0, 1, 1, -1], [0, 1, 1, 1, -1, -1]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]),
    }
    apart = [states[0, :3], states[0, 3:5], states[1, :1], states[1, 1:4]]
    pooling = Pooling(mode)
    alone = [
        pooling(one[None], {"attention_mask": torch.ones(1, len(one), dtype=torch.long)}) for one in apart
    ]
    torch.testing.assert_close(pooling(states, packed), torch.cat(alone))


def test_maps_come_after_pooling_and_length_one_in_the_end():
    dense = Dense(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0.0, 0.0, 1.0]), "Tanh")
    vectors = Pooling(dense=(dense,))(STATES, {"attention_mask": MASK})
    by_hand = torch.tanh(torch.tensor([[2.0, 2.0, 5.0], [4.0, -2.0, 3.0]]))
    torch.testing.assert_close(vectors, functional.normalize(by_hand, dim=-1))


def test_what_is_written_is_read(tmp_path):
    pooling = Pooling(
        "cls",
        (Dense(torch.randn(3, 2)), Dense(torch.randn(4, 3), torch.randn(4), "Tanh")),
        True,
        {"query": "q: "},
    )
    files = write_pooling(tmp_path, pooling, width=2, max_tokens=32)
    assert all((tmp_path / file).is_file() for file in files)
    read = read_pooling("here", finder(tmp_path))
    assert (read.mode, read.normalize, read.prompts, read.max_tokens) == ("cls", True, {"query": "q: "}, 32)
    batch = {"attention_mask": MASK}
    torch.testing.assert_close(read(STATES, batch), pooling(STATES, batch))


def test_a_folder_without_modules_is_the_mean(tmp_path):
    read = read_pooling("here", finder(tmp_path))
    assert (read.mode, read.normalize, read.dense) == ("mean", False, ())


_KINDS = "sentence_transformers.models"
FIRST, POOLING = (
    {"type": f"{_KINDS}.{kind}", "path": at}
    for kind, at in {"Transformer": "", "Pooling": "1_Pooling"}.items()
)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([FIRST, {"type": f"{_KINDS}.LSTM", "path": "1"}], "has the modules Transformer, LSTM"),
        ([{"type": "their.Transformer", "path": ""}, POOLING], "has the modules their.Transformer, Pooling"),
        ([FIRST, POOLING | {"path": "../other"}], "names a folder outside of the model"),
        ([FIRST, POOLING], "has no 1_Pooling/config.json"),
        (POOLING, "should hold a JSON list, found dict"),
        (["Pooling"], r"should list its modules as objects, found \['Pooling'\]"),
    ],
)
def test_modules_that_cannot_be_read_are_refused(modules, message, tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=message):
        read_pooling("here", finder(tmp_path))


def test_a_map_of_another_model_is_refused():
    assert Pooling(dense=(Dense(torch.randn(3, 2)), Dense(torch.randn(5, 3)))).width(2, "here") == 5
    with pytest.raises(UserError, match=r"here: a linear map after pooling takes \(3,\) values, and 2 come"):
        Pooling(dense=(Dense(torch.randn(5, 3)),)).width(2, "here")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "cls, mean"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
            "mean, pooling_mode_lasttoken",
        ),
        ({"pooling_mode": ["cls", "mean"]}, "cls, mean"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
    ],
)
def test_modes_that_are_not_read_are_refused(config, found, tmp_path):
    write_pooling(tmp_path, Pooling(), width=2, max_tokens=8)
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"expected one pooling mode of .*, found {found}$"):
        read_pooling("here", finder(tmp_path))


def modules_of(folder, build):
    """A folder that sentence-transformers saves, of its own modules; texts are cut after 24 tokens."""
    library = pytest.importorskip("sentence_transformers")
    kinds = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    torch.manual_seed(0)
    transformer = kinds.Transformer(str(folder), max_seq_length=24)
    encoder = library.SentenceTransformer(modules=[transformer, *build(kinds)], device="cpu")
    encoder.save(str(folder.parent / "saved"), create_model_card=False)
    return encoder, folder.parent / "saved"


@pytest.mark.parametrize(
    "build",
    [
        lambda kinds: [kinds.Pooling(32, "cls"), kinds.Normalize()],
        lambda kinds: [kinds.Pooling(32, "mean_sqrt_len_tokens")],
        lambda kinds: [
            kinds.Pooling(32, "max"),
            kinds.Dense(32, 8),
            kinds.Dense(8, 6, False, torch.nn.GELU()),
        ],
    ],
)
@pytest.mark.parametrize("layout", ["new", "old"])
def test_folders_of_sentence_transformers_give_its_vectors(build, layout, tiny_teacher_dir):
    encoder, folder = modules_of(tiny_teacher_dir, build)
    place = folder
    if layout == "old":  # the encoder in a folder of its own, and maps as pickles
        place = folder / "0_Transformer"
        place.mkdir()
        for file in [
            one
            for one in folder.iterdir()
            if one.is_file() and one.name not in ("modules.json", "config_sentence_transformers.json")
        ]:
            file.rename(place / file.name)
        for file in folder.glob("*_Dense/model.safetensors"):
            torch.save(load_file(file), file.with_name("pytorch_model.bin"))
            file.unlink()
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (folder / "modules.json").write_text(json.dumps(modules))
    vectors = minialbert.embed(place, TEXTS, precision="fp32")
    np.testing.assert_allclose(vectors, encoder.encode(TEXTS), rtol=1e-4, atol=1e-5)
    assert find_pooling(place).max_tokens == encoder.max_seq_length == 24


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda kinds: [kinds.Pooling(32), kinds.Normalize(), kinds.Dense(32, 8)],
            "Pooling, Normalize, Dense",
        ),
        (lambda kinds: [kinds.Pooling(32), kinds.Dense(32, 8, use_residual=True)], "use_residual is True"),
        (
            lambda kinds: [kinds.Dense(32, 8, module_input_name="token_embeddings"), kinds.Pooling(8)],
            "Transformer, Dense, Pooling",
        ),
        (lambda kinds: [kinds.Pooling(32, include_prompt=False)], "include_prompt is False"),
        (lambda kinds: [kinds.Pooling(32, "weightedmean")], "found weightedmean"),
        (lambda kinds: [kinds.Pooling(32), kinds.LayerNorm(32)], "Pooling, LayerNorm"),
    ],
)
def test_folders_of_sentence_transformers_that_are_read_otherwise_are_refused(
    build, message, tiny_teacher_dir
):
    _, folder = modules_of(tiny_teacher_dir, build)
    with pytest.raises(UserError, match=message):
        minialbert.embed(folder, TEXTS)


def test_a_default_prompt_and_a_size_are_told(tmp_path, caplog):
    write_pooling(tmp_path, Pooling(prompts={"query": "q: "}), width=2, max_tokens=8)
    said = {"prompts": {"query": "q: "}, "default_prompt_name": "query", "truncate_dim": 1}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(said))
    read_pooling("here", finder(tmp_path))
    assert (
        "here: its default_prompt_name query is not applied by itself: `embed --prompt query` does"
        in caplog.text
    )
    assert "here: its truncate_dim 1 is not applied by itself: `embed --dim 1` does" in caplog.text


def test_the_terms_by_hand():
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]], requires_grad=True)
    terms = VectorObjective(1.0, 1.0, 1.0)(student, teacher, count=3)
    half = 0.5**0.5
    assert terms["vector"].item() == pytest.approx((0 + (1 - half) + (1 - half)) / 3)
    # Cosines of 1-2, 1-3, 2-3: student 0, half, half; teacher half, 0, half.
    assert terms["similarity"].item() == pytest.approx((0.5 + 0.5 + 0) / 3)
    # Nearest by the teacher: 2 to 1; 1 to 2 (the first of two alike); 2 to 3. Margins (teacher - student):
    # 1: (half - 0) - (0 - half); 2: 0 - (0 - half); 3: (half - 0) - (half - half). Each over its two others.
    assert terms["triplet"].item() == pytest.approx((2 * half + half + half) / 6)
    sum(terms.values()).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_equal_vectors_cost_nothing_and_a_text_alone_has_no_pairs():
    vectors = torch.randn(5, 8)
    for value in VectorObjective(1.0, 1.0, 1.0, dims=(2, 4))(2 * vectors, vectors, count=5).values():
        assert value.item() == pytest.approx(0, abs=1e-6)
    alone = VectorObjective(1.0, 1.0, 1.0)(vectors[:1], vectors[1:2], count=1)
    assert alone["vector"] > 0
    assert alone["similarity"] == alone["triplet"] == 0


def test_leading_dimensions_count_as_much_as_all():
    student, teacher = torch.randn(6, 8), torch.randn(6, 8)
    whole, two = (VectorObjective()(student[:, :d], teacher[:, :d], count=6) for d in (8, 2))
    both = VectorObjective(dims=(2,))(student, teacher, count=6)
    for name, value in both.items():
        torch.testing.assert_close(value, (whole[name] + two[name]) / 2)


def test_passes_of_a_step_add_up():
    student, teacher = torch.randn(6, 8), torch.randn(6, 8)
    parts = [VectorObjective()(student[at], teacher[at], count=6)["vector"] for at in (slice(2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), VectorObjective()(student, teacher, count=6)["vector"])


def test_the_correlation_is_spearmans_with_ties_too():
    ours, theirs = torch.randint(-2, 3, (12, 3)).float() + 0.1, torch.randn(12, 3)
    row, column = torch.triu_indices(12, 12, offset=1)
    pairs = [(functional.normalize(v.double(), dim=-1) @ functional.normalize(v.double(), dim=-1).T)[row, column]
             for v in (ours, theirs)]  # fmt: skip
    assert similarity_correlation(ours, theirs) == pytest.approx(float(spearmanr(*pairs).statistic), abs=1e-9)


def test_the_correlation_of_a_known_case():
    # Cosines 0.8, 0.6, 0.0 in one set; the same order gives 1, the reverse -1.
    angles = torch.tensor([0.0, math.acos(0.8), math.acos(0.8) + math.acos(0.6)])
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert similarity_correlation(vectors, vectors) == pytest.approx(1)
    # Pairs 0-1, 0-2, 1-2: the first set has them in the order 0-1, 1-2, 0-2.
    reverse = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.1, 0.3]])
    assert similarity_correlation(vectors, reverse) == pytest.approx(-1)


def test_texts_without_masks_leave_nothing_for_logits():
    with pytest.raises(UserError, match="vectors of texts are learnt without masks"):
        DistillationObjective.preset("embeddings", mlm_weight=1.0)


TEXTS = [
    f"the {a} {b} sat on the {c}"
    for a in ("big", "red", "old")
    for b in ("cat", "dog")
    for c in ("mat", "tree")
]


@pytest.fixture
def teacher(tiny_teacher_dir):
    """A sentence encoder of the tiny teacher, with a map to 16 dimensions."""
    write_pooling(tiny_teacher_dir, Pooling("mean", (Dense(torch.randn(16, 32)),)), width=32, max_tokens=24)
    return tiny_teacher_dir


@pytest.mark.parametrize("width", [32, 16])
def test_a_student_of_a_sentence_encoder_gives_vectors_of_its_space(width, teacher, tmp_path, caplog):
    settings = {
        "training.batch_size": 6, "training.micro_batch_size": 6, "training.warmup_steps": 1,
        "training.precision": "fp32",
        "student.embedding_size": 16, "student.adapter_reduction_factor": 4, "student.hidden_size": width,
        "student.init": "random", "student.init_layer": None, "data.held_out_fraction": 0.3,
    }  # fmt: skip
    with caplog.at_level("INFO"):
        run = distill(
            teacher,
            TEXTS,
            recipe="embeddings",
            max_steps=3,
            settings=settings,
            output=tmp_path / "run",
            progress=False,
        )
    assert type(run.model) is MiniAlbertModel
    assert (
        "vectors: mean over tokens, then 1 linear maps, 16 wide, as the teacher's; texts without masks"
        in caplog.text
    )
    assert run.record["objective"]["vector_weight"] == 20.0
    end = run.record["metrics"]["student_end"]
    assert -1 <= end["similarity_correlation"] <= 1
    assert "mlm_loss" not in end
    assert "cosine of vectors to the teacher's" in caplog.text
    page = minialbert.report(run)
    assert f"gives texts vectors with a mean cosine of {end['vector_cosine']:.3g} to its teacher's" in page
    pooling = read_pooling("student", finder(run.path / "model"))
    assert [tuple(one.weight.shape) for one in pooling.dense] == [(32, 16)] * (width == 16) + [(16, 32)]
    assert pooling.max_tokens == 24
    # The figure of the record, made again from what was saved.
    saved = AutoModel.from_pretrained(run.path / "model").eval()
    vectors = []
    for model, pool in (
        (saved, pooling),
        (BertModel.from_pretrained(teacher), read_pooling("t", finder(teacher))),
    ):
        batch = run.tokenizer(TEXTS, padding=True, return_tensors="pt")
        with torch.no_grad():
            vectors.append(pool(model.eval()(**batch).last_hidden_state, batch))
    assert vectors[0].shape == vectors[1].shape == (12, 16)
    assert functional.cosine_similarity(*vectors).mean() > end["vector_cosine"] - 0.5


PAIRS = {
    "data.pair_field": "pair",
    "data.held_out_fraction": 0,
    "training.warmup_steps": 1,
    "training.epochs": None,
}


def test_both_texts_of_a_pair_are_in_one_pass(teacher, tmp_path, monkeypatch, caplog):
    passes, lay_out = [], MaskedLanguageModelCollator.lay_out

    def recorded(self, examples, rows):
        passes.append([example["window_id"] for example in examples])
        return lay_out(self, examples, rows)

    texts = list(zip(TEXTS[::2], TEXTS[1::2], strict=True))
    small = {"training.batch_size": 8, "training.micro_batch_size": 4, "student.init": "random"}
    monkeypatch.setattr(MaskedLanguageModelCollator, "lay_out", recorded)
    with caplog.at_level("INFO"):
        settings = PAIRS | small | {"student.init_layer": None, "student.embedding_size": 16}
        distill(
            teacher, texts, recipe="embeddings", max_steps=6, settings=settings, output=tmp_path / "run",
            progress=False,
        )  # fmt: skip
    assert "pairs: both texts in one pass" in caplog.text
    training = [one for one in passes if len(one) == 4][-12:]
    assert len(training) == 12 and all(window ^ 1 in one for one in training for window in one)
    # Four epochs, where single texts would be in another order.
    order = [window for one in training for window in one]
    assert [sorted(order[start : start + 12]) for start in range(0, 48, 12)] == [[*range(12)]] * 4


def test_batches_that_part_pairs_are_refused(teacher, tmp_path):
    texts = list(zip(TEXTS[::2], TEXTS[1::2], strict=True))
    plain = {"student.init": "random", "student.init_layer": None, "student.embedding_size": 16}
    for sizes, told in (
        ({"training.batch_size": 6, "training.micro_batch_size": 3}, "micro-batches of 3 of 6 windows"),
        ({"training.batch_size": 9, "training.micro_batch_size": None}, "micro-batches of 1 of 9 windows"),
    ):
        with pytest.raises(UserError, match=f"{told} part the texts of a pair: set training.batch_size"):
            distill(
                teacher, texts, recipe="embeddings", max_steps=1, settings=PAIRS | plain | sizes,
                output=tmp_path / "run", overwrite=True, progress=False,
            )  # fmt: skip
    windows = tmp_path / "run-windows"
    # An objective that reads each text for itself takes any batch; the embeddings choose an even one.
    assert plan(windows, teacher, PAIRS, "default", 9).micro_batch_size == 9
    assert plan(windows, teacher, PAIRS, "embeddings", 14).micro_batch_size == 14


def plan(windows, teacher, settings, objective, batch_size):
    sizes = {"training.batch_size": batch_size, "training.micro_batch_size": None}
    small = {"student.init": "random", "student.init_layer": None, "student.embedding_size": 16}
    recipe = distillation_recipe(
        "embeddings", settings | sizes | small, teacher=str(teacher), objective=objective
    )
    return plan_distillation(recipe, windows)


def test_vectors_need_a_teacher(tiny_windows, tmp_path):
    with pytest.raises(UserError, match="the vectors of texts are learnt from a teacher"):
        distill(None, tiny_windows, recipe="embeddings", output=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
