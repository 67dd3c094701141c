"""Samples that leave a classifier early, against loops over single inputs, each deeper and deeper from the start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from early_exits import DEPTH, KINDS, build

from minialbert import MiniAlbertConfig


def batch(*, padding="right", size=12):
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(3, 11, (size,), generator=generator)
    columns = torch.arange(10)
    if padding == "left":
        columns = columns.flip(0)
    return {
        "input_ids": torch.randint(5, 61, (size, 10), generator=generator),
        "attention_mask": (columns < lengths[:, None]).long(),
        "token_type_ids": torch.randint(0, 2, (size, 10), generator=generator),
    }


def sure(logits, kind):
    """Confidence of one sample without padding, from the definition."""
    if kind == "multi":
        return min(max(p, 1 - p) for p in logits.double().sigmoid().tolist())
    return logits.double().softmax(-1).max(-1).values.min().item()


@torch.no_grad()
def one_at_a_time(model, inputs, threshold, kind, exits=range(1, DEPTH), depth=DEPTH):
    """Logits and iterations of each sample alone, without its padding, deeper and deeper from the start."""
    found = []
    for row in range(len(inputs["input_ids"])):
        kept = inputs["attention_mask"][row].bool()
        positions = kept.nonzero().T
        alone = {name: inputs[name][row : row + 1, kept] for name in ("input_ids", "token_type_ids")}
        for taken in range(1, depth + 1):
            logits = model(**alone, position_ids=positions, num_iterations=taken).logits[0]
            if taken in exits and sure(logits, kind) >= threshold:
                break
        found.append((logits, taken))
    return found


def middling(model, inputs, kind):
    """A threshold at which samples leave after different numbers of iterations."""
    found = []
    for row in range(len(inputs["input_ids"])):
        alone = {name: values[row : row + 1] for name, values in inputs.items()}
        for taken in range(1, DEPTH):
            logits = model(**alone, num_iterations=taken).logits[0]
            found.append(sure(logits[alone["attention_mask"][0].bool()] if kind == "token" else logits, kind))
    found.sort()
    middle = int(0.7 * len(found))
    return (found[middle] + found[middle + 1]) / 2


@KINDS
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_batch_says_what_each_sample_says_alone(kind, attention):
    agrees_with_single_inputs(build(kind, attention=attention), batch(), kind)


def test_padding_on_the_left_is_never_cut_away():
    agrees_with_single_inputs(build("token"), batch(padding="left"), "token")


@torch.no_grad()
def agrees_with_single_inputs(model, inputs, kind):
    threshold = middling(model, inputs, kind)
    output = model(**inputs, exit_threshold=threshold)
    expected = one_at_a_time(model, inputs, threshold, kind)
    assert output.exit_iterations.tolist() == [taken for _, taken in expected]
    assert output.exit_iterations.dtype == torch.int64
    assert len(set(output.exit_iterations.tolist())) > 2
    assert output.loss is None
    for row, (logits, _) in enumerate(expected):
        kept = inputs["attention_mask"][row].bool()
        own = output.logits[row][kept] if kind == "token" else output.logits[row]
        torch.testing.assert_close(own, logits, atol=1e-5, rtol=1e-5)


@KINDS
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_without_a_mask_all_columns_count(kind, attention):
    model, ids = build(kind, attention=attention), batch()["input_ids"]
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    threshold = middling(model, whole, kind)
    masked, free = (model(**inputs, exit_threshold=threshold) for inputs in (whole, {"input_ids": ids}))
    assert len(set(free.exit_iterations.tolist())) > 2
    assert torch.equal(masked.exit_iterations, free.exit_iterations)
    torch.testing.assert_close(masked.logits, free.logits, atol=1e-6, rtol=1e-6)


@KINDS
@torch.no_grad()
def test_at_threshold_one_all_run_in_full(kind):
    model, inputs = build(kind, spread=0.1), batch()
    output = model(**inputs, exit_threshold=1.0)
    assert output.exit_iterations.tolist() == [DEPTH] * 12
    torch.testing.assert_close(output.logits, model(**inputs).logits, atol=1e-6, rtol=1e-6)
    shallow = model(**inputs, exit_threshold=1.0, num_iterations=2)
    assert shallow.exit_iterations.tolist() == [2] * 12
    torch.testing.assert_close(shallow.logits, model(**inputs, num_iterations=2).logits, atol=1e-6, rtol=1e-6)


@KINDS
@torch.no_grad()
def test_threshold_and_number_of_iterations_combine(kind):
    model, inputs = build(kind), batch()
    threshold = middling(model, inputs, kind)
    free, capped = (model(**inputs, exit_threshold=threshold, num_iterations=n) for n in (None, 2))
    assert torch.equal(capped.exit_iterations, free.exit_iterations.clamp(max=2))
    assert len(set(capped.exit_iterations.tolist())) == 2


@torch.no_grad()
def test_samples_leave_only_where_the_head_was_trained_to_read():
    model, inputs = build(elastic_depths=[1, 3]), batch()
    threshold = middling(model, inputs, "single")
    output = model(**inputs, exit_threshold=threshold)
    expected = one_at_a_time(model, inputs, threshold, "single", exits=(1, 3))
    assert output.exit_iterations.tolist() == [taken for _, taken in expected]
    assert set(output.exit_iterations.tolist()) == {1, 3, 4}
    late = model(**inputs, exit_threshold=1e-3, num_iterations=5)
    assert late.exit_iterations.tolist() == [1] * 12


@torch.no_grad()
def test_who_is_sure_at_once_takes_no_more_compute():
    """The block changes nothing here, and the first token alone decides: 7 is told for sure, 8 is not."""
    model = build(adapter_reduction_factor=None, num_labels=2)
    block = model.minialbert.block
    for layer in (block.attention.dense, block.ffn_output):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for norm in (block.LayerNorm, block.attention.LayerNorm):
        torch.nn.init.ones_(norm.weight)
        torch.nn.init.zeros_(norm.bias)
    ids = torch.full((6, 8), 20)
    ids[:, 0] = torch.tensor([7, 8, 8, 7, 7, 8])
    lengths = torch.tensor([8, 5, 3, 4, 8, 4])
    mask = (torch.arange(8) < lengths[:, None]).long()
    states = model.minialbert(ids, mask, num_iterations=1).last_hidden_state[:2, 0]
    wanted = torch.tensor([5.0, 0.1])
    direction = torch.linalg.pinv(states) @ wanted
    model.classifier.weight.copy_(torch.stack([direction, -direction]))
    torch.nn.init.zeros_(model.classifier.bias)
    shapes = []
    block.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape[:2])))
    output = model(ids, mask, exit_threshold=0.9)
    assert output.exit_iterations.tolist() == [1, 4, 4, 1, 1, 4]
    assert shapes == [(6, 8), (3, 5), (3, 5), (3, 5)]  # three rows on, and no longer than the longest of them
    torch.testing.assert_close(
        output.logits[:, 0], torch.tensor([5.0, 0.1, 0.1, 5.0, 5.0, 0.1]), atol=1e-3, rtol=1e-3
    )
    shapes.clear()
    assert model(ids[[0, 3]], mask[[0, 3]], exit_threshold=0.9).exit_iterations.tolist() == [1, 1]
    assert shapes == [(2, 8)]


@torch.no_grad()
def test_padding_of_token_labels_does_not_keep_a_sample():
    model, inputs = build("token"), batch(size=4)
    logits = torch.zeros(4, 10, 3)
    logits[..., 0] = torch.where(inputs["attention_mask"] == 1, 6.0, 0.0)
    expected = 1 / (1 + 2 * np.exp(-6))
    assert model.confidence(logits, inputs["attention_mask"]).tolist() == pytest.approx([expected] * 4)
    assert model.confidence(logits)[0].item() == pytest.approx(1 / 3)


@KINDS
@torch.no_grad()
def test_the_config_asks_for_it_where_nothing_excludes_it(kind, tmp_path):
    plain, inputs = build(kind), batch()
    threshold = middling(plain, inputs, kind)
    plain.config.exit_threshold = threshold
    plain.config.elastic_depths = [1, 2, 3]
    plain.save_pretrained(tmp_path)
    model = type(plain).from_pretrained(tmp_path)
    assert model.config.exit_threshold == threshold
    assert list(model.config.elastic_depths) == [1, 2, 3]
    early, asked = model(**inputs), model(**inputs, exit_threshold=threshold)
    assert torch.equal(early.logits, asked.logits)
    assert early.exit_iterations.min() < DEPTH
    as_tuple = model(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], early.logits)
    assert torch.equal(as_tuple[1], early.exit_iterations)
    # Passed over, not refused: who evaluates or tunes a calibrated model asks for nothing.
    shape = {"single": (12,), "multi": (12, 3), "token": (12, 10)}[kind]
    labels = torch.zeros(shape, dtype=torch.float if kind == "multi" else torch.long)
    full = model(**inputs, num_iterations=DEPTH, exit_threshold=None, labels=labels)
    assert full.exit_iterations is None
    for switch in ("output_hidden_states", "output_attentions"):
        output = model(**inputs, **{switch: True})
        assert output.exit_iterations is None
        torch.testing.assert_close(output.logits, full.logits, atol=1e-5, rtol=1e-5)
    assert model.train()(**inputs).exit_iterations is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": torch.zeros(12, dtype=torch.long)}, "excludes labels"),
        ({"output_attentions": True}, "excludes output_attentions"),
        ({"output_hidden_states": True}, "excludes output_hidden_states"),
        (
            {"attention_mask": torch.ones(12, 1, 10, 10, dtype=torch.bool)},
            r"attention_mask of shape \(B, T\)",
        ),
        ({"exit_threshold": 0.0}, "above 0 and up to 1, got 0.0"),
        ({"exit_threshold": 1.5}, "above 0 and up to 1, got 1.5"),
        ({"num_iterations": 0}, "num_iterations must be at least 1"),
    ],
)
def test_what_early_exit_excludes(given, message):
    with pytest.raises(ValueError, match=message):
        build()(**{**batch(), "exit_threshold": 0.9, **given})


def test_early_exit_is_for_classifiers_in_eval_mode():
    with pytest.raises(ValueError, match="needs eval mode"):
        build().train()(**batch(), exit_threshold=0.9)
    for overrides in (
        {"problem_type": "regression", "num_labels": 3},
        {"problem_type": None, "num_labels": 1},
    ):
        model = build(**overrides)
        with pytest.raises(ValueError, match="a score has no confidence: give num_iterations"):
            model(**batch(), exit_threshold=0.9)
        model.config.exit_threshold = 0.9
        assert model(**batch()).exit_iterations is None
    assert build("multi", num_labels=1)(**batch(), exit_threshold=0.5).exit_iterations.tolist() == [1] * 12


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.01, True])
def test_thresholds_in_a_config_are_checked(threshold):
    with pytest.raises(ValueError, match="exit_threshold must lie above 0"):
        MiniAlbertConfig(exit_threshold=threshold)


@pytest.mark.parametrize("depths", [[], [0, 1], [2, 1], [1, 1], [True, 2]])
def test_depths_in_a_config_are_checked(depths):
    with pytest.raises(ValueError, match="elastic_depths must be numbers of iterations"):
        MiniAlbertConfig(elastic_depths=depths)


def test_export_has_the_full_depth():
    model, inputs = build(exit_threshold=0.5), batch()
    with torch.no_grad():
        exported = torch.export.export(model, (), inputs).module()
        expected = model(**inputs, exit_threshold=1.0)
        assert model(**inputs).exit_iterations.min() < DEPTH
        torch.testing.assert_close(exported(**inputs).logits, expected.logits, atol=1e-5, rtol=1e-5)
