"""Eqs. 6 to 12: values by hand, zero at equality, padding, gradients, counts, and the layer map."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from minialbert.method.losses import (
    attention_loss,
    embedding_loss,
    hidden_loss,
    layer_map,
    masked_lm_loss,
    output_loss,
)

DIRECTIONS = pytest.mark.parametrize("direction", ["teacher-student", "student-teacher"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["rows", "elements"])
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
# Two windows of five and three tokens, padded to five.
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def rows(batch=2, heads=3, length=5, mask=MASK):
    scores = 2 * torch.randn(batch, heads, length, length)
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def logits():
    return torch.randn(2, 5, 7)


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def softmax(scores):
    powers = [math.exp(score) for score in scores]
    return [power / sum(powers) for power in powers]


# Values by hand


def test_masked_lm_value():
    logits = torch.tensor([[[1.0, 2.0, 0.0], [0.5, 0.5, 3.0], [9.0, 9.0, 9.0]]])
    labels = torch.tensor([[1, 0, -100]])
    expected = -(math.log(softmax([1, 2, 0])[1]) + math.log(softmax([0.5, 0.5, 3])[0])) / 2
    assert masked_lm_loss(logits, labels).item() == pytest.approx(expected, rel=1e-6)
    assert masked_lm_loss(logits[0], labels[0]).item() == pytest.approx(expected, rel=1e-6)
    assert masked_lm_loss(logits, labels, count=1).item() == pytest.approx(2 * expected, rel=1e-6)


@DIRECTIONS
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_output_value(direction, temperature):
    student, teacher = [[1.0, 2.0, 0.0], [0.0, 0.0, 1.0]], [[0.0, 1.0, 1.0], [2.0, 0.0, 1.0]]
    expected = 0.0
    for s, t in zip(student, teacher, strict=True):
        p, q = softmax([x / temperature for x in t]), softmax([x / temperature for x in s])
        expected += temperature**2 * (kl(p, q) if direction == "teacher-student" else kl(q, p)) / 2
    value = output_loss(
        torch.tensor(student), torch.tensor(teacher), direction=direction, temperature=temperature
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)


@DIRECTIONS
@REDUCTIONS
def test_attention_value(direction, reduction):
    # One window, one head, three queries of which the last is padding, three keys.
    student = [[0.5, 0.5, 0.0], [0.25, 0.75, 0.0], [0.1, 0.9, 0.0]]
    teacher = [[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [0.7, 0.3, 0.0]]
    pairs = [
        (teacher[n], student[n]) if direction == "teacher-student" else (student[n], teacher[n])
        for n in (0, 1)
    ]
    expected = sum(kl(p, q) for p, q in pairs) / 2 / (3 if reduction == "elements" else 1)
    maps = torch.tensor(student)[None, None], torch.tensor(teacher)[None, None]
    mask = torch.tensor([[1, 1, 0]])
    value = attention_loss(*maps, mask, direction=direction, reduction=reduction)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    logs = [m.clamp_min(1e-38).log() for m in maps]
    value = attention_loss(*logs, mask, direction=direction, reduction=reduction, log_rows=True)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_attention_is_averaged_over_heads_windows_and_queries():
    student, teacher = rows(mask=None), rows(mask=None)
    expected = sum(
        kl(teacher[b, h, n].tolist(), student[b, h, n].tolist())
        for b in range(2)
        for h in range(3)
        for n in range(5)
    )
    assert attention_loss(student, teacher).item() == pytest.approx(expected / (2 * 3 * 5), rel=1e-5)


@pytest.mark.parametrize("log_rows", [False, True])
def test_attention_epsilon_is_added_to_both_maps(log_rows):
    epsilon = 0.1
    s, t = [0.4, 0.6], [0.2, 0.8]
    expected = sum((b + epsilon) * math.log((b + epsilon) / (a + epsilon)) for a, b in zip(s, t, strict=True))
    maps = [torch.tensor(values)[None, None, None] for values in (s, t)]
    if log_rows:
        maps = [m.log() for m in maps]
    value = attention_loss(*maps, epsilon=epsilon, log_rows=log_rows)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [hidden_loss, embedding_loss])
def test_cosine_value(loss):
    student = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[4.0, 3.0], [-2.0, 0.0], [5.0, -7.0]]])
    expected = ((1 - 24 / 25) + 2) / 2
    assert loss(student, teacher, torch.tensor([[1, 1, 0]])).item() == pytest.approx(expected, rel=1e-5)
    third = 1 - (5 - 7) / (math.sqrt(2) * math.sqrt(74))
    assert loss(student, teacher).item() == pytest.approx((2 * expected + third) / 3, rel=1e-5)


@DIRECTIONS
def test_divergences_agree_with_torch_distributions(direction):
    student, teacher = torch.randn(7, 11), torch.randn(7, 11)
    s, t = Categorical(logits=student), Categorical(logits=teacher)
    expected = (kl_divergence(t, s) if direction == "teacher-student" else kl_divergence(s, t)).mean()
    torch.testing.assert_close(output_loss(student, teacher, direction=direction), expected)
    torch.testing.assert_close(
        attention_loss(s.probs[None, None], t.probs[None, None], direction=direction), expected
    )


# Zero at equality


def test_losses_are_zero_at_equality():
    logits, states, maps = torch.randn(2, 5, 7), torch.randn(2, 5, 4), rows()
    values = [
        output_loss(logits, logits.clone()),
        attention_loss(maps, maps.clone(), MASK),
        attention_loss(maps.log().clamp_min(-1e30), maps.log().clamp_min(-1e30), MASK, log_rows=True),
        attention_loss(maps, maps.clone(), MASK, epsilon=1e-12),
        hidden_loss(states, states * 3, MASK),
        embedding_loss(states, states * 3, MASK),
    ]
    assert all(abs(value.item()) < 1e-6 for value in values)


# Padding


def pad(tensor, dims, value):
    for dim in dims:
        shape = list(tensor.shape)
        shape[dim] = 3
        tensor = torch.cat([tensor, torch.full(shape, value, dtype=tensor.dtype)], dim)
    return tensor


@DIRECTIONS
@REDUCTIONS
@pytest.mark.parametrize("log_rows", [False, True])
def test_attention_ignores_padding(direction, reduction, log_rows):
    student, teacher = rows(), rows()
    zero = 0.0
    if log_rows:
        zero = torch.finfo(torch.float32).min
        student, teacher = (m.log().clamp_min(zero) for m in (student, teacher))

    def loss(student, teacher, mask):
        return attention_loss(
            student, teacher, mask, direction=direction, reduction=reduction, log_rows=log_rows
        )

    expected = loss(student, teacher, MASK)
    other = student.clone()
    other[1, :, 3:] = torch.rand(3, 2, 5).log_softmax(-1) if log_rows else torch.rand(3, 2, 5).softmax(-1)
    torch.testing.assert_close(loss(other, teacher, MASK), expected)
    longer = loss(pad(student, (2, 3), zero), pad(teacher, (2, 3), zero), pad(MASK, (1,), 0))
    # "elements" divides by the key length, as the release does: there padding is part of the definition.
    factor = 5 / 8 if reduction == "elements" else 1
    torch.testing.assert_close(longer, expected * factor)


def test_vectors_ignore_padding():
    student, teacher = torch.randn(2, 5, 4), torch.randn(2, 5, 4)
    expected = hidden_loss(student, teacher, MASK)
    for value in (0.0, 100.0):
        other = student.masked_fill(MASK[..., None] == 0, value)
        torch.testing.assert_close(hidden_loss(other, teacher, MASK), expected)
    longer = hidden_loss(pad(student, (1,), 7.0), pad(teacher, (1,), 0.0), pad(MASK, (1,), 0))
    torch.testing.assert_close(longer, expected)


def test_logits_ignore_what_is_not_masked():
    student, teacher = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.tensor([[-100, 3, -100, 1, -100], [0, -100, -100, -100, -100]])
    mask = labels != -100
    mlm, output = masked_lm_loss(student, labels), output_loss(student, teacher, mask)
    other = student.masked_fill(~mask[..., None], 50.0)
    torch.testing.assert_close(masked_lm_loss(other, labels), mlm)
    torch.testing.assert_close(output_loss(other, teacher, mask), output)
    torch.testing.assert_close(masked_lm_loss(student[mask], labels[mask]), mlm)
    torch.testing.assert_close(output_loss(student[mask], teacher[mask]), output)
    longer = pad(student, (1,), 9.0), pad(teacher, (1,), 4.0)
    torch.testing.assert_close(masked_lm_loss(longer[0], pad(labels, (1,), -100)), mlm)
    torch.testing.assert_close(output_loss(*longer, pad(mask, (1,), False)), output)


# Gradients


def test_gradient_reaches_the_student():
    student = torch.randn(2, 5, 7, requires_grad=True)
    labels = torch.full((2, 5), -100)
    labels[:, 2] = 3
    masked_lm_loss(student, labels).backward()
    assert student.grad[:, 2].abs().sum() > 0 and student.grad[:, :2].abs().sum() == 0


@pytest.mark.parametrize(
    ("loss", "make"),
    [(output_loss, logits), (attention_loss, rows), (hidden_loss, logits), (embedding_loss, logits)],
)
def test_gradient_reaches_the_student_and_not_a_detached_teacher(loss, make):
    student, teacher = make().requires_grad_(), make().requires_grad_()
    loss(student, teacher.detach(), MASK).backward()
    assert student.grad.isfinite().all() and student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert student.grad[1, ..., 3:, :].abs().sum() == 0  # padding


@DIRECTIONS
def test_gradients_are_those_of_finite_differences(direction):
    student, teacher = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 6, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: output_loss(s, teacher, direction=direction, temperature=2.0), student
    )

    def attention(scores):
        return attention_loss(
            scores.log_softmax(-1)[None, None],
            teacher.log_softmax(-1)[None, None],
            direction=direction,
            log_rows=True,
        )

    assert torch.autograd.gradcheck(attention, student)


# Counts: micro-batches add up


@DIRECTIONS
@REDUCTIONS
def test_micro_batches_add_up(direction, reduction):
    logits, teacher_logits = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    labels = torch.tensor([[-100, 3, -100, 1, 4], [0, -100, -100, -100, -100]])
    mask = labels != -100
    states, teacher_states = torch.randn(2, 5, 7), torch.randn(2, 5, 7)
    maps, teacher_maps = rows(), rows()
    masked, valid = mask.sum(), MASK.sum()
    cases = [
        (lambda i, n: masked_lm_loss(logits[i], labels[i], count=n), masked),
        (
            lambda i, n: output_loss(logits[i], teacher_logits[i], mask[i], direction=direction, count=n),
            masked,
        ),
        (lambda i, n: hidden_loss(states[i], teacher_states[i], MASK[i], count=n), valid),
        (
            lambda i, n: attention_loss(
                maps[i], teacher_maps[i], MASK[i], direction=direction, reduction=reduction, count=n
            ),
            valid,
        ),
    ]
    for loss, count in cases:
        whole = loss(slice(0, 2), None)
        for given in (count, float(count)):
            parts = loss(slice(0, 1), given) + loss(slice(1, 2), given)
            torch.testing.assert_close(parts, whole)


# Numbers that break


@HALVES
def test_half_inputs_are_computed_in_fp32(dtype):
    logits, teacher = torch.randn(6, 50).to(dtype), torch.randn(6, 50).to(dtype)
    labels = torch.arange(6)
    maps, teacher_maps = rows().to(dtype), rows().to(dtype)
    for value, expected in (
        (masked_lm_loss(logits, labels), masked_lm_loss(logits.float(), labels)),
        (output_loss(logits, teacher), output_loss(logits.float(), teacher.float())),
        (hidden_loss(logits[None], teacher[None]), hidden_loss(logits.float()[None], teacher.float()[None])),
        (attention_loss(maps, teacher_maps, MASK), attention_loss(maps.float(), teacher_maps.float(), MASK)),
    ):
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)


def test_double_stays_double():
    logits = torch.randn(6, 5, dtype=torch.float64)
    assert (
        output_loss(logits, logits).dtype
        == masked_lm_loss(logits, torch.arange(6) % 5).dtype
        == torch.float64
    )
    assert attention_loss(rows().double(), rows().double()).dtype == torch.float64


@DIRECTIONS
@pytest.mark.parametrize("epsilon", [0.0, 1e-12])
def test_zero_probabilities_are_finite(direction, epsilon):
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])[None, None].requires_grad_()
    teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])[None, None]
    value = attention_loss(student, teacher, direction=direction, epsilon=epsilon)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@DIRECTIONS
def test_masked_keys_in_log_rows_are_finite(direction):
    lowest = torch.finfo(torch.float32).min
    student = torch.tensor([[0.3, 0.1, lowest]]).log_softmax(-1)[None, None].requires_grad_()
    for zero in (lowest, -1e4):  # the second is what a teacher cache keeps
        teacher = torch.tensor([[0.6, 0.4]]).log()[None, None]
        teacher = torch.cat([teacher, torch.full((1, 1, 1, 1), zero)], -1)
        value = attention_loss(student, teacher, direction=direction, log_rows=True)
        value.backward()
        p, q = softmax([0.3, 0.1]), [0.6, 0.4]
        expected = kl(q, p) if direction == "teacher-student" else kl(p, q)
        assert value.item() == pytest.approx(expected, rel=1e-4)
        assert student.grad.isfinite().all()


def test_zero_vectors_are_finite():
    student = torch.zeros(1, 2, 4, requires_grad=True)
    value = hidden_loss(student, torch.randn(1, 2, 4))
    value.backward()
    assert value.item() == pytest.approx(1) and student.grad.isfinite().all()


def test_nothing_to_compare_is_zero():
    logits = torch.randn(2, 5, 7, requires_grad=True)
    nothing = torch.zeros(2, 5, dtype=torch.int64)
    values = [
        masked_lm_loss(logits, torch.full((2, 5), -100)),
        masked_lm_loss(logits[:0, 0], torch.empty(0, dtype=torch.int64)),
        output_loss(logits, torch.randn(2, 5, 7), nothing.bool()),
        output_loss(logits[:0, 0], torch.empty(0, 7)),
        attention_loss(rows(), rows(), nothing),
        hidden_loss(logits, torch.randn(2, 5, 7), nothing),
    ]
    assert [value.item() for value in values] == [0.0] * len(values)
    sum(values).backward()
    assert logits.grad.abs().sum() == 0
    assert masked_lm_loss(logits, torch.full((2, 5), -100), count=0).item() == 0


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"labels of shape \(2, 4\) do not fit logits of \(2, 5, 7\)"):
        masked_lm_loss(torch.zeros(2, 5, 7), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(
        ValueError, match=r"logits of the student have shape \(2, 7\), those of the teacher \(2, 8\)"
    ):
        output_loss(torch.zeros(2, 7), torch.zeros(2, 8))
    with pytest.raises(ValueError, match=r"mask of shape \(3,\) does not fit logits of \(2, 7\)"):
        output_loss(torch.zeros(2, 7), torch.zeros(2, 7), torch.ones(3))
    with pytest.raises(
        ValueError, match=r"attention maps of the student have shape \(2, 3, 5, 5\), .*\(2, 4, 5, 5\)"
    ):
        attention_loss(rows(heads=3), rows(heads=4))
    with pytest.raises(
        ValueError, match=r"hidden states of the student have shape \(2, 5, 4\), .*\(2, 5, 6\)"
    ):
        hidden_loss(torch.zeros(2, 5, 4), torch.zeros(2, 5, 6))


def test_output_loss_is_distillation_as_torch_has_it():
    student, teacher = torch.randn(6, 9), torch.randn(6, 9)
    expected = nn.functional.kl_div(
        (student / 3).log_softmax(-1), (teacher / 3).log_softmax(-1), log_target=True, reduction="batchmean"
    )
    torch.testing.assert_close(output_loss(student, teacher, temperature=3.0), 9 * expected)


# The layer map


@pytest.mark.parametrize(
    ("iterations", "layers", "strategy", "expected"),
    [
        (6, 12, "uniform", (2, 4, 6, 8, 10, 12)),
        (3, 6, "uniform", (2, 4, 6)),
        (5, 12, "uniform", (3, 5, 8, 10, 12)),
        (12, 12, "uniform", tuple(range(1, 13))),
        (1, 12, "uniform", (12,)),
        (4, 2, "uniform", (1, 1, 2, 2)),
        (3, 12, "last", (10, 11, 12)),
        (6, 12, "alternate", (2, 4, 6, 8, 10, 12)),
        (3, 12, "alternate", (2, 4, 6)),
        (3, 12, [2, 0, 12], (2, 0, 12)),
        (2, 4, (4, 1), (4, 1)),
    ],
)
def test_layer_map(iterations, layers, strategy, expected):
    assert layer_map(iterations, layers, strategy) == expected


def test_layer_map_is_uniform_by_default():
    assert layer_map(6, 12) == (2, 4, 6, 8, 10, 12)


@pytest.mark.parametrize(
    ("iterations", "layers", "strategy", "message"),
    [
        (
            6, 12, [2, 4, 6, 8],
            r"layer_map has 4 entries but the student has 6 iterations; give one teacher layer "
            r"\(1-12, or 0 for none\) per iteration",
        ),
        (
            2, 12, [2, 13],
            r"layer_map matches iteration 2 with teacher layer 13, but the teacher has layers 1-12 "
            r"\(0 leaves an iteration without alignment\)",
        ),
        (2, 12, [-1, 2], r"layer_map matches iteration 1 with teacher layer -1"),
        (
            6, 6, "alternate",
            r"layer_map 'alternate' would match 6 iterations with teacher layers 2, 4, 6, 8, 10, 12, "
            r"but the teacher has layers 1-6; give uniform or a list",
        ),
        (6, 4, "last", r"layer_map 'last' would match 6 iterations with teacher layers -1, 0, .* layers 1-4"),
        (6, 12, "first", r"'first' is not known: give uniform, last, alternate or a list of layers"),
    ],
)  # fmt: skip
def test_layer_map_errors(iterations, layers, strategy, message):
    with pytest.raises(ValueError, match=message):
        layer_map(iterations, layers, strategy)
