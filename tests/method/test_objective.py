"""The weighted sum: the release's numbers, presets, switches, and what is refused."""

import math
import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForMaskedLM
from transformers.modeling_outputs import BaseModelOutput

from minialbert import MiniAlbertForMaskedLM
from minialbert.method.encoders import Teacher
from minialbert.method.losses import attention_loss, hidden_loss, masked_lm_loss, output_loss
from minialbert.method.modeling_minialbert import RELEASE_KEY_MAPPING
from minialbert.method.objective import (
    DistillationObjective,
    DistillationTerms,
    EncoderView,
    Request,
    TokenCounts,
    average_heads,
)
from minialbert.method.trainer import DistillationStudent

RELEASES = pytest.mark.parametrize("release", ["adapter-factorised", "plain-fullrank"])
TERMS = ("mlm", "attention", "hidden", "output", "embedding")


def renamed(key):
    for pattern, replacement in RELEASE_KEY_MAPPING.items():
        key = re.sub(pattern, replacement, key)
    return key


def plain_outputs(student, teacher, inputs):
    switches = {"output_hidden_states": True, "output_attentions": True}
    for model in (student, teacher):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        teacher_outputs = teacher(**inputs, **switches)
    return student(**inputs, **switches), teacher_outputs


def recorded_views(student, teacher, inputs, labels, objective):
    layers = objective.resolve_layers(student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    positions = objective.positions(labels, inputs["attention_mask"])
    teacher_view = Teacher(teacher, True).view(inputs, Request(attention_layers=layers, positions=positions))
    iterations = range(1, len(layers) + 1)
    student_view = DistillationStudent(student, teacher.config.hidden_size).eval()(
        inputs, Request(attention_layers=iterations, positions=positions)
    )
    return student_view, teacher_view


# The release's numbers


@pytest.mark.parametrize("recorded", [False, True])
@RELEASES
def test_as_published_reproduces_the_release(release_dir, release, recorded):
    expected = load_file(release_dir / release / "expected.safetensors")
    inputs = {key[3:]: value for key, value in expected.items() if key.startswith("in.")}
    labels = inputs.pop("labels")
    student = MiniAlbertForMaskedLM.from_pretrained(release_dir / release / "student-mlm").eval()
    teacher = BertForMaskedLM.from_pretrained(release_dir / release / "teacher-mlm").eval()
    objective = DistillationObjective.preset("as-published")
    if recorded:
        outputs = recorded_views(student, teacher, inputs, labels, objective)
        assert outputs[0].log_rows and outputs[1].log_rows
    else:
        outputs = plain_outputs(student, teacher, inputs)
    terms = objective(*outputs, labels=labels, attention_mask=inputs["attention_mask"])
    for name, value in terms.items():
        assert value.item() == pytest.approx(expected[f"distill.{name}"].item(), rel=1e-5), name

    terms.total.backward()
    norms = {renamed(k[10:]): v.item() for k, v in expected.items() if k.startswith("grad_norm.")}
    ours = {name: p.grad.norm().item() for name, p in student.named_parameters() if p.grad is not None}
    assert ours.keys() == norms.keys() == dict(student.named_parameters()).keys()
    # The key's bias moves all scores of a row alike: its gradient is zero but for rounding.
    rounding = 1e-6 * max(norms.values())
    for name, norm in ours.items():
        assert norm == pytest.approx(norms[name], rel=1e-5, abs=rounding), name
    assert sum(norm < rounding for norm in norms.values()) == 1


def test_release_embedding_term_is_inside_the_alignment_bracket(release_dir):
    directory = release_dir / "adapter-factorised"
    expected = load_file(directory / "expected.safetensors")
    inputs = {key[3:]: value for key, value in expected.items() if key.startswith("in.")}
    labels = inputs.pop("labels")
    student = MiniAlbertForMaskedLM.from_pretrained(directory / "student-mlm").eval()
    teacher = BertForMaskedLM.from_pretrained(directory / "teacher-mlm").eval()
    objective = DistillationObjective.preset("as-published", embedding_weight=3.0)
    terms = objective(
        *plain_outputs(student, teacher, inputs), labels=labels, attention_mask=inputs["attention_mask"]
    )
    total = expected["distill.total"] + 3 * expected["distill.embedding"]
    torch.testing.assert_close(terms.total.detach(), total, rtol=1e-5, atol=0)


# Small made-up outputs


def outputs(layers, seed, *, batch=2, length=6, heads=4, width=8, vocab=11, grad=False):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(*shape, generator=generator).requires_grad_(grad)

    hidden = {layer: noise(batch, length, width) for layer in range(layers + 1)}
    rows = {layer: noise(batch, heads, length, length).log_softmax(-1) for layer in range(1, layers + 1)}
    return hidden, rows, noise(batch, length, vocab)


LABELS = torch.tensor([[-100, 3, -100, 7, -100, 1], [-100, -100, 5, -100, -100, -100]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])


def view(layers, seed, *, positions=None, log_rows=True, **shape):
    hidden, rows, logits = outputs(layers, seed, **shape)
    if not log_rows:
        rows = {layer: values.exp() for layer, values in rows.items()}
    return EncoderView(hidden, rows, log_rows, logits[LABELS != -100 if positions is None else positions])


def compare(objective, student=None, teacher=None, **options):
    given = {"labels": LABELS, "attention_mask": MASK, **options}
    return objective(student or view(2, 1), view(4, 2) if teacher is None else teacher, **given)


def test_terms_are_the_losses_summed_over_iterations():
    student, teacher, masked = view(2, 1), view(4, 2), LABELS != -100
    terms = compare(DistillationObjective(embedding_weight=2.0), student, teacher)
    pairs = [(1, 2), (2, 4)]
    expected = {
        "mlm": masked_lm_loss(student.logits, LABELS[masked]),
        "attention": sum(
            attention_loss(student.attention_rows[s], teacher.attention_rows[t], MASK, log_rows=True)
            for s, t in pairs
        ),
        "hidden": sum(
            hidden_loss(student.hidden_states[s], teacher.hidden_states[t], MASK) for s, t in pairs
        ),
        "output": output_loss(student.logits, teacher.logits),
        "embedding": hidden_loss(student.hidden_states[0], teacher.hidden_states[0], MASK),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(terms, name), value)
    weights = {"mlm": 1, "attention": 3, "hidden": 3, "output": 5, "embedding": 2}
    torch.testing.assert_close(terms.total, sum(weights[name] * value for name, value in expected.items()))
    assert [name for name, _ in terms.items()] == [*TERMS, "total"]
    assert isinstance(terms, DistillationTerms)


def test_plain_outputs_views_and_probabilities_agree():
    objective = DistillationObjective(embedding_weight=1.0)
    expected = compare(objective)
    hidden, rows, logits = outputs(2, 1)
    plain = BaseModelOutput(
        hidden_states=tuple(hidden.values()), attentions=tuple(values.exp() for values in rows.values())
    )
    plain["logits"] = logits
    for student, teacher in (
        (plain, None),
        (view(2, 1, log_rows=False), view(4, 2)),
        (view(2, 1), view(4, 2, log_rows=False)),
    ):
        for (name, value), (_, other) in zip(
            expected.items(), compare(objective, student, teacher).items(), strict=True
        ):
            torch.testing.assert_close(other, value, msg=name)


def test_default_preset():
    assert DistillationObjective.preset() == DistillationObjective()
    values = DistillationObjective().to_dict()
    assert (values["mlm_weight"], values["attention_weight"], values["hidden_weight"]) == (1, 3, 3)
    assert (values["output_weight"], values["embedding_weight"], values["temperature"]) == (5, 0, 1)
    assert values["kl_direction"] == "teacher-student" and not values["teacher_dropout"]


def test_as_published_attention_is_divided_by_the_key_length():
    default = compare(DistillationObjective.preset("default"))
    published = compare(DistillationObjective.preset("as-published"))
    torch.testing.assert_close(published.attention, default.attention / 6)
    for name in ("mlm", "hidden", "output"):
        torch.testing.assert_close(getattr(published, name), getattr(default, name))
    assert DistillationObjective.preset("as-published").teacher_dropout


def test_paper_preset_sums_over_each_window_and_turns_the_divergences_round():
    student, teacher = view(2, 1), view(4, 2)
    default = compare(DistillationObjective(), student, teacher)
    paper = compare(DistillationObjective.preset("paper"), student, teacher)
    # Four masked tokens in two windows: the mean over windows of sums is twice the mean over tokens.
    torch.testing.assert_close(paper.mlm, default.mlm * 4 / 2)
    turned = output_loss(student.logits, teacher.logits, direction="student-teacher")
    torch.testing.assert_close(paper.output, turned * 4 / 2)
    attention = sum(
        attention_loss(
            student.attention_rows[s],
            teacher.attention_rows[t],
            MASK,
            direction="student-teacher",
            log_rows=True,
        )
        for s, t in [(1, 2), (2, 4)]
    )
    torch.testing.assert_close(paper.attention, attention)
    torch.testing.assert_close(paper.hidden, default.hidden)
    assert not torch.isclose(paper.attention, default.attention)


def test_preset_overrides():
    objective = DistillationObjective.preset("paper", temperature=2.0, layer_map=[1, 0], mlm_weight=None)
    assert objective.temperature == 2 and objective.layer_map == (1, 0) and objective.mlm_weight == 1
    assert objective.token_reduction == "sum"
    with pytest.raises(
        ValueError, match="preset 'release' is not known: give one of default, paper, as-publish"
    ):
        DistillationObjective.preset("release")


def test_without_switches_terms_off():
    objective = DistillationObjective(embedding_weight=1.0).without("output", "embedding")
    assert (objective.output_weight, objective.embedding_weight, objective.hidden_weight) == (0, 0, 3)
    assert objective.needs_teacher and objective.needs_attention
    alone = objective.without("attention", "hidden")
    assert not alone.needs_teacher and not alone.needs_attention
    with pytest.raises(TypeError):
        objective.without("everything")


@pytest.mark.parametrize("off", TERMS)
def test_weight_zero_gives_no_gradient_and_is_still_reported(off):
    full = DistillationObjective(embedding_weight=2.0)
    student = view(2, 1, grad=True)
    terms = compare(full.without(off), student)
    expected = compare(full)
    for name in TERMS:
        torch.testing.assert_close(getattr(terms, name).detach(), getattr(expected, name))
    assert not getattr(terms, off).requires_grad
    weight = getattr(full, f"{off}_weight")
    torch.testing.assert_close(terms.total.detach(), expected.total - weight * getattr(expected, off))
    terms.total.backward()
    assert student.hidden_states[1].grad is not None or off == "hidden"
    assert (student.hidden_states[0].grad is None) == (off == "embedding")


def test_weight_zero_needs_nothing():
    student, teacher = view(2, 1), view(4, 2)
    student.attention_rows, teacher.attention_rows, teacher.logits = {}, {}, None
    terms = compare(DistillationObjective(attention_weight=0, output_weight=0), student, teacher)
    assert terms.attention == 0 and terms.output == 0 and terms.hidden > 0
    teacher.hidden_states = {}
    alone = compare(DistillationObjective().without("attention", "hidden", "output"), student, teacher)
    assert alone.hidden == 0
    torch.testing.assert_close(alone.total, alone.mlm)


def test_no_teacher_leaves_the_masked_lm_term():
    student = view(2, 1)
    terms = DistillationObjective()(student, None, labels=LABELS, attention_mask=MASK)
    torch.testing.assert_close(terms.total, masked_lm_loss(student.logits, LABELS[LABELS != -100]))
    assert all(getattr(terms, name) == 0 for name in TERMS[1:])


def test_gradient_does_not_reach_the_teacher():
    student, teacher = view(2, 1, grad=True), view(4, 2, grad=True)
    compare(DistillationObjective(embedding_weight=1.0), student, teacher).total.backward()
    assert student.hidden_states[0].grad.abs().sum() > 0
    assert all(states.grad is None for states in teacher.hidden_states.values())


def test_unmatched_iterations_are_left_out():
    student, teacher = view(2, 1), view(4, 2)
    terms = compare(DistillationObjective(layer_map=(0, 3)), student, teacher)
    torch.testing.assert_close(
        terms.hidden, hidden_loss(student.hidden_states[2], teacher.hidden_states[3], MASK)
    )
    nothing = compare(DistillationObjective(layer_map=(0, 0)), student, teacher)
    assert nothing.hidden == 0 and nothing.attention == 0 and nothing.output > 0


def test_view_of_some_layers_needs_their_number():
    student, teacher = view(2, 1), view(4, 2)
    expected = compare(DistillationObjective(layer_map="uniform"), student, teacher)
    for values in (teacher.hidden_states, teacher.attention_rows):
        for layer in (0, 1, 3):
            values.pop(layer, None)
    some = compare(DistillationObjective(), student, teacher, num_teacher_layers=4)
    torch.testing.assert_close(some.total, expected.total)


def test_micro_batches_add_up_to_the_step():
    objective = DistillationObjective(embedding_weight=1.0)
    counts = TokenCounts.of(LABELS, MASK)
    assert (int(counts.masked), int(counts.valid), counts.windows) == (4, 10, 2)
    for chosen in (
        objective,
        DistillationObjective.preset("paper"),
        DistillationObjective.preset("as-published"),
    ):
        whole = compare(chosen)
        parts = []
        for row in (0, 1):
            labels, mask = LABELS[row : row + 1], MASK[row : row + 1]
            views = []
            for layers, seed in ((2, 1), (4, 2)):
                hidden, rows, logits = outputs(layers, seed)
                hidden, rows = ({k: v[row : row + 1] for k, v in x.items()} for x in (hidden, rows))
                views.append(EncoderView(hidden, rows, True, logits[row : row + 1][labels != -100]))
            parts.append(chosen(*views, labels=labels, attention_mask=mask, counts=counts))
        for name, value in whole.items():
            torch.testing.assert_close(sum(getattr(part, name) for part in parts), value, msg=name)


def test_output_at_all_positions():
    objective = DistillationObjective(output_positions="all")
    positions = objective.positions(LABELS, MASK)
    assert torch.equal(positions, MASK.bool())
    assert torch.equal(objective.without("output").positions(LABELS, MASK), LABELS != -100)
    student, teacher = view(2, 1, positions=positions), view(4, 2, positions=positions)
    terms = compare(objective, student, teacher)
    torch.testing.assert_close(terms.output, output_loss(student.logits, teacher.logits))
    torch.testing.assert_close(terms.mlm, compare(DistillationObjective()).mlm)


def test_no_mask_means_no_padding():
    terms = compare(DistillationObjective(), attention_mask=None)
    ones = compare(DistillationObjective(), attention_mask=torch.ones_like(MASK))
    torch.testing.assert_close(terms.total, ones.total)


def test_nothing_masked_is_finite():
    labels = torch.full_like(LABELS, -100)
    student, teacher = (view(n, n, positions=labels != -100, grad=n == 2) for n in (2, 4))
    terms = compare(DistillationObjective(), student, teacher, labels=labels)
    assert terms.mlm == 0 and terms.output == 0 and terms.total.isfinite()
    terms.total.backward()


# Heads


@pytest.mark.parametrize("log_rows", [False, True])
def test_average_heads(log_rows):
    rows = torch.randn(2, 4, 5, 5).softmax(-1)
    averaged = average_heads(rows.log() if log_rows else rows, log_rows)
    averaged = averaged.exp() if log_rows else averaged
    assert averaged.shape == (2, 1, 5, 5)
    torch.testing.assert_close(averaged, rows.mean(1, keepdim=True))


def test_averaged_heads_compare_models_of_different_head_counts():
    student, teacher = view(2, 1, heads=2), view(4, 2, heads=4)
    with pytest.raises(ValueError, match="attention maps of the student have shape"):
        compare(DistillationObjective(), student, teacher)
    terms = compare(DistillationObjective(attention_heads="average"), student, teacher)
    expected = sum(
        attention_loss(
            student.attention_rows[s].exp().mean(1, keepdim=True),
            teacher.attention_rows[t].exp().mean(1, keepdim=True),
            MASK,
        )
        for s, t in [(1, 2), (2, 4)]
    )
    torch.testing.assert_close(terms.attention, expected)
    assert math.isfinite(terms.total)


# What is refused


def test_missing_outputs_are_named():
    objective = DistillationObjective()
    student = view(2, 1)
    student.logits = None
    with pytest.raises(ValueError, match="the MLM term needs the student's logits"):
        compare(objective, student)
    teacher = view(4, 2)
    teacher.logits = None
    with pytest.raises(ValueError, match="the output term needs logits of student and teacher"):
        compare(objective, teacher=teacher)
    teacher = view(4, 2)
    del teacher.attention_rows[2]
    with pytest.raises(
        ValueError,
        match=r"the attention rows of layer 2 are not among the outputs \(there are: 1, 3, 4\): call the model "
        r"with them, or set attention_weight to 0",
    ):
        compare(objective, teacher=teacher)
    student = view(2, 1)
    student.attention_rows = {}
    with pytest.raises(ValueError, match=r"student attention rows of layer 1 are .* \(there are: none\)"):
        compare(objective, student)
    teacher = view(4, 2)
    del teacher.hidden_states[2]
    with pytest.raises(ValueError, match="hidden states of layer 2 .* set hidden_weight to 0"):
        compare(objective, teacher=teacher)
    teacher = view(4, 2)
    del teacher.hidden_states[0]
    with pytest.raises(ValueError, match="embeddings of layer 0 .* set embedding_weight to 0"):
        compare(DistillationObjective(embedding_weight=1.0), teacher=teacher)
    teacher.hidden_states = {}
    with pytest.raises(ValueError, match="call both with output_hidden_states=True"):
        compare(objective, teacher=teacher)


def test_layer_map_is_checked_against_the_models():
    with pytest.raises(ValueError, match="layer_map has 3 entries but the student has 2 iterations"):
        compare(DistillationObjective(layer_map=(1, 2, 3)))
    with pytest.raises(ValueError, match="but the teacher has layers 1-4"):
        compare(DistillationObjective(layer_map=(1, 5)))
