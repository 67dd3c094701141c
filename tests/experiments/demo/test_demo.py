"""The demo: its text, its teacher's check, its comparison; and the whole of it in the slow tier."""

from __future__ import annotations

import importlib.util
import json
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


def test_the_latency_table_is_a_benchmark_of_student_and_teacher(monkeypatch, tmp_path):
    asked = {}

    def benchmark(models, engines, lengths, **_):
        asked.update(models=models, engines=engines)
        cells = {
            engine: {"bytes": 10, "timings": [
                {"length": length, "seconds": {"median": length * (1 + place) / 1000}} for length in lengths
            ]}
            for place, engine in enumerate(reversed(engines))
        }  # fmt: skip
        failed = {"bytes": None, "timings": []}
        return {"notes": ["teacher torch-fp32: cannot be prepared"], "metrics": {
            "student": cells, "teacher": {**cells, "torch-fp32": failed},
        }}  # fmt: skip

    parity = {
        "max_difference": 0.1, "largest_output": 1.0, "allowed": 0.1, "argmax_agreement": 1.0, "rows": 1, "shapes": [],
    }  # fmt: skip
    monkeypatch.setattr(task, "benchmark", benchmark)
    monkeypatch.setattr(task, "DEFAULT_ENGINES", ("torch-fp32", "torch-int8", "onnx-int8"))
    monkeypatch.setattr("minialbert.deploy.onnx.export.export_onnx", lambda *_, **__: {"parity": parity})
    shown = []
    found = task.export_and_time(tmp_path / "tuned", tmp_path / "int8", tmp_path / "teacher", shown.append)
    assert asked["engines"] == ["torch-fp32", "onnx-int8"]
    assert asked["models"] == [f"student={tmp_path / 'tuned'}", f"teacher={tmp_path / 'teacher'}"]
    assert found["milliseconds"]["student, PyTorch fp32"] == {"16": 32.0, "128": 256.0}
    assert found["bytes"].keys() == found["milliseconds"].keys()
    assert "teacher, PyTorch fp32" not in found["bytes"] and "teacher torch-fp32: cannot be prepared" in shown
    first = [*shown[-1].columns[0].cells]
    assert first[:2] == ["student, ONNX Runtime int8", "teacher, ONNX Runtime int8"]
    assert first[2:] == ["student, PyTorch fp32"]


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
