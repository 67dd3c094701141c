"""The demo: its text, its teacher's check, its comparison; and the whole of it in the slow tier."""

from __future__ import annotations

import importlib.util
import json
import time
from itertools import groupby
from pathlib import Path

import pytest
import torch

from minialbert.errors import UserError
from minialbert.experiments.demo import demo, task
from minialbert.experiments.demo import text as demo_text


def test_no_text_is_on_both_sides():
    training, held_out = demo_text.python_texts()
    assert sum(len(document.text.split()) for document in training) > 100_000
    assert len(held_out) == demo_text._COMPARED_DOCUMENTS
    lines = "\n".join(document.text for document in training)
    assert not any(document.text in lines for document in held_out)
    assert not any("\n\n" in document.text for document in training)
    again = demo_text.python_texts()
    assert again == (training, held_out)


def test_docstrings_are_read_without_importing(tmp_path):
    source = tmp_path / "module.py"
    source.write_text(
        '"""Top."""\nraise SystemExit\nclass A:\n    """Of A."""\n    def f(self):\n        """Of f."""\n'
    )
    found = demo_text._docstrings(source, "module")
    assert [(document.name, document.text) for document in found] == [
        ("module", "Top."), ("module.A", "Of A."), ("module.A.f", "Of f."),
    ]  # fmt: skip
    (tmp_path / "broken.py").write_text("def (")
    assert demo_text._docstrings(tmp_path / "broken.py", "broken") == []


def test_no_module_is_on_both_sides_of_the_packages_task():
    training, test = demo_text.package_texts()
    assert len(training) > 500 and len(test) > 100
    classes = {package for _, package in training}
    assert len(classes) == 8
    assert {package for _, package in test} == classes
    assert not {text for text, _ in training} & {text for text, _ in test}
    modules = {
        document.text: document.name
        for module, path in demo_text._modules()
        for document in demo_text._docstrings(path, module)
    }
    files = {module for module, _ in demo_text._modules()}

    def module_of(text: str) -> str:
        name = modules[text]
        while name not in files:
            name = name.rpartition(".")[0]
        return name

    of_training = {module_of(text) for text, _ in training}
    of_test = {module_of(text) for text, _ in test}
    assert len(of_training & of_test) <= 2  # texts that stand in several modules have the name of the last
    assert demo_text.package_texts() == (training, test)


def test_embeddings_ignore_padding(tiny_teacher, tiny_tokenizer):
    alone = demo.embed(tiny_teacher.bert, tiny_tokenizer, ["the cat sat"])
    together = demo.embed(
        tiny_teacher.bert, tiny_tokenizer, ["the cat sat", "the dog ran in the big red house"]
    )
    assert torch.allclose(alone[0], together[0], atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(2))


def test_a_teacher_with_other_weights_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "some_teacher"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(demo, "TEACHER_PACKAGE", "some_teacher")
    with pytest.raises(UserError, match="no model.safetensors"):
        demo.find_teacher()
    (package / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match="has sha256 d9298a10d1b0…, expected 53aa51172d14…"):
        demo.find_teacher()


def test_latencies_are_medians_of_turns_and_the_slower_model_is_slower():
    class Sleeper(torch.nn.Module):
        def __init__(self, seconds):
            super().__init__()
            self.seconds, self.lengths = seconds, []

        def forward(self, input_ids, attention_mask):
            assert input_ids.shape == attention_mask.shape
            self.lengths.append(input_ids.shape[1])
            time.sleep(self.seconds if len(self.lengths) != 4 else 0.2)  # one outlier, which a median ignores

    quick, slow = Sleeper(0.001), Sleeper(0.02)
    found = task.median_latencies({"quick": quick, "slow": slow}, (4, 9), turns=5)
    for one in (quick, slow):
        assert [(length, len([*runs]) >= 5) for length, runs in groupby(one.lengths)] == [
            (4, True),
            (9, True),
        ]
    assert 1 <= found["quick"][4] < found["slow"][4] < 200 and found["slow"][9] >= 20


def test_a_model_that_cannot_be_timed_is_told():
    class Broken(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            raise ValueError("no such input")

    with pytest.raises(RuntimeError, match=r"cannot be run at batch 1 x 4 \(no such input\)"):
        task.median_latencies({"broken": Broken()}, (4,), turns=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    importlib.util.find_spec(demo.TEACHER_PACKAGE) is None, reason="the teacher's wheel is not there"
)
def test_the_demo_brings_the_student_nearer_to_its_teacher(tmp_path: Path):
    shown: list[object] = []
    record = demo.run_demo(tmp_path / "demo", say=shown.append)
    assert record == json.loads((tmp_path / "demo" / "result.json").read_text())
    start, end = record["metrics"]["student_start"], record["metrics"]["student_end"]
    for iteration in (1, 2, 3):
        assert end[f"cosine_{iteration}"] > start[f"cosine_{iteration}"] + 0.1
    ranks = record["metrics"]["similarity_rank_correlation"]
    assert ranks["student_end"] > ranks["student_start"]
    assert record["model"]["encoder_parameters"] < record["model"]["teacher_encoder_parameters"] / 3
    accuracy = record["metrics"]["packages"]["accuracy"]
    assert accuracy["student"] > accuracy["majority"] + 0.1
    export = record["metrics"]["export"]
    assert export["parity"]["max_difference"] <= export["parity"]["allowed"]
    size = export["bytes"]
    assert size["student, ONNX Runtime int8"] < 0.3 * size["student, PyTorch fp32"]
    assert len(shown) >= 13
