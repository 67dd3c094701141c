"""Sections about distillations, and a report of a distillation alone."""

from __future__ import annotations

import base64
import json

import pytest
import yaml

from minialbert.errors import UserError
from minialbert.method.attention_maps import write_attention_maps
from minialbert.report import write_report
from minialbert.report.blocks import AttentionMaps, LineChart
from minialbert.report.sections import Run, headline, recipe_listing, training_sections


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
        "Loss_new",
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


def test_the_headline_tells_what_was_measured(run):
    one = run(name="100%")
    assert headline(one) == (
        "100%: Predicts 20.0 % of the masked tokens of held-out text, 10.0 % before its first step."
    )
    metrics = {
        "packages": {"accuracy": {"student": 0.77, "teacher_features": 0.849, "majority": 0.187}},
        "bytes": {"teacher": 90_261_504, "student": 23_639_616},
        "export": {"bytes": {"student, ONNX Runtime int8": 6_352_356}},
    }
    assert headline(Run("demo", one.file, {"metrics": metrics})) == (
        "demo: Tuned, it names the package of 77.0 % of other texts; its teacher's features 84.9 %, the commonest "
        "class 18.7 %. Teacher 90.3 MB, student 23.6 MB, as an int8 file 6.4 MB."
    )
    for nothing in ({}, {"metrics": None}, {"metrics": {"student_end": {"mlm_accuracy": "high"}}}):
        assert headline(Run("x", one.file, nothing)) == ""


def test_a_distillation_alone_has_a_page(run, tmp_path):
    run()
    page = write_report([tmp_path / "runs"], tmp_path / "report")
    assert page.startswith("# Results\n\n**small: Predicts 20.0 % of the masked tokens")
    assert "Fine-tunings: 0. Distillations: 1." in page
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
    for folder, name in (("x", "a"), ("y", "a"), ("z", "a 2")):
        one = run(folder)
        one.file.write_text(json.dumps({**one.record, "model": {"name": name}}))
    write_report([tmp_path / "runs"], tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "a 2 2" in html
