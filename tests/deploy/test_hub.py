"""The folder for the hub: complete, loadable without the package, without traces of this machine, and uploaded."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from safetensors.torch import load_file, save_file

from minialbert import (
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
)
from minialbert.deploy import hub
from minialbert.deploy.hub import SENTENCE_FILES, export_to_hub_folder
from minialbert.errors import UserError
from minialbert.method.configuration_minialbert import AUTO_MAP
from minialbert.runs.records import write_result
from minialbert.tasks.models import TaskInputs

ROOT = Path(__file__).resolve().parents[2]
ALWAYS = {
    "LICENSE", "README.md", "config.json", "configuration_minialbert.py", "model.safetensors", "modeling_minialbert.py",
    "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip
LABELS = ["O", "B-Person", "I-Person"]


@pytest.fixture
def save(tiny_student_config, tiny_tokenizer, tmp_path):
    """Save a student with some head and random weights; returns the model and its directory."""

    def build(model_class, name="saved", **settings):
        config = type(tiny_student_config).from_dict({**tiny_student_config.to_dict(), **settings})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = model_class(config).eval()
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer.save_pretrained(tmp_path / name)
        return model, tmp_path / name

    return build


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_masked_lm_becomes_a_complete_folder(tiny_student_dir, tmp_path):
    record = export_to_hub_folder(tiny_student_dir, tmp_path / "hub", repo_id="me/student")
    assert names(tmp_path / "hub") == ALWAYS | set(SENTENCE_FILES) == set(record["files"])
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["architectures"] == ["MiniAlbertForMaskedLM"]
    assert (tmp_path / "hub" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    for name in ("configuration_minialbert.py", "modeling_minialbert.py"):
        assert (tmp_path / "hub" / name).read_text() == (ROOT / "minialbert" / "method" / name).read_text()
    before, after = (load_file(path / "model.safetensors") for path in (tiny_student_dir, tmp_path / "hub"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert record["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "hub").rglob("*") if path.is_file()
    )
    assert json.loads(json.dumps(record)) == record
    assert record["url"] is None


def test_nothing_in_the_folder_tells_where_it_was_made(tiny_student_dir, tmp_path):
    run = tmp_path / "some-run"
    shutil.copytree(tiny_student_dir, run / "model")
    tokenizer = run / "model" / "tokenizer_config.json"
    values = json.loads(tokenizer.read_text())
    tokenizer.write_text(json.dumps({**values, "name_or_path": str(run), "is_local": True}))
    export_to_hub_folder(run, tmp_path / "hub")
    for path in (tmp_path / "hub").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content, path
            assert str(Path.home()).encode() + b"/" not in content, path
    saved = json.loads((tmp_path / "hub" / "tokenizer_config.json").read_text())
    assert not {"name_or_path", "is_local", "local_files_only"} & saved.keys()
    assert saved["model_max_length"] == 64  # the model's positions, not the tokenizer's 512


def test_a_task_head_comes_with_its_task_and_without_sentence_embeddings(save, tmp_path):
    _, folder = save(MiniAlbertForTokenClassification, num_labels=3)
    inputs = asdict(TaskInputs("people", "token", "entity_f1", 32, 8))
    (folder / "task.json").write_text(json.dumps(inputs))
    record = export_to_hub_folder(folder, tmp_path / "hub", license="MIT")
    assert names(tmp_path / "hub") == ALWAYS - {"LICENSE"} | {"task.json"}
    assert json.loads((tmp_path / "hub" / "task.json").read_text()) == inputs
    assert record["license"] == "mit"
    assert "license: mit\n" in (tmp_path / "hub" / "README.md").read_text()
    assert "sentence" not in (tmp_path / "hub" / "README.md").read_text()


def test_a_run_brings_its_record(tuned, tmp_path):
    run = tuned("classification")
    by_run = export_to_hub_folder(run.run, tmp_path / "by-run")
    by_model = export_to_hub_folder(run.model, tmp_path / "by-model")
    assert by_run["results"] == by_model["results"] > 0
    card = (tmp_path / "by-run" / "README.md").read_text()
    assert card == (tmp_path / "by-model" / "README.md").read_text()
    shown = f"{100 * run.record['score']:.1f} %"
    assert re.search(
        rf"\| this model \| my-classification \| test \| accuracy \| {re.escape(shown)} \| 1 \|", card
    )


# --- without the package -------------------------------------------------------------------------------------

BLOCKED = """
    import json, os, re, sys

    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "minialbert":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    sys.meta_path.insert(0, Block())
    try:
        import minialbert
    except ModuleNotFoundError:
        pass
    else:
        raise SystemExit("minialbert was not blocked")

    import torch, transformers
    from pathlib import Path
    from safetensors.torch import load_file

    root = Path(sys.argv[1])
    expected = load_file(root / "expected.safetensors")
    ids = torch.tensor([[2, 5, 7, 9, 3]])
    for key, auto, folder in json.loads(sys.argv[2]):
        loader = getattr(transformers, auto)
        model, info = loader.from_pretrained(root / folder, trust_remote_code=True, output_loading_info=True)
        assert type(model).__module__.startswith("transformers_modules"), type(model).__module__
        assert not info["missing_keys"], info
        with torch.no_grad():
            found = model(ids)[0]
        torch.testing.assert_close(found, expected[key], rtol=0, atol=1e-5)

    for key, auto, folder in json.loads(sys.argv[4]):  # as it was saved, and saved again by the class of that folder
        loader, again = getattr(transformers, auto), root / f"again-{key}"
        model = loader.from_pretrained(folder, trust_remote_code=True)
        model.save_pretrained(again)
        for one in (model, loader.from_pretrained(again, trust_remote_code=True)):
            assert type(one).__module__.startswith("transformers_modules"), type(one).__module__
            assert torch.equal(one(ids)[0], expected[key]), key
    assert one(ids, exit_threshold=1e-3).exit_iterations.tolist() == [1]

    answers = {}
    for folder in ("hub-mlm", "hub-text", "hub-token", "hub-encoder", "hub-qa"):
        card = (root / folder / "README.md").read_text()
        names = {}
        for block in re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL):
            if "import minialbert" not in block and "sentence_transformers" not in block:
                exec(block.replace('"OWNER/NAME"', repr(str(root / folder))), names)
        assert "outputs" in names, folder
        answers[folder] = repr(names.get("answers"))

    if "sentence" in expected:
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(root / "hub-mlm"), trust_remote_code=True, device="cpu")
        assert type(encoder[0].auto_model).__module__.startswith("transformers_modules")
        vector = encoder.encode(sys.argv[3], convert_to_tensor=True)
        torch.testing.assert_close(vector, expected["sentence"], rtol=0, atol=1e-5)
    print(json.dumps(answers))
