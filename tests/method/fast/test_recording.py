"""Recording attention rows: the same outputs as the fused kernel, and rows only where they are wanted."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from minialbert import MiniAlbertForMaskedLM
from minialbert.method.encoders import Teacher, view_encoder
from minialbert.method.fast.recording import (
    RECORDING,
    checkpoint_activations,
    record_attention,
    recording_attention,
)
from minialbert.method.objective import DistillationObjective, Request
from minialbert.method.trainer import DistillationStudent


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    mask = torch.ones(2, 10, dtype=torch.int64)
    mask[1, 7:] = 0
    return {"input_ids": torch.randint(5, 60, (2, 10)), "attention_mask": mask}


def bert(layers=3, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=dropout,
    )
    return BertForMaskedLM(config).eval()


@torch.no_grad()
def test_rows_are_those_of_the_layers_asked_for(inputs):
    model = bert()
    model.set_attn_implementation("eager")
    expected = model(**inputs, output_attentions=True)
    model.set_attn_implementation(RECORDING)
    with record_attention(Request(attention_layers=[1, 3])) as recorder:
        outputs = model(**inputs)
    assert sorted(recorder.rows) == [1, 3] and recorder.calls == 3
    torch.testing.assert_close(outputs.logits, expected.logits)
    for layer, rows in recorder.rows.items():
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.exp(), expected.attentions[layer - 1])


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_outside_the_context_it_is_sdpa(inputs, padded, monkeypatch):
    model = bert()
    if not padded:
        del inputs["attention_mask"]
    model.set_attn_implementation("sdpa")
    expected = model(**inputs).logits
    model.set_attn_implementation(RECORDING)
    assert torch.equal(model(**inputs).logits, expected)
    with record_attention(Request(attention_layers=[])) as recorder:
        assert torch.equal(model(**inputs).logits, expected)
    assert recorder.rows == {} and recorder.calls == 3
    calls = []
    fused = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
    )
    with record_attention(Request(attention_layers=[2])):
        model(**inputs)
    assert len(calls) == 2  # the other layers stay fused


@torch.no_grad()
def test_contexts_nest_and_end(inputs):
    first, second = bert(seed=1), bert(seed=2)
    for model in (first, second):
        model.set_attn_implementation(RECORDING)
    with record_attention(Request(attention_layers=[1])) as outer:
        first(**inputs)
        with record_attention(Request(attention_layers=[2])) as inner:
            second(**inputs)
        first(**inputs)
    assert (outer.calls, inner.calls) == (6, 3)
    assert sorted(outer.rows) == [1] and sorted(inner.rows) == [2]
    with pytest.raises(RuntimeError), record_attention(Request(attention_layers=[1])) as broken:
        raise RuntimeError
    first(**inputs)
    assert broken.calls == 0 and outer.calls == 6


@torch.no_grad()
def test_rows_after_dropout_hold_zeros_and_are_scaled(inputs):
    model = bert(dropout=0.5)
    del inputs["attention_mask"]  # so that a zero is a dropped element
    before = view_encoder_rows(model, inputs, after_dropout=False)
    model.train()
    torch.manual_seed(3)
    after = view_encoder_rows(model, inputs, after_dropout=True)
    kept = after != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(after[kept], 2 * before.exp()[kept])  # 1 / (1 - p)
    # Before dropout, the rows are whole even where dropout is on.
    torch.testing.assert_close(view_encoder_rows(model, inputs, after_dropout=False), before)
    model.eval()
    torch.testing.assert_close(view_encoder_rows(model, inputs, after_dropout=True), before.exp())


def view_encoder_rows(model, inputs, *, after_dropout):
    model.set_attn_implementation(RECORDING)
    view = view_encoder(model, inputs, Request(attention_layers=[1], after_dropout=after_dropout))
    assert view.log_rows is not after_dropout
    return view.attention_rows[1]


def test_dropout_of_a_recorded_layer_acts_on_its_values():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
    module = nn.Module().train()
    with record_attention(Request(attention_layers=[1], after_dropout=True)) as recorder:
        attended, rows = recording_attention(module, query, key, value, None, dropout=0.5, scaling=0.3)
    assert rows is None
    torch.testing.assert_close(attended, (recorder.rows[1] @ value).transpose(1, 2))


@pytest.mark.parametrize("additive", [False, True])
def test_masks_of_both_kinds(additive):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 4, 8).unbind(0)
    mask = torch.tensor([True, True, False, True])[None, None, None].expand(1, 1, 4, 4)
    given = torch.zeros(1, 1, 4, 4).masked_fill(~mask, torch.finfo(torch.float32).min) if additive else mask
    with record_attention(Request(attention_layers=[1])) as recorder:
        attended, _ = recording_attention(nn.Module(), query, key, value, given)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attended, expected.transpose(1, 2))
    assert recorder.rows[1].isfinite().all()
    assert (recorder.rows[1].exp()[..., 2] == 0).all()


@torch.no_grad()
def test_a_recursive_student_counts_iterations(inputs, tiny_student_config):
    torch.manual_seed(0)
    model = MiniAlbertForMaskedLM(tiny_student_config).eval()
    model.set_attn_implementation("eager")
    expected = model(**inputs, output_attentions=True).attentions
    model.set_attn_implementation(RECORDING)
    rows = view_encoder(model, inputs, Request(attention_layers=[1, 2])).attention_rows
    for iteration in (1, 2):
        torch.testing.assert_close(rows[iteration].exp(), expected[iteration - 1])
    assert not torch.allclose(rows[1], rows[2])


@pytest.mark.parametrize("recursive", [True, False])
def test_checkpointed_layers_record_the_same_gradients(inputs, tiny_student_config, recursive, caplog):
    teacher = Teacher(bert(layers=4), True)
    labels = torch.full((2, 10), -100)
    labels[0, 3] = labels[1, 2] = 7
    positions = labels != -100
    teacher_view = teacher.view(inputs, Request(attention_layers=[2, 4], positions=positions))
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        tiny_student_config.vocab_size = 61
        model = MiniAlbertForMaskedLM(tiny_student_config) if recursive else bert(layers=2, dropout=0.1)
        if checkpointed:
            checkpoint_activations(model)
        student = DistillationStudent(model, 32).train()
        torch.manual_seed(2)
        view = student(inputs, Request(attention_layers=[1, 2], positions=positions))
        objective = DistillationObjective()
        objective(
            view, teacher_view, labels=labels, attention_mask=inputs["attention_mask"], num_teacher_layers=4
        ).total.backward()
        gradients.append({name: p.grad for name, p in student.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_checkpointing_without_recording(inputs):
    model = bert(layers=2).train()
    model.set_attn_implementation(RECORDING)
    checkpoint_activations(model)
    model(**inputs).logits.sum().backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.isfinite().all()


def test_half_precision_on_a_cpu_attends_in_fp32(inputs):
    """Values and gradients are those of fp32 arithmetic on the same bf16 tensors, rounded once."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 10, 8).to(torch.bfloat16)
    mask = inputs["attention_mask"].bool()[:, None, None, :].expand(2, 1, 10, 10)
    half = [part.clone().requires_grad_() for part in (query, key, value)]
    full = [part.float().requires_grad_() for part in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16):
        attended, rows = recording_attention(nn.Module(), *half, mask)
    expected = nn.functional.scaled_dot_product_attention(*full, attn_mask=mask).transpose(1, 2)
    assert rows is None and attended.dtype == torch.bfloat16
    assert torch.equal(attended, expected.to(torch.bfloat16))
    direction = torch.randn(expected.shape).to(torch.bfloat16)
    attended.backward(direction)
    expected.backward(direction.float())
    for ours, exact in zip(half, full, strict=True):
        assert ours.grad.dtype == torch.bfloat16
        assert torch.equal(ours.grad, exact.grad.to(torch.bfloat16))


def test_additive_masks_in_half_precision(inputs):
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 10, 8).to(torch.bfloat16)
    seen = inputs["attention_mask"].bool()[:, None, None, :].expand(2, 1, 10, 10)
    additive = torch.zeros(2, 1, 10, 10, dtype=torch.bfloat16).masked_fill(~seen, float("-inf"))
    expected, _ = recording_attention(nn.Module(), query, key, value, seen)
    assert torch.equal(recording_attention(nn.Module(), query, key, value, additive)[0], expected)
