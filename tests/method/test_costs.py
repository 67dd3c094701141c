"""Operations of a step against a count by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from transformers import BertConfig

from minialbert import MiniAlbertConfig
from minialbert.errors import UserError
from minialbert.method import costs
from minialbert.method.costs import (
    Price,
    faster_precision,
    fitted_length,
    forward_flops_per_token,
    step_flops_per_token,
)

WIDTH, VOCABULARY, LENGTH = 768, 30522, 256
# Queries, keys, values and output are four products of the width, the feed-forward block is eight; scores and sums.
BLOCK = 2 * 12 * WIDTH**2 + 4 * LENGTH * WIDTH


def test_bert_base_teaches_a_recursive_student():
    student = MiniAlbertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        embedding_size=128,
        num_hidden_layers=6,
        adapter_reduction_factor=16,
    )
    teacher = BertConfig()
    adapters = 2 * 2 * 2 * WIDTH * (WIDTH // 16)
    head = 2 * WIDTH**2 + 2 * 128 * (WIDTH + VOCABULARY)
    by_hand = 3 * (6 * (BLOCK + adapters) + 0.15 * head)
    alone = step_flops_per_token(student, None, LENGTH, masked=0.15, teacher_predicts=0.15)
    assert alone == pytest.approx(by_hand, rel=1e-12)
    by_hand += 12 * BLOCK + 0.15 * 2 * WIDTH * (WIDTH + VOCABULARY)
    taught = step_flops_per_token(student, teacher, LENGTH, masked=0.15, teacher_predicts=0.15)
    assert taught == pytest.approx(by_hand, rel=1e-12)
    silent = step_flops_per_token(student, teacher, LENGTH, masked=0.15, teacher_predicts=0.0)
    assert taught - silent == pytest.approx(0.15 * 2 * WIDTH * (WIDTH + VOCABULARY), rel=1e-9)


def test_a_full_student_has_a_full_head():
    full = BertConfig(num_hidden_layers=6)
    by_hand = 3 * (6 * BLOCK + 0.15 * 2 * WIDTH * (WIDTH + VOCABULARY))
    assert step_flops_per_token(full, None, LENGTH, masked=0.15, teacher_predicts=0.0) == pytest.approx(
        by_hand
    )
    assert forward_flops_per_token(full, LENGTH) == 6 * BLOCK


LONG = Price(1, 1, "windows", 1.0, 10**9, 1e9, "fp32", 0.0)


@pytest.mark.parametrize(("times", "chosen"), [(3.8, "bf16"), (1.5, "bf16"), (1.4, "fp32"), (0.6, "fp32")])
def test_auto_is_what_this_processor_multiplies_faster(times, chosen, monkeypatch):
    sizes = []
    monkeypatch.setattr(costs, "bf16_speed", lambda *size: sizes.append(size) or times)
    config = BertConfig(hidden_size=384, intermediate_size=1536)
    precision, (why,) = faster_precision("auto", config, 4096, LONG)
    assert precision == chosen and sizes == [(384, 1536, 1024)]
    assert why.startswith(
        f"precision: {chosen}; bf16 is {times} times as fast as fp32 in products of this size"
    )


def test_what_is_named_or_short_is_not_measured(monkeypatch):
    monkeypatch.setattr(costs, "bf16_speed", lambda *_: pytest.fail("measured"))
    assert faster_precision("fp32", BertConfig(), 512, LONG) == ("fp32", [])
    assert faster_precision("bf16", BertConfig(), 512, LONG) == ("bf16", [])
    assert faster_precision("auto", BertConfig(), 512, replace(LONG, tokens=1)) == ("fp32", [])
    monkeypatch.setattr(costs, "world_size", lambda: 2)
    assert faster_precision("auto", BertConfig(), 512, LONG) == ("fp32", [])


@pytest.mark.parametrize("fewest", [1, 10])
@pytest.mark.parametrize("every", [3.0, 1000.0])
def test_steps_and_evaluations_fill_a_time(every, fewest, monkeypatch):
    now = 100.0
    monkeypatch.setattr(costs.time, "monotonic", lambda: now)

    def rehearse(seconds):
        nonlocal now
        now += seconds
        return 0.01, 0.004

    trainer = SimpleNamespace(rehearse=rehearse)
    tokens = {"step": 200.0, "evaluation": 1000.0, "apart": 3000.0}
    steps, seconds = fitted_length(trainer, 7300.0, **tokens, every=every, fewest=fewest)
    assert seconds == pytest.approx(2.0 * steps)
    evaluations = max(fewest, steps / every)
    assert now + seconds + 4.0 * evaluations + 12.0 == pytest.approx(7300.0, rel=0.001)
    with pytest.raises(UserError, match="a step takes 2.0 s"):
        fitted_length(trainer, now + 12.0, **tokens, every=every, fewest=fewest)
