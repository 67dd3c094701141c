"""Sections about distillations, and a report of a distillation alone."""

from __future__ import annotations

import base64
import json

import pytest
import yaml

from minialbert.errors import UserError
from minialbert.method.attention_files import write_attention_maps
from minialbert.report import report as write_report
from minialbert.report.blocks import AttentionMaps, LineChart, Series
from minialbert.report.sections import Run, recipe_listing, training_sections, tuning_curves


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def run(tmp_path):
    def make(name="small", cosine=0.7, attention=True):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        start = {"mlm_accuracy": 0.1, "cosine_1": 0.2, "cosine_2": 0.3}
        end = {
            "mlm_accuracy": 0.2,
            "cosine_2": cosine,
            "cosine_1": 0.5,
            "attention_kl_1": 1.5,
            "halves": [{}],
        }
        (folder / "log.jsonl").write_text(
            lines(
                {"kind": "start", "step": 0, "metrics": {"student_start": start}},
                {
                    "kind": "training",
                    "step": 10,
                    "loss": 9.0,
                    "loss_mlm": 3.0,
                    "loss_embedding": 0.0,
                    "loss_elastic": 1.0,
                    "loss_new": 2.0,
                },
                {"kind": "training", "step": 20, "loss": 8.0, "loss_mlm": 2.0, "loss_embedding": 0.0},
                {"kind": "evaluation", "step": 20, "eval_mlm_accuracy": 0.2},
            )
        )
        record = {
            "kind": "distillation",
            "metrics": {"student_start": start, "student_end": end},
            "model": {"name": name},
            "recipe": {
                "name": name,
                "student": {"embedding_size": 64, "arch": None},
                "data": {"corpus": ["/home/me/a/notes.txt", "me/texts"], "tokenizer": None},
                "teacher": {"model": "/home/me/big"},
            },
            "versions": {"torch": "2.13"},
            "command": "minialbert distill --data /home/me/windows --output /home/me/run",
        }
        (folder / "result.json").write_text(json.dumps(record))
        if attention:
            encoded = base64.b64encode(bytes([128] * 4)).decode()
            sentence = {"text": "hi", "tokens": ["[CLS]", "hi"], "teacher": [encoded], "student": [encoded]}
            maps = {
                "format_version": 1, "teacher": "big", "student": name, "layer_map": [2], "teacher_heads": 1,
                "student_heads": 1, "sentences": [sentence],
            }  # fmt: skip
            write_attention_maps(folder / "attention.json", maps)
        return Run(name, folder / "result.json", record)

    return make


def test_a_chart_per_term_with_a_line_per_run(run):
    sections = training_sections([run("one"), run("two", cosine=0.9, attention=False)])
    curves, held_out, alignment, maps = sections
    titles = [block.title for block in curves.blocks]
    assert titles == [
        "Total loss",
        "Masked-LM loss",
        "Elastic loss",
        "New loss",
    ]  # a term that is always 0 has no weight
    mlm = curves.blocks[1]
    assert isinstance(mlm, LineChart)
    assert [(line.name, line.points) for line in mlm.series] == [
        ("one", ((10.0, 3.0), (20.0, 2.0))),
        ("two", ((10.0, 3.0), (20.0, 2.0))),
    ]
    assert held_out.blocks[0].series[0].points == ((0.0, 0.1), (20.0, 0.2))
    cosine, divergence = alignment.blocks
    assert [line.points for line in cosine.series] == [((1.0, 0.5), (2.0, 0.7)), ((1.0, 0.5), (2.0, 0.9))]
    assert divergence.series[0].points == ((1.0, 1.5),)
    assert isinstance(maps.blocks[0], AttentionMaps)
    assert list(maps.blocks[0].runs) == ["one"]


def test_a_run_whose_log_is_gone_still_has_its_alignment(run):
    one = run(attention=False)
    one.file.with_name("log.jsonl").unlink()
    assert [section.title for section in training_sections([one])] == ["Alignment by iteration"]


def test_a_recipe_is_shown_without_what_is_not_set(run):
    listing = recipe_listing("small", run().record)
    assert yaml.safe_load("\n".join(listing.lines)) == {
        "name": "small",
        "student": {"embedding_size": 64},
        "data": {"corpus": ["notes.txt", "texts"]},
        "teacher": {"model": "big"},
    }


def test_tunings_have_learning_curves(tmp_path):
    scores = [
        {"kind": "evaluation", "step": step, "eval_accuracy": step / 100, "eval_f1": 0.5}
        for step in (10, 20, 30)
    ]
    losses = [
        {"kind": "training", "step": step, "loss": 3.0 / step, "loss_task": 1.0} for step in (5, 15, 25)
    ]
    (tmp_path / "log.jsonl").write_text(lines(*losses, *scores))
    section = tuning_curves([Run("a", tmp_path / "result.json", {"metric": "accuracy"})])
    loss, score = section.blocks
    assert (loss.title, loss.log_y) == ("Training loss", True)
    assert score.series == (Series("a", ((10.0, 0.1), (20.0, 0.2), (30.0, 0.3))),)
    assert not tuning_curves([Run("b", tmp_path / "gone" / "result.json", {"metric": "accuracy"})]).blocks


def test_a_distillation_alone_has_a_page(run, tmp_path):
    run()
    page = write_report([tmp_path / "runs"], tmp_path / "report")
    assert page.startswith(
        "# small\n\n**small predicts 20.0 % of the masked tokens of held-out text, 10.0 % before"
    )
    assert "/home/me" not in page
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    for shown in ("Masked-LM loss", "Cosine of hidden states", "Attention maps", "embedding_size: 64"):
        assert shown in html
    assert "/home/me" not in html


def test_broken_maps_are_told(run, tmp_path):
    one = run()
    one.file.with_name("attention.json").write_text("{}")
    with pytest.raises(UserError, match="attention.json"):
        write_report([tmp_path / "runs"], tmp_path / "report")
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("part", ["recipe", "metrics", "versions", "machine", "model"])
def test_a_record_of_another_form_is_named(run, tmp_path, part):
    one = run()
    one.file.write_text(json.dumps({**one.record, part: [1]}))
    with pytest.raises(UserError, match=f"result.json: the field {part} should be an object, but is"):
        write_report([tmp_path / "runs"])


def test_runs_of_one_name_are_told_apart(run, tmp_path):
    for folder, name in (("x", "a"), ("y", "a"), ("z", "a, y")):
        one = run(folder)
        one.file.write_text(json.dumps({**one.record, "model": {"name": name}}))
    write_report([tmp_path / "runs"], tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "a, y, z" in html
