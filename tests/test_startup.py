"""What starting costs: help answers at once, imports bring nothing unasked, and Auto classes know the student."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import minialbert
from minialbert import errors

HEAVY = ("torch", "transformers", "datasets", "accelerate", "numpy", "pydantic", "onnxruntime", "matplotlib")
HEAVY_LIBRARIES = (
    "torch", "transformers", "datasets", "accelerate", "pandas", "scipy", "sklearn", "matplotlib", "pyarrow",
)  # fmt: skip
RECORD = Path(__file__).parents[1] / "results" / "main-job" / "distilled"
HEADS = ("", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
VERBS = (
    "demo", "prepare", "distill", "finetune", "evaluate", "predict", "export", "calibrate", "bench", "report",
    "convert", "convert-data", "attention", "suite", "recipes",
)  # fmt: skip
ORDERS = {
    "ours first": "import minialbert; from transformers import AutoConfig, AutoModel",
    "theirs first": "from transformers import AutoConfig, AutoModel; import minialbert",
    "by way of the layers, which import AutoModel": "import minialbert; from transformers import BertModel",
    "by way of our model": "from minialbert import MiniAlbertModel",
    "by way of the trainer": "import minialbert; from transformers import Trainer, pipeline",
    "by way of all promised names": f"from minialbert import {', '.join(minialbert.__all__)}",
}


def command(
    *arguments: str, start: tuple[str, ...] = ("-m", "minialbert"), **environment: str
) -> tuple[float, str]:
    """CPU seconds and output of the command line, the smallest of three times: what else runs only adds."""
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *start, *arguments],
            capture_output=True, text=True, check=False, env={**os.environ, **environment},
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if seconds[-1] < 0.6:
            break
    assert done.returncode == 0, done.stderr
    return min(seconds), done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_every_verb_answers_at_once(verb):
    seconds, told = command(verb, "--help")
    assert "Usage:" in told and seconds < 0.6


def test_help_version_and_completion_answer_at_once():
    seconds, told = command("-h")
    assert all(verb in told for verb in VERBS) and seconds < 0.6
    seconds, told = command("--version")
    assert told.startswith("minialbert ") and seconds < 0.6
    completing = {"COMP_WORDS": "minialbert dist", "COMP_CWORD": "1", "_MINIALBERT_COMPLETE": "complete_bash"}
    script = "from minialbert.cli.main import app; app(prog_name='minialbert')"
    seconds, told = command(start=("-c", script), **completing)
    assert told.split() == ["distill"] and seconds < 0.6


def test_importing_the_package_or_the_command_line_brings_nothing_heavy():
    script = f"import minialbert, minialbert.cli.main, sys; print(*[m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# What runs on the smallest of machines, by the models in minialbert-models: command lines, and Python.
WITHOUT_TORCH = {
    "predict": "predict --model biomedical-ner-2mb Aspirin",
    "predict a table": "predict --model biomedical-ner-2mb --input {0}/texts.csv --format csv",
    "predict a page": "predict --model biomedical-ner-2mb --input {0}/texts.csv --output {0}/answers.html",
    "predict for brat": "predict --model biomedical-ner-2mb --input {0}/texts.csv --format brat --output {0}/brat",
    "embed": "embed --model minilm-5mb --input {0}/texts.csv --output {0}/vectors.npy",
    "convert-data": "convert-data {0}/labelled.jsonl {0}/conll --format conll",
    "report": f"report {RECORD}",
    "suite ls": "suite ls",
    "recipes ls": "recipes ls",
    "recipes show": "recipes show small",
    "load a tagger": "minialbert.load('biomedical-ner-2mb')('Aspirin')",
    "load an encoder": "minialbert.load('minilm-5mb').embed(['a text'])",
    "predict()": "minialbert.render(minialbert.predict('biomedical-ner-2mb', 'Aspirin'))",
    "embed()": "minialbert.embed('minilm-5mb', 'a text')",
    "convert_data()": "minialbert.convert_data('{0}/labelled.jsonl', '{0}/again', format='conll')",
    "report()": f"minialbert.report({str(RECORD)!r})",
}


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_what_needs_no_torch_does_not_import_it(name, tmp_path):
    (tmp_path / "texts.csv").write_text("id,text\na,Aspirin relieves pain.\n")
    spans = [{"start": 0, "end": 7, "label": "Chemical"}]
    (tmp_path / "labelled.jsonl").write_text(json.dumps({"text": "Aspirin relieves pain.", "spans": spans}))
    line = WITHOUT_TORCH[name].format(tmp_path)
    is_python = line.startswith("minialbert.")
    script = f"""
import atexit, sys
atexit.register(lambda: print("brought", *[m for m in {HEAVY_LIBRARIES} if m in sys.modules], file=sys.stderr))
{"import minialbert" if is_python else "from minialbert.cli.main import main"}
{line if is_python else f"sys.argv[1:] = {line.split()}; main()"}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].split() == ["brought"]


@pytest.mark.parametrize(
    ("installed", "advice"),
    [
        ("checkout", "pip install -e '.[export]' in the checkout"),
        ("file:///source", "pip install '.[export]' in the checkout"),
        (None, "pip install 'minialbert[export]'"),
    ],
)
def test_a_missing_extra_is_named_as_it_can_be_installed(installed, advice, monkeypatch, tmp_path):
    if installed != "checkout":
        monkeypatch.setattr(errors, "__file__", str(tmp_path / "minialbert" / "errors.py"))
        url = installed and json.dumps({"url": installed, "dir_info": {}})
        monkeypatch.setattr(errors, "distribution", lambda _: SimpleNamespace(read_text=lambda _: url))
    assert str(errors.MissingExtraError("onnx", "export", "this")) == f"this needs onnx: {advice}"


@pytest.fixture(scope="module")
def made_in_order() -> dict[str, list[str]]:
    """What the Auto classes make of a student's configuration after each order of imports; each has its own process."""
    script = f"""
import json, os, sys
import torch  # once for all of them, for it takes half of the time, and imports none of the others
assert not {{"transformers", "minialbert"}} & set(sys.modules)
for name, order in {ORDERS}.items():
    if (child := os.fork()) == 0:
        exec(order)
        import transformers
        shape = dict(vocab_size=50, hidden_size=8, num_attention_heads=2, embedding_size=4, intermediate_size=8,
                     num_hidden_layers=1, adapter_reduction_factor=2)
        config = transformers.AutoConfig.for_model("minialbert", **shape)
        made = [getattr(transformers, "AutoModel" + head).from_config(config) for head in {HEADS}]
        print(json.dumps([name, [type(model).__name__ for model in made]]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    made = dict(map(json.loads, done.stdout.splitlines()))
    assert made.keys() == ORDERS.keys(), done.stderr
    return made


@pytest.mark.skipif(not hasattr(os, "fork"), reason="one process after the other is forked")
@pytest.mark.parametrize("order", ORDERS)
def test_auto_classes_know_the_student_in_any_order_of_imports(order, made_in_order):
    assert made_in_order[order] == [f"MiniAlbert{head or 'Model'}" for head in HEADS]
