"""Every public name of the top level has an example in its docstring, and the examples run, in one folder."""

from __future__ import annotations

import doctest
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import minialbert

# In this order: an example may use what those before it left in the folder.
VERBS = ("prepare", "distill", "finetune", "evaluate", "predict", "calibrate", "export", "report")
NAMES = (*VERBS, *sorted(set(minialbert.__all__) - {*VERBS, "__version__"}))


def examples_of(name: str) -> doctest.DocTest:
    public = getattr(minialbert, name)
    docstring = (public.report if name == "report" else public).__doc__
    known = {"minialbert": minialbert, "torch": torch, "transformers": transformers, "Path": Path}
    return doctest.DocTestParser().get_doctest(docstring, known, name, None, 0)


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_has_an_example(name):
    found = examples_of(name).examples
    assert name in "".join(example.source + example.want for example in found)
    assert any(example.want for example in found)
    assert not any(doctest.SKIP in example.options for example in found)


def test_a_public_name_is_in_the_reference():
    page = (Path(__file__).parent.parent / "docs" / "reference" / "index.md").read_text(encoding="utf-8")
    listed = {line.rpartition(".")[2] for line in page.splitlines() if line.startswith("::: ")}
    assert set(NAMES) <= listed


@pytest.fixture(scope="module")
def ran(tiny_tokenizer, tmp_path_factory) -> tuple[Path, str, dict[str, dict[str, Any]]]:
    """Run all examples; returns their folder, what failed, and what each has left under its names."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("examples")
    config = transformers.BertConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=64, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    failed, left = io.StringIO(), {}
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        transformers.BertForMaskedLM(config).save_pretrained(folder / "bert-base-uncased")
        tiny_tokenizer.save_pretrained(folder / "bert-base-uncased")
        patch.chdir(folder)
        for name in NAMES:
            examples = examples_of(name)
            runner.run(examples, out=failed.write, clear_globs=False)
            left[name] = examples.globs
    return folder, failed.getvalue(), left


def test_the_examples_run(ran):
    assert ran[1] == ""


def test_the_examples_leave_what_they_return(ran, monkeypatch):
    folder, _, left = ran
    monkeypatch.chdir(folder)
    distilled, tuned, exported = (
        left["distill"]["distilled"],
        left["finetune"]["tuned"],
        left["export"]["exported"],
    )
    assert (folder / left["prepare"]["windows"].path / "manifest.json").is_file()
    assert distilled.record == json.loads((folder / "run" / "result.json").read_text())
    assert isinstance(distilled.model, minialbert.MiniAlbertForMaskedLM) and not distilled.model.training
    assert tuned.path == Path("tuned") and tuned.score == tuned.record["score"]
    texts = ["A large house.", "A small river."]
    answers = minialbert.predict(tuned, texts)
    assert [one["label"] for one in minialbert.predict(folder / exported.path, texts)] == [
        one["label"] for one in answers
    ]
    scored = minialbert.evaluate(tuned, data={"test": list(zip(texts, ("large", "small"), strict=True))})
    right = sum(one["label"] == label for one, label in zip(answers, ("large", "small"), strict=True)) / 2
    assert scored.metrics["test"]["accuracy"] == pytest.approx(right)


def test_an_example_that_fails_is_found():
    examples = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    said = io.StringIO()
    doctest.DocTestRunner(verbose=False).run(examples, out=said.write)
    assert "Expected:\n    3" in said.getvalue()