"""
SENTENCE = "the big red house is old and the small tree is new"


@torch.no_grad()
def test_the_folder_works_where_the_package_is_not_installed(save, tiny_tokenizer, tmp_path):
    ids = torch.tensor([[2, 5, 7, 9, 3]])
    made = {
        "mlm": save(MiniAlbertForMaskedLM, "mlm"),
        "text": save(
            MiniAlbertForSequenceClassification, "text", id2label={0: "good", 1: "bad"},
            label2id={"good": 0, "bad": 1}, problem_type="single_label_classification",
        ),
        "token": save(
            MiniAlbertForTokenClassification, "token", id2label=dict(enumerate(LABELS)),
            label2id={label: index for index, label in enumerate(LABELS)},
        ),
        "encoder": save(MiniAlbertModel, "encoder"),
        "qa": save(MiniAlbertForQuestionAnswering, "qa"),
    }  # fmt: skip
    expected = {key: model(ids)[0] for key, (model, _) in made.items()}
    expected["inner"] = made["mlm"][0].minialbert(ids)[0]
    if importlib.util.find_spec("sentence_transformers") is not None:
        encoder, inputs = made["mlm"][0].minialbert, tiny_tokenizer(SENTENCE, return_tensors="pt")
        expected["sentence"] = encoder(**inputs).last_hidden_state[0].mean(dim=0)
    save_file(
        {key: tensor.contiguous() for key, tensor in expected.items()}, tmp_path / "expected.safetensors"
    )
    for key, (_, folder) in made.items():
        export_to_hub_folder(folder, tmp_path / f"hub-{key}")
    loads = [
        ("mlm", "AutoModelForMaskedLM", "hub-mlm"),
        ("inner", "AutoModel", "hub-mlm"),
        ("text", "AutoModelForSequenceClassification", "hub-text"),
        ("token", "AutoModelForTokenClassification", "hub-token"),
        ("encoder", "AutoModel", "hub-encoder"),
        ("qa", "AutoModelForQuestionAnswering", "hub-qa"),
    ]
    saved = [("inner", "AutoModel", "mlm"), ("mlm", "AutoModelForMaskedLM", "mlm")]
    saved.append(("token", "AutoModelForTokenClassification", "token"))
    places = json.dumps([(key, auto, str(made[name][1])) for key, auto, name in saved])
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BLOCKED), str(tmp_path), json.dumps(loads), SENTENCE, places],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)  # and no question before it, whether to trust the code
    assert "token_str" in answers["hub-mlm"]
    assert "good" in answers["hub-text"] or "bad" in answers["hub-text"]
    assert answers["hub-token"].startswith("[")
    assert len(json.loads(answers["hub-encoder"])[0][0]) == 32  # the width of the model
    assert answers["hub-qa"] == "None"
    assert (tmp_path / "again-mlm" / "modeling_minialbert.py").exists()


# --- in place of what is there -------------------------------------------------------------------------------


def test_overwrite_replaces_an_export_and_nothing_else(save, tiny_student_dir, tmp_path):
    target = tmp_path / "hub"
    export_to_hub_folder(tiny_student_dir, target)
    (target / "notes.txt").write_text("mine")
    (target / "figures").mkdir()
    (target / "figures" / "a.svg").write_text("mine too")
    with pytest.raises(UserError, match="not empty: give --overwrite"):
        export_to_hub_folder(tiny_student_dir, target)
    _, folder = save(MiniAlbertForTokenClassification, num_labels=3)
    export_to_hub_folder(folder, target, overwrite=True, license="mit")
    # What made the earlier export a sentence encoder, and its licence, would be wrong beside the new one.
    assert names(target) == ALWAYS - {"LICENSE"} | {"notes.txt", "figures/a.svg"}
    assert (target / "figures" / "a.svg").read_text() == "mine too"
    assert "TokenClassification" in (target / "config.json").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".hub")]


@pytest.mark.parametrize("before", [False, True])
def test_a_failure_leaves_what_was_there(tiny_student_dir, tmp_path, monkeypatch, before):
    if before:
        export_to_hub_folder(tiny_student_dir, tmp_path / "hub", license="mit")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "write_pooling", full)
    with pytest.raises(UserError, match="cannot be written.*No space left") as caught:
        export_to_hub_folder(tiny_student_dir, tmp_path / "hub", overwrite=True)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    assert (tmp_path / "hub").exists() == before


# --- refusals ------------------------------------------------------------------------------------------------


def change_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def break_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["minialbert.block.ffn.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def drop_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["minialbert.block.ffn.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


DAMAGES = {
    "no-config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "no-weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "has no weights: expected model.safe",
    ),
    "cut": (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "could not be loaded"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
    "bert": (lambda folder: change_config(folder, model_type="bert"), "type 'bert': expected a MiniALBERT"),
    "albert": (lambda folder: change_config(folder, model_type="albert"), "minialbert convert"),
    "values": (lambda folder: change_config(folder, embedding_size=99), "could not be loaded"),
    "unnamed": (lambda folder: change_config(folder, architectures=None), "names no architecture"),
    "head": (
        lambda folder: change_config(folder, architectures=["MiniAlbertForTokenClassification"]),
        "missing: classifier.bias, classifier.weight; unknown: mlm_head",
    ),
    "shape": (
        lambda folder: change_config(folder, intermediate_size=48),
        "of another shape: minialbert.block",
    ),
    "nan": (break_weights, "NaN or infinity (minialbert.block.ffn.bias)"),
    "missing": (drop_weights, "of another shape: minialbert.block.ffn.bias"),
    "task": (lambda folder: (folder / "task.json").write_text('{"a": 1}'), "task.json is damaged"),
    "tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "adapters": (
        lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"),
        "adapters without their model: export the model beside them",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_cannot_be_exported_is_told_in_one_line(tiny_student_dir, tmp_path, damage):
    folder = tmp_path / "student"
    shutil.copytree(tiny_student_dir, folder)
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        export_to_hub_folder(folder, tmp_path / "hub")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "hub").exists()


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist: expected the directory of a model"):
        export_to_hub_folder(tmp_path / "no", tmp_path / "hub")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file: expected the directory of a model"):
        export_to_hub_folder(tmp_path / "file", tmp_path / "hub")


def test_an_output_in_the_way(tiny_student_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_student_dir, run / "model")
    for inside in (run, run / "model"):
        with pytest.raises(UserError, match="would replace what is read"):
            export_to_hub_folder(run, inside, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: expected a folder"):
        export_to_hub_folder(run, tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        export_to_hub_folder(run, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("license", ["", " ", "Apache 2.0", "mit\nlanguage: de", "mit: x"])
def test_a_licence_that_is_none(tiny_student_dir, tmp_path, license):
    with pytest.raises(UserError, match="license must be one of the hub's identifiers") as caught:
        export_to_hub_folder(tiny_student_dir, tmp_path / "hub", license=license)
    assert "\n" not in str(caught.value)


def test_options_that_contradict_or_are_malformed(tiny_student_dir, tmp_path):
    with pytest.raises(UserError, match="push needs repo_id"):
        export_to_hub_folder(tiny_student_dir, tmp_path / "hub", push=True)
    for wrong in ("a/b/c", "me/my student", "", "me/--", "https://huggingface.co/me/x"):
        with pytest.raises(UserError, match="expected OWNER/NAME") as caught:
            export_to_hub_folder(tiny_student_dir, tmp_path / "hub", repo_id=wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="language must be a code"):
        export_to_hub_folder(tiny_student_dir, tmp_path / "hub", language="English, mostly")
    assert not (tmp_path / "hub").exists()


def test_the_record_of_another_model_is_refused(tiny_student_dir, tmp_path):
    shutil.copytree(tiny_student_dir, tmp_path / "run" / "model")
    model = {"name": "other", "encoder_parameters": 12, "adapter_parameters": 2}
    write_result(
        tmp_path / "run" / "result.json", {"kind": "distillation", "metrics": {}, "seed": 1, "model": model}
    )
    with pytest.raises(UserError, match="result.json is the record of another model"):
        export_to_hub_folder(tmp_path / "run", tmp_path / "hub")
    # The model's folder under another name has no record of its own.
    (tmp_path / "run" / "model").rename(tmp_path / "student")
    assert export_to_hub_folder(tmp_path / "student", tmp_path / "hub")["results"] == 0


# --- uploads -------------------------------------------------------------------------------------------------


class Api:
    """A stand-in for the hub that records its calls, and fails as it is told to."""

    calls: list
    error: BaseException | None = None

    def create_repo(self, repo_id, **options):
        if self.error is not None:
            raise self.error
        type(self).calls.append(("create", repo_id, options))
        return Url(f"https://huggingface.co/{repo_id}", repo_id)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **options):
        type(self).calls.append(("upload", repo_id, {"files": allow_patterns, **options}))
        assert all((Path(folder_path) / name).is_file() for name in allow_patterns)


class Url(str):
    def __new__(cls, text, repo_id):
        url = super().__new__(cls, text)
        url.repo_id = repo_id
        return url


@pytest.fixture
def api(monkeypatch):
    stand_in = type("StandIn", (Api,), {"calls": []})
    monkeypatch.setattr(hub, "HfApi", stand_in)
    return stand_in


def test_push_creates_the_repository_and_uploads_the_export_alone(tiny_student_dir, tmp_path, api):
    export_to_hub_folder(tiny_student_dir, tmp_path / "hub")
    assert api.calls == []
    (tmp_path / "hub" / "secret.txt").write_text("mine")
    record = export_to_hub_folder(
        tiny_student_dir, tmp_path / "hub", repo_id="me/student", push=True, private=True, overwrite=True
    )
    (_, created, options), (kind, uploaded, upload) = api.calls
    assert (created, kind, uploaded) == ("me/student", "upload", "me/student")
    assert options == {"private": True, "repo_type": "model", "exist_ok": True}
    assert set(upload["files"]) == ALWAYS | set(SENTENCE_FILES)
    assert record["url"] == "https://huggingface.co/me/student"
    assert (tmp_path / "hub" / "secret.txt").exists()


def http_error(status):
    """An error as the hub answers it, whatever client library carries the response."""
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} Client Error\nRequest ID: x")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (LocalTokenNotFoundError("Token is required"), "hf auth login"),
        (http_error(401), "hf auth login"),
        (http_error(403), "hf auth login"),
        (http_error(500), "check the network"),
        (HTTPError("connection refused"), "check the network"),
        (ConnectionError("no route to host"), "check the network"),
    ],
)
def test_a_failed_upload_is_one_line_and_keeps_the_folder(tiny_student_dir, tmp_path, api, error, advice):
    api.error = error
    with pytest.raises(UserError, match=advice) as caught:
        export_to_hub_folder(tiny_student_dir, tmp_path / "hub", repo_id="me/student", push=True)
    assert "is complete, but was not uploaded to me/student" in str(caught.value)
    assert str(caught.value).endswith(", then push again with --overwrite") and "\n" not in str(caught.value)
    assert names(tmp_path / "hub") == ALWAYS | set(SENTENCE_FILES)


def test_without_a_network_the_library_itself_fails_in_one_line(tiny_student_dir, tmp_path):
    with pytest.raises(UserError, match=r"was not uploaded to me/student \(.*offline") as caught:
        export_to_hub_folder(tiny_student_dir, tmp_path / "hub", repo_id="me/student", push=True)
    assert "\n" not in str(caught.value)
