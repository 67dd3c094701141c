"""Operations of a step against a count by hand."""

from __future__ import annotations

import itertools
import math
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
    weighed,
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


LONG = Price(1, 1, "windows", 1.0, 10**9, 1e9, "fp32", 0.0, 0.0)


def test_the_time_has_evaluations_and_what_each_step_takes_beside_its_arithmetic(monkeypatch):
    monkeypatch.setattr(costs, "measured_matmul_rate", lambda _: 1e10)
    price = replace(LONG, steps=1000, tokens=600_000, evaluations=0.5)
    assert price.seconds == pytest.approx(100_000 * 1.5 + 30) == price.computed()
    assert "; about 41:40:30 with evaluations, at 6 tokens/s on this machine, and " in price.line()
    assert replace(price, measured=80_000.0).seconds == 120_000
    assert " at 8 tokens/s" in replace(price, measured=80_000.0).line()  # of the training
    few = replace(price, tokens=200)  # 2e11 operations, 3e11 with evaluations
    assert few.seconds == 30 and "under a minute" in few.line()
    assert few.computed() == pytest.approx(50 + 30)
    much = replace(few, evaluations=5.0)  # few rows to train on, many to validate on
    assert much.seconds == pytest.approx(200 + 30) and "about 3:50 " in much.line()
    assert "about 5:00 " in replace(few, steps=10_000).line()


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
    assert why.endswith("this machine, and is taken from 1.5 times on") == (times == 1.4)


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

    def rehearse():
        nonlocal now
        for batch in itertools.count():
            now += 9.0
            yield (0.01, 0.004) if batch else (0.02, 0.008)

    trainer = SimpleNamespace(rehearse=rehearse, sum_over_processes=list)
    tokens = {"step": 200.0, "evaluation": 1000.0, "apart": 3000.0}
    steps, seconds = fitted_length(lambda _: trainer, now, 7200.0, **tokens, every=every, fewest=fewest)
    assert 60.0 < now - 100.0 < 90.0  # the rehearsal is of a minute
    assert seconds == pytest.approx(2.0 * steps)
    evaluations = max(fewest, steps / every)
    assert now + seconds + 4.0 * evaluations + 12.0 == pytest.approx(7300.0, rel=0.001)
    began, needed = now, 18.0 + 2.0 + 4.0 * fewest + 12.0
    with pytest.raises(UserError, match=rf"a step takes 2\.0 s, .*: give {math.ceil(needed / 54)}m or more"):
        fitted_length(lambda _: trainer, now, needed - 1.0, **tokens, every=every, fewest=fewest)
    assert now == began + 18.0  # the second batch has shown it


def test_a_time_that_the_first_batch_shows_to_be_too_short_is_refused_at_once(monkeypatch):
    now = 0.0
    monkeypatch.setattr(costs.time, "monotonic", lambda: now)

    def rehearse():
        nonlocal now
        for _ in range(2):
            now += 80.0
            yield 1.0, 0.4

    trainer = SimpleNamespace(rehearse=rehearse, sum_over_processes=list)
    tokens = {"step": 60.0, "evaluation": 0.0, "apart": 0.0, "every": 1.0, "fewest": 1}
    with pytest.raises(UserError, match=r"time: too short, as a step takes 60\.0 s.*: give 3m or more"):
        fitted_length(lambda _: trainer, 0.0, 60.0, **tokens)
    assert now == 80.0
    now = 0.0
    with pytest.raises(UserError, match="give 5m or more"):  # what is compiled may get far faster
        fitted_length(lambda _: trainer, 0.0, 90.0, **tokens, compiles=True)
    assert now == 160.0


@pytest.mark.parametrize(("first", "measured"), [(1.0, 4e-6), (30.0, 9e-6)])
def test_a_long_run_goes_by_the_speed_of_a_few_batches(first, measured, monkeypatch):
    # The first batch warms up, unless it takes so long that it is all there is.
    clock = iter([0.0, first, first + 3.5])
    monkeypatch.setattr(costs, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(Price, "rate", 1e12)
    rehearsed = SimpleNamespace(rehearse=lambda: iter([(9e-6, 1.0), (4e-6, 1.0)]))
    price = replace(LONG, steps=1000, tokens=10**8, flops=1e9, evaluations=0.5)
    found = weighed(price, None, lambda _: rehearsed, 10**5)
    assert found.measured == pytest.approx(measured * 10**8)
    assert found.seconds == pytest.approx(1.5 * measured * 10**8)  # with evaluations
    speed = f"{1 / measured:,.0f} tokens/s"
    assert speed in found.line()


def test_what_is_short_or_known_or_compiled_is_not_measured_before_it_runs(monkeypatch):
    monkeypatch.setattr(Price, "rate", 1e12)
    long = replace(LONG, tokens=10**8, flops=1e9)
    for price, compiles in (
        (replace(LONG, tokens=1), False),
        (replace(long, measured=90.0), False),
        (long, True),
    ):
        assert weighed(price, None, None, 1.0, compiles=compiles) is price  # type: ignore[arg-type]
    monkeypatch.setattr(costs, "world_size", lambda: 2)
    assert weighed(long, None, None, 1.0) is long  # type: ignore[arg-type]


def test_a_run_that_measuring_shows_to_be_too_long_is_refused(monkeypatch):
    monkeypatch.setattr(Price, "rate", 1e12)
    slow = SimpleNamespace(rehearse=lambda: itertools.repeat((1.0, 1.0)))
    monkeypatch.setattr(costs, "_REHEARSAL", 0.0)
    price = replace(LONG, tokens=10**6, flops=1e9)
    assert price.seconds < 3600
    with pytest.raises(UserError, match="more than 1 hours"):
        weighed(price, 1.0, lambda _: slow, 10**5)
