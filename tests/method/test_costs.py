"""Operations of a step against a count by hand."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from minialbert import MiniAlbertConfig
from minialbert.method import costs
from minialbert.method.costs import forward_flops_per_token, step_flops_per_token

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


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("fp32", "fp32; bf16 products are 2.5 times as fast here: --set training.precision=bf16"),
        ("bf16", "bf16"),
        ("fp16", "fp16"),
    ],
)
def test_a_cpu_that_multiplies_bf16_faster_is_told(precision, expected, monkeypatch):
    rates = {"fp32": 80e9, "bf16": 200e9, "fp16": 1e9}
    monkeypatch.setattr(costs, "measured_matmul_rate", rates.__getitem__)
    assert costs._cpu_precision(precision, rates[precision]) == expected


def test_a_cpu_that_does_not_is_told_of_fp32(monkeypatch):
    monkeypatch.setattr(costs, "measured_matmul_rate", {"fp32": 130e9, "bf16": 75e9}.__getitem__)
    assert costs._cpu_precision("fp32", 130e9) == "fp32"
    assert costs._cpu_precision("bf16", 75e9).startswith("bf16; fp32 products are 1.7 times as fast")
