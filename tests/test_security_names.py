"""Names from elsewhere: none leads out of a folder, none is markup in a page, none commands a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import minialbert_runtime
import numpy as np
import onnx
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from minialbert_runtime.lines import to_json_line
from onnx import TensorProto, helper
from rich.table import Table as RichTable

from minialbert import MiniAlbertConfig
from minialbert.cli.shared import PlainConsole
from minialbert.data.tokenizers import load_tokenizer
from minialbert.data.window_store import WindowDataset
from minialbert.deploy.bench import as_markdown
from minialbert.deploy.card import model_card
from minialbert.deploy.evidence import ModelFacts, gather_evidence
from minialbert.errors import UserError
from minialbert.method.encoders import load_teacher
from minialbert.method.release import convert
from minialbert.report import report as write_report
from minialbert.report.tables import Table, escape
from minialbert.runs.records import find_records
from minialbert.runs.untrusted import check_model_folder, is_plain_name
from minialbert.tasks.exported import OnnxEncoder, load_exported
from minialbert.tasks.models import TaskInputs, load_tuned, read_task_file

OUTSIDE = (
    "../outside.safetensors",
    "/etc/passwd",
    "a/../../outside.safetensors",
    "..\\outside.safetensors",
    "C:\\x",
    "..",
)
HOSTILE = (
    "<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://evil.example/x.png)", "a | b | c", "`rm -rf`",
    "one\ntwo\n\n# three", "**bold** _it_ ~~no~~", "<img src=x onerror=alert(1)>", "https://evil.example",
    "www.evil.example",
    "&lt;script&gt;", "\x1b[31mred\x1b[0m", "</td></tr></table>", "$x$", "\\", "--- \nfoo: bar", "# title", "<!-- x",
    "<a@evil.example>", "license: x\nfoo: bar\n---\n",
)  # fmt: skip


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Paths


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_may_not_name_weights_outside(name, index, tiny_teacher_dir):
    weights = (tiny_teacher_dir / "model.safetensors").rename(tiny_teacher_dir.parent / "outside.safetensors")
    assert weights.is_file()  # which Transformers alone would read
    weight_map = {"bert.embeddings.word_embeddings.weight": name}
    (tiny_teacher_dir / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(UserError, match=r"index\.json names weights outside of its folder"):
        load_teacher(tiny_teacher_dir)


SECRET = "TOPSECRET"


@pytest.fixture
def secret(tmp_path, monkeypatch) -> Path:
    """A file beside the folder of the model, and the folder where a command is run."""
    file = tmp_path / "secret.txt"
    file.write_text(f"[UNK]\n[PAD]\n[CLS]\n[SEP]\n[MASK]\n{SECRET}\n")
    (tmp_path / "tokenizer.1.0.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return file


@pytest.mark.parametrize("settings", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "entry",
    [
        {"init_inputs": ["{secret}"]},
        {"init_inputs": ["../secret.txt"]},
        {"init_inputs": ["secret.txt"]},  # Transformers opens it from where it is run
        {"init_inputs": [["x", {"y": "{secret}"}]]},
        {"vocab_file": "{secret}"},
        {"merges_file": "secret.txt"},
        {"tokenizer_file": "{secret}"},
        {"special_tokens_map_file": "{secret}"},
        {"vocab": "{secret}"},
        {"sp_model_kwargs": {"model_file": "secret.txt"}},
        {"source_spm": "secret.txt"},
        {"fast_tokenizer_files": ["../tokenizer.1.0.json"]},
        {"whatever_a_class_takes": "{secret}"},
    ],
)
def test_no_setting_of_a_tokenizer_names_a_file_outside(entry, settings, tiny_teacher_dir, secret):
    for name in ("tokenizer.json", settings):
        (tiny_teacher_dir / name).unlink(missing_ok=True)
    text = json.dumps({"tokenizer_class": "BertTokenizer", "unk_token": "[UNK]"} | entry)
    (tiny_teacher_dir / settings).write_text(text.replace("{secret}", str(secret)))
    with pytest.raises(
        UserError, match=rf"{settings} names a file outside of its folder \({next(iter(entry))}:"
    ):
        load_tokenizer(tiny_teacher_dir)
    with pytest.raises(UserError, match="names a file outside"):
        load_teacher(tiny_teacher_dir, with_tokenizer=False)


def test_a_tokenizer_of_the_hub_names_no_file_outside_either(tiny_teacher_dir, secret, monkeypatch):
    edit(tiny_teacher_dir / "tokenizer_config.json", init_inputs=[str(secret)])
    monkeypatch.setattr(
        "transformers.utils.cached_file", lambda name, file, **_: str(tiny_teacher_dir / file)
    )
    with pytest.raises(UserError, match="names a file outside of its folder"):
        load_tokenizer("someone/model")


def test_a_tokenizer_may_name_what_is_beside_it_and_what_was_once_elsewhere(tiny_teacher_dir, secret):
    edit(
        tiny_teacher_dir / "tokenizer_config.json",
        vocab_file="tokenizer.json",
        tokenizer_file="/home/nobody/.cache/tokenizer.json",
        name_or_path=str(secret),
        model_input_names=["input_ids", "attention_mask"],
        extra_special_tokens=["/"],
    )
    assert load_tokenizer(tiny_teacher_dir).is_fast


def test_a_template_may_not_be_a_link_to_a_file_outside(tiny_teacher_dir, secret):
    (tiny_teacher_dir / "additional_chat_templates").mkdir()
    (tiny_teacher_dir / "additional_chat_templates" / "x.jinja").symlink_to(secret)
    with pytest.raises(UserError, match="leads out of its folder"):
        load_tokenizer(tiny_teacher_dir)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_pipe_in_the_place_of_a_file_is_told(name, tiny_teacher_dir):
    (tiny_teacher_dir / name).unlink()
    os.mkfifo(tiny_teacher_dir / name)
    with pytest.raises(UserError, match="is a pipe or a device|has no config.json"):
        load_teacher(tiny_teacher_dir)


@pytest.mark.parametrize("load", [load_tuned, load_exported])
def test_a_file_of_settings_that_is_far_too_large_is_not_read(load, tiny_teacher_dir):
    (tiny_teacher_dir / "task.json").touch()
    os.truncate(tiny_teacher_dir / "task.json", 2**28)
    with pytest.raises(UserError, match=r"task.json has 268,435,456 bytes, more than any file of settings"):
        load(str(tiny_teacher_dir))


def test_an_index_may_name_weights_beside_it(tiny_teacher, tiny_tokenizer, tmp_path):
    tiny_teacher.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    tiny_tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert load_teacher(tmp_path / "shards").has_mlm_head


@pytest.mark.parametrize("name", ["a.safetensors", "model-00001-of-00002.safetensors", "é.txt"])
def test_plain_names(name):
    assert is_plain_name(name)


@pytest.mark.parametrize("name", [*OUTSIDE, "", ".", "a/b", "a\nb", "a\0b", "a:b"])
def test_names_that_are_not_plain(name):
    assert not is_plain_name(name)


def test_a_link_out_of_a_models_folder_is_not_followed(tiny_teacher_dir, release_copy, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "password"]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tiny_teacher_dir / name).unlink()
    (tiny_teacher_dir / "vocab.txt").symlink_to(secret)
    for load in (load_tokenizer, load_teacher, check_model_folder):
        with pytest.raises(UserError, match=r"vocab\.txt is a link that leads out of its folder"):
            load(tiny_teacher_dir)
    release = release_copy()
    (release / "vocab.txt").unlink(missing_ok=True)
    (release / "vocab.txt").symlink_to(secret)
    with pytest.raises(UserError, match="leads out of its folder"):
        convert(release, tmp_path / "converted")
    assert not (tmp_path / "converted").exists()


def test_links_of_the_hubs_cache_and_within_a_folder_are_followed(tiny_teacher_dir, tmp_path):
    snapshot = tmp_path / "models--o--n" / "snapshots" / "0123"
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_teacher_dir.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert load_teacher(snapshot).has_mlm_head
    (tiny_teacher_dir / "tokenizer.json").rename(tiny_teacher_dir / "real.json")
    (tiny_teacher_dir / "tokenizer.json").symlink_to("real.json")
    assert load_teacher(tiny_teacher_dir).has_mlm_head


def test_a_tokenizers_settings_write_nothing_outside(tiny_teacher_dir):
    settings = tiny_teacher_dir / "tokenizer_config.json"
    edit(settings, chat_template=[{"name": "../../outside", "template": "x"}])
    with pytest.raises(UserError, match=r"chat template called '\.\./\.\./outside'"):
        load_tokenizer(tiny_teacher_dir)


def test_a_peft_adapter_does_not_bring_another_model(tiny_teacher_dir):
    (tiny_teacher_dir / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc"}))
    with pytest.raises(UserError, match="holds a PEFT adapter of '/etc'"):
        load_teacher(tiny_teacher_dir)


@pytest.mark.parametrize("name", ["../outside", "/outside", "link"])
def test_a_graphs_weights_lie_in_its_folder(name, tmp_path):
    folder = tmp_path / "exported"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link").symlink_to(tmp_path / "outside")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    location = str(tmp_path / "outside") if name == "/outside" else name
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["input_ids", "w"], ["logits"])]
    graph = helper.make_graph(nodes, "g", [value("input_ids", 1, [4])], [value("logits", 1, [4])], [weight])
    opsets = [helper.make_opsetid("", 18)]
    (folder / "model.onnx").write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    assert onnx.load(folder / "model.onnx", load_external_data=False).graph.initializer[0].external_data
    with pytest.raises(UserError, match="is damaged or no ONNX graph"):
        OnnxEncoder(folder / "model.onnx", MiniAlbertConfig())
    files = {
        "config.json": {"id2label": {"0": "a", "1": "b"}}, "tokenizer_config.json": {"pad_token": "[PAD]"},
        "task.json": {"task": "t", "problem": "single-label", "metric": "m", "max_length": 16, "overlap": 4},
        "export.json": {"format_version": 1, "head": "sequence-classification", "precision": "fp32"},
    }  # fmt: skip
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    shutil.copyfile(
        Path(__file__).parent / "fixtures" / "tiny-tokenizer" / "tokenizer.json", folder / "tokenizer.json"
    )
    with pytest.raises(minialbert_runtime.RuntimeUserError, match="could not be loaded"):
        minialbert_runtime.Model(folder)


def test_a_manifest_of_windows_names_no_file_that_is_read(tiny_windows, tmp_path):
    folder = tmp_path / "windows"
    shutil.copytree(tiny_windows, folder)
    before = [list(WindowDataset(folder)[index]["input_ids"]) for index in range(3)]
    manifest = json.loads((folder / "manifest.json").read_text())
    for source in manifest["sources"]:
        source["name"] = "../../../etc/passwd"
    manifest["tokenizer"]["name"] = "/etc"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert [list(WindowDataset(folder)[index]["input_ids"]) for index in range(3)] == before


@pytest.mark.parametrize(
    "changes",
    [{"task": ["x"]}, {"task": None}, {"metric": {}}, {"max_length": "64"}, {"max_length": 10**9}, {"overlap": -1},
     {"overlap": None}, {"problem": "other"}, {"problem": ["token"]}, {"more": 1}],
)  # fmt: skip
def test_a_task_file_with_other_values_is_refused(changes, tmp_path):
    values = {"task": "../../x", "problem": "token", "metric": "m", "max_length": 64, "overlap": 8}
    (tmp_path / "task.json").write_text(json.dumps(values))
    assert read_task_file(tmp_path).task == "../../x"  # a name, which no path is made of
    (tmp_path / "task.json").write_text(json.dumps({**values, **changes}))
    with pytest.raises(UserError, match=r"task\.json is damaged"):
        read_task_file(tmp_path)


@pytest.mark.parametrize("task", ["../../x", "/x", "..\\x", "a\0b"])
def test_names_of_tasks_and_models_make_no_file_names(task, tmp_path):
    for number in range(3):  # as many as a chart is drawn of
        folder = tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(finetuned(task=task, name=f"../../model{number}")))
    write_report([tmp_path / "runs"], tmp_path / "report")
    assert {path.name for path in (tmp_path / "report").iterdir()} == {
        "report.md",
        "report.html",
        "other.csv",
        "figures",
    }
    (figure,) = (tmp_path / "report" / "figures").iterdir()
    assert re.fullmatch(r"report-[a-z0-9-]+\.svg", figure.name)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "report"}


def test_a_grids_record_names_no_cells_outside(tmp_path):
    outside = tmp_path / "secret"
    outside.mkdir()
    (outside / "result.json").write_text(json.dumps(finetuned()))
    grid = tmp_path / "grid"
    grid.mkdir()
    record = finetuned() | {"kind": "grid", "cells": ["../secret"], "selected": {**finetuned(), "n": 1}}
    (grid / "result.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"names a cell outside of its folder \('\.\./secret'\)"):
        find_records([grid])


# Pages


def finetuned(task="mine", name="student", **changes):
    return {
        "format_version": 1, "kind": "finetune", "name": "n", "task": task, "problem": "single-label",
        "metric": "accuracy", "split": "test", "metrics": {"test": {"accuracy": 0.5}}, "score": 0.5, "seed": 1,
        "mode": "full", "adapter_init": None, "teacher": None,
        "model": {"name": name, "parameters": 5_001_155, "encoder_parameters": 5_000_000, "trainable_parameters": 9},
        "recipe": {"model": {"name": name}, "tuning": {"epochs": 1.0}}, "notes": [], "command": "minialbert finetune",
        "versions": {}, "commit": None, "machine": {}, **changes,
    }  # fmt: skip


def rendered(markdown: str):
    """Return the tokens of a page as a browser of such pages reads it: tables, strikethrough, raw HTML, bare links."""
    reader = MarkdownIt("commonmark", {"html": True, "linkify": False}).enable(["table", "strikethrough"])
    return [part for token in reader.parse(markdown) for part in (token, *(token.children or ()))]


def shown_text(markdown: str) -> list[str]:
    return [
        "".join(child.content for child in token.children)
        for token in MarkdownIt("commonmark", {"html": True})
        .enable(["table", "strikethrough"])
        .parse(markdown)
        if token.type == "inline"
    ]


def as_one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


ACTIVE = {
    "html_inline",
    "html_block",
    "link_open",
    "image",
    "code_inline",
    "strong_open",
    "em_open",
    "s_open",
    "fence",
}


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_is_shown_as_it_is(text):
    page = Table("t", ("name", "value"), ((text, "x"), (None, text))).to_markdown()
    assert ACTIVE.isdisjoint(token.type for token in rendered(page))
    assert shown_text(page) == ["name", "value", as_one_line(text), "x", "-", as_one_line(text)]
    assert shown_text(f"Labels: {escape(text)}") == [f"Labels: {as_one_line(text)}"]


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_in_a_record_is_active_on_the_report_page(text, tmp_path):
    record = finetuned(
        task=text, name=text, notes=[text], versions={text: text}, commit=text, machine={"device": text},
        command=f"minialbert finetune {text}",
    )  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(record))
    page = write_report([tmp_path], tmp_path / "report")
    tokens = rendered(page)
    assert {"html_inline", "html_block", "link_open", "image", "code_inline"}.isdisjoint(
        t.type for t in tokens
    )
    assert [token.tag for token in tokens if token.type == "heading_open"] == ["h1", "h2", "h2", "h2"]
    assert sum(token.type == "fence" for token in tokens) == 2  # the commands, the versions
    assert "\x1b" not in page


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1"]
)
def test_no_text_in_a_csv_is_a_formula_and_numbers_are_numbers(text):
    table = Table("t", (text, "n"), ((text, -5), ("plain", 7)))
    rows = list(csv.reader(io.StringIO(table.to_csv(), newline="")))
    line = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    assert rows == [[f"'{line}", "n"], [f"'{line}", "-5"], ["plain", "7"]]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_model_card_is_made_of_text_alone(text, tmp_path):
    inputs = TaskInputs("n", "single-label", "accuracy", 128, 8)
    facts = ModelFacts(
        name=text, architecture="MiniAlbertForSequenceClassification", config=MiniAlbertConfig(), parameters=5_001_155,
        encoder_parameters=5_000_000, adapter_parameters=0, max_tokens=512, labels=(text, "b"),
        task=replace(inputs, task=text),
    )  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(finetuned(task=text, name=text)))
    evidence = gather_evidence(facts, run / "result.json")
    benign = model_card(
        facts.__class__(**{**facts.__dict__, "name": "n", "labels": ("a", "b"), "task": inputs}),
        evidence.__class__(), license="mit", language="en",
    )  # fmt: skip
    card = model_card(facts, evidence, license="mit", language="en")
    front, _, body = card.removeprefix("---\n").partition("\n---\n")
    values = yaml.safe_load(front)
    assert set(values) == {"language", "license", "library_name", "pipeline_tag", "tags", "model-index"}
    assert values["license"] == "mit"
    assert ModelCard(card).data.license == "mit"
    kinds = [
        (token.type, dict(token.attrs)) for token in rendered(body)
        if token.type in ("html_inline", "html_block", "link_open", "image", "code_inline", "fence")
    ]  # fmt: skip
    usual = rendered(benign.removeprefix("---\n").partition("\n---\n")[2])
    assert kinds == [
        (token.type, dict(token.attrs)) for token in usual
        if token.type in ("html_inline", "html_block", "link_open", "image", "code_inline", "fence")
    ]  # fmt: skip
    assert "\x1b" not in card


def test_a_benchmarks_page_escapes_the_names_of_models():
    name = "<b>|`x`"
    timing = {
        "length": 8,
        "batch_size": 1,
        "seconds": {"median": 1.0},
        "tokens_per_second": 8.0,
        "speed_ratio": 1.0,
    }
    record = {
        "metrics": {name: {"torch-fp32": {"bytes": 1, "peak_memory_bytes": None, "timings": [timing]}}},
        "models": {name: {"parameters": 1}}, "ceilings": {"fp32": 1.0},
        "settings": {"lengths": [8], "batch_size": 1, "threads": 1}, "instructions": [name],
        "reference": {"model": name, "engine": "torch-fp32"}, "notes": [name],
    }  # fmt: skip
    page = as_markdown(record)
    assert {"html_inline", "html_block", "code_inline"}.isdisjoint(token.type for token in rendered(page))
    assert name in shown_text(page)


# Terminals

COMMANDS = ("\x1b[2J", "\x1b]8;;http://evil.example\x1b\\x", "\x9b31m", "\x07", "\r", "\x7f", "\u202e")


@pytest.mark.parametrize(
    "text", ["[bold]x[/bold]", "[link=http://evil.example]x[/link]", ":warning:", "[/]", "[red"]
)
def test_a_table_on_the_terminal_shows_markup_as_text(text, capsys):
    console = PlainConsole()
    console.width = 80
    table = RichTable("name", "value")
    table.add_row(text, "1")
    console.print(table)
    console.print(text)
    assert capsys.readouterr().out.count(text) == 2


@pytest.mark.parametrize("text", COMMANDS)
def test_nothing_printed_commands_the_terminal(text, capsys):
    for console in (PlainConsole(), PlainConsole(stderr=True)):
        table = RichTable("name")
        table.add_row(f"a{text}b\nc")
        console.print(table)
        console.print(f"a{text}b\nc", soft_wrap=True)
        console.print(f"a{text}b", markup=False, highlight=False, soft_wrap=True)
    for printed in capsys.readouterr():
        assert all(letter.isprintable() or letter == "\n" for letter in printed)
        assert "c\n" in printed


@pytest.mark.parametrize("text", [*COMMANDS, "a\nb", "a\u2028b"])
def test_an_error_is_one_line_whatever_it_quotes(text):
    for kind in (UserError, minialbert_runtime.RuntimeUserError):
        message = str(kind(f"no file {text!s}"))
        assert message.isprintable()
        assert len(message.splitlines()) == 1
    assert str(UserError("é 中 “x” ± †")) == "é 中 “x” ± †"


def test_a_hostile_name_of_a_label_reaches_no_terminal(tiny_teacher_dir, refuse):
    edit(
        tiny_teacher_dir / "config.json",
        architectures=["\x1b[2JForSequenceClassification"],
        id2label={"0": "\x1b[2J"},
    )
    told = refuse("predict", "--model", tiny_teacher_dir, "x")
    assert told.isprintable()


@pytest.mark.parametrize("text", COMMANDS[:-1])
def test_predictions_are_json_without_control_characters(text):
    line = to_json_line({"text": text, "label": text})
    assert all(letter.isprintable() for letter in line)
    assert json.loads(line) == {"text": text, "label": text}
