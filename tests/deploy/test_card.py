"""The model card: read back by the hub's own library, made from records alone, and safe whatever those hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from minialbert import MiniAlbertConfig
from minialbert.deploy.card import hub_id, model_card, public_name
from minialbert.deploy.evidence import Evidence, ModelFacts, gather_evidence
from minialbert.errors import UserError
from minialbert.method.elastic import ElasticObjective
from minialbert.method.objective import TERMS, DistillationObjective
from minialbert.tasks.models import TaskInputs

ROOT = Path(__file__).resolve().parents[2]
ENCODER, ADAPTERS, WHOLE = 5_000_000, 100_000, 5_200_000


def facts(architecture="MiniAlbertForMaskedLM", **changes):
    values = {
        "name": "student",
        "config": MiniAlbertConfig(num_hidden_layers=3, hidden_size=384, intermediate_size=1536),
        "parameters": WHOLE,
        "encoder_parameters": ENCODER,
        "adapter_parameters": ADAPTERS,
        "max_tokens": 512,
        "mask_token": "[MASK]",
    }
    return ModelFacts(architecture=architecture, **{**values, **changes})


def tagger(**changes):
    inputs = TaskInputs("ncbi-disease", "token", "entity_f1", 128, 32)
    values = {
        "name": "tagger-1",
        "task": inputs,
        "labels": ("O", "B-Disease", "I-Disease"),
        "parameters": 5_001_155,
    }
    return facts("MiniAlbertForTokenClassification", **{**values, **changes})


def distilled(name="student", teacher="dmis-lab/biobert-base-cased-v1.2", **changes):
    return {
        "format_version": 1,
        "kind": "distillation",
        "metrics": {
            "teacher": {"mlm_accuracy": 0.5, "mlm_loss": 2.0},
            "student_start": {"mlm_accuracy": 0.111, "mlm_loss": 9.0},
            "student_end": {"mlm_accuracy": 0.4321, "mlm_loss": 3.21},
        },
        "training": {"steps": 1200, "windows": 38400},
        "seed": 42,
        "model": {
            "name": name, "encoder_parameters": ENCODER, "adapter_parameters": ADAPTERS, "teacher": teacher,
            "teacher_encoder_parameters": 107_000_000,
        },
        "layer_map": [4, 8, 12],
        "objective": {"mlm_weight": 1.0, "attention_weight": 3.0, "output_weight": 5.0, "embedding_weight": 0.0},
        "data": {"sources": ["pubmed.txt", "hub:wikitext/wikitext:wikitext-103:train"]},
        "recipe": {"data": {"window_length": 128}},
        **changes,
    }  # fmt: skip


def finetuned(task="cola", score=0.41, seed=1, metric="matthews_correlation", **changes):
    split = changes.pop("split", "validation")
    figures = {metric: score, **changes.pop("figures", {})}
    return {
        "format_version": 1,
        "kind": "finetune",
        "task": task,
        "problem": "single-label",
        "metric": metric,
        "split": split,
        "metrics": {split: figures},
        "score": score,
        "seed": seed,
        "mode": "full",
        "adapter_init": None,
        "teacher": None,
        "model": {
            "name": changes.pop("name", "student"), "parameters": 5_000_770,
            "encoder_parameters": changes.pop("size", ENCODER), "trainable_parameters": 5_000_770,
        },
        "recipe": {"tuning": {"epochs": 3.0, "learning_rate": 5e-5, "batch_size": 32, "seed": seed}},
        **changes,
    }  # fmt: skip


def tagging(score=0.7, seed=1, **changes):
    changes = {"problem": "token", "split": "test", "figures": {"entity_precision": 0.75}, **changes}
    return finetuned("ncbi-disease", score, seed, "entity_f1", **changes)


def evaluated(**changes):
    return {
        "format_version": 1,
        "kind": "evaluation",
        "task": "my-notes",
        "problem": "token",
        "metric": "entity_f1",
        "split": "test",
        "metrics": {"test": {"entity_f1": 0.333}},
        "model": {"name": "tagger-1", "parameters": 5_001_155},
        **changes,
    }


@pytest.fixture
def write(tmp_path):
    """Write a record as the `result.json` of a run; returns the file."""

    def one(name, record):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps(record))
        return tmp_path / name / "result.json"

    return one


def card(model, evidence=None, **options):
    options = {"license": "apache-2.0", "language": "en", **options}
    return model_card(model, evidence or Evidence(), **options)


def index(text):
    """The hub's own reading of the results: (dataset type, metric type) -> value."""
    found = ModelCard(text).data.eval_results or []
    return {
        (result.dataset_type, result.dataset_config, result.metric_type): result.metric_value
        for result in found
    }


def rows(text):
    section = text.partition("## Results")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [tuple(part.strip() for part in line.strip("|").split(" | ")) for line in lines]


# --- what is in it -------------------------------------------------------------------------------------------


def test_without_records_there_are_no_figures():
    text = card(facts(sentence_embeddings=True), repo_id="me/small")
    data = ModelCard(text).data.to_dict()
    assert data == {
        "language": "en",
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["minialbert", "sentence-transformers", "feature-extraction"],
    }
    assert "# small\n" in text
    assert "## Results" not in text
    assert "## Distillation" not in text
    assert "This card comes with no measured figures." in text
    assert "| iterations of the shared block | 3 |" in text
    assert "| rank of the embeddings | 128 |" in text
    assert "bottleneck 24, with LayerNorm (100,000 parameters)" in text
    assert "| parameters | 5,200,000 |" in text
    assert 'name = "me/small"' in text
    assert "num_iterations=2" in text


def test_a_distilled_student_shows_how_and_how_well(write):
    file = write("run", distilled())
    evidence = gather_evidence(facts(), file)
    text = card(facts(), evidence)
    data = ModelCard(text).data.to_dict()
    assert data["base_model"] == "dmis-lab/biobert-base-cased-v1.2"
    assert data["datasets"] == ["wikitext/wikitext"]
    assert "distillation" in data["tags"]
    assert index(text) == {
        ("held-out-windows", None, "accuracy"): 0.4321,
        ("held-out-windows", None, "loss"): 3.21,
    }
    assert rows(text) == [
        ("this model", "masked-lm", "held-out windows", "masked-token accuracy", "43.2 %", "1"),
        ("this model", "masked-lm", "held-out windows", "masked-token loss, nats", "3.210", "1"),
        ("its teacher", "masked-lm", "held-out windows", "masked-token accuracy", "50.0 %", "1"),
        ("its teacher", "masked-lm", "held-out windows", "masked-token loss, nats", "2.000", "1"),
    ]
    assert "- Teacher: dmis-lab/biobert-base-cased-v1.2 (107,000,000 parameters without its head)" in text
    assert "- Texts: pubmed.txt, hub:wikitext/wikitext:wikitext-103:train" in text
    assert "- Steps: 1,200, 38,400 windows of up to 128 tokens" in text
    assert "- Weights of the objective: masked LM 1, attention 3, output distribution 5" in text
    assert "follow: 4, 8, 12" in text


def test_every_term_of_an_objective_is_shown(write):
    weights = {f"{term}_weight": weight for weight, term in enumerate(TERMS, 1)}
    objective = DistillationObjective(**weights, elastic=ElasticObjective((1, 2), 0.5, 0.25))
    assert len(objective.weighted_terms) == len(TERMS) + 1
    made = distilled(objective=json.loads(json.dumps(objective.to_dict())))
    assert (
        "- Weights of the objective: masked LM 1, attention 2, hidden states 3, output distribution 4, embeddings 5, "
        "relation 6, elastic (masked LM 0.5, output distribution 0.25)\n"
    ) in card(facts(), gather_evidence(facts(), write("run", made)))


def test_the_depths_that_a_model_was_trained_for_are_told():
    text = card(facts(config=MiniAlbertConfig(num_hidden_layers=6, elastic_depths=[2, 4])))
    assert "trained to be read after fewer iterations too (2, 4)" in text
    assert "num_iterations=4)" in text


def test_tasks_that_the_student_was_tuned_for_are_means_over_seeds(write, tmp_path):
    own = write("student", distilled(teacher="general"))
    for seed, score in ((1, 0.1), (2, 0.2), (3, 0.6)):
        write(f"tasks/cola-{seed}", finetuned(score=score, seed=seed))
    write("tasks/mine", finetuned("my own/task", 0.9, metric="accuracy"))
    write("tasks/other-name", finetuned(name="masked-lm", score=0.99, seed=9))
    write("tasks/teacher", finetuned(name="general", size=22_000_000, score=0.98, seed=8))
    evidence = gather_evidence(facts(), own, [tmp_path / "tasks"])
    assert len(evidence.used) == 5
    assert evidence.passed_over == 2
    text = card(facts(), evidence)
    # mean and sample standard deviation of 0.1, 0.2, 0.6 by hand: 0.3, sqrt(0.14 / 2)
    assert ("fine-tuned", "cola", "validation", "Matthews correlation", "30.0 ± 26.5 %", "3") in rows(text)
    assert ("fine-tuned", "task", "validation", "accuracy", "90.0 %", "1") in rows(text)
    assert index(text)["glue", "cola", "matthews_correlation"] == 0.3
    assert index(text)["task", None, "accuracy"] == 0.9
    assert "mean of 3 seeds" in text
    assert "98.0" not in text
    assert "base_model" not in text  # "general" is a local teacher


def test_fresh_adapters_may_have_been_added_for_a_task(write, tmp_path):
    plain = facts(encoder_parameters=ENCODER - ADAPTERS, adapter_parameters=0)
    write("tuned", finetuned(mode="adapters", adapter_init="identity"))
    evidence = gather_evidence(plain, None, [tmp_path])
    assert rows(card(plain, evidence))[0][0] == "adapter-tuned, fresh adapters"


def test_a_tuned_model_shows_its_own_figures_and_its_siblings_mean(write, tmp_path):
    own = write("tagger-1", tagging(0.7, 1))
    write("tagger-2", tagging(0.5, 2))
    write("adapters-1", tagging(0.9, 1, mode="adapters", adapter_init="pre-trained"))
    write("cola-1", finetuned())
    write("run/student", distilled())
    write("run/another", distilled("another"))
    write("notes", evaluated())
    write("other-notes", evaluated(model={"name": "tagger-2", "parameters": 5_001_155}))
    evidence = gather_evidence(tagger(), own, [tmp_path])
    assert {file.parent.name for file in evidence.used} == {"tagger-1", "tagger-2", "student", "notes"}
    assert evidence.passed_over == 4
    text = card(tagger(), evidence)
    assert rows(text) == [
        ("this model", "ncbi-disease", "test", "entity F1, by word", "70.0 %", "1"),
        ("this model", "ncbi-disease", "test", "entity precision", "75.0 %", "1"),
        ("this model", "my-notes", "test", "entity F1, by word", "33.3 %", "1"),
        ("tuned alike", "ncbi-disease", "test", "entity F1, by word", "60.0 ± 14.1 %", "2"),
    ]
    assert index(text) == {
        ("ncbi-disease", None, "f1"): 0.7,
        ("ncbi-disease", None, "precision"): 0.75,
        ("my-notes", None, "f1"): 0.333,
    }
    data = ModelCard(text).data
    assert data.pipeline_tag == "token-classification"
    assert "tuned from student" in text
    assert "- Teacher: dmis-lab/biobert" in text
    assert "- Tuned: all parameters (5,000,770 of 5,001,155 parameters)" in text
    assert "- Learning rate: 5e-05" in text
    assert "Labels: O, B-Disease, I-Disease" in text
    assert "sentence-transformers" not in text


def test_the_base_of_a_tuned_model_is_named_where_it_is_on_the_hub(write):
    evidence = gather_evidence(tagger(), write("tagger-1", tagging(name="nlpie/miniALBERT-128")))
    assert ModelCard(card(tagger(), evidence)).data.base_model == "nlpie/miniALBERT-128"
    evidence = gather_evidence(tagger(), write("again", tagging(name="miniALBERT-128")))
    assert ModelCard(card(tagger(), evidence)).data.base_model is None


# --- records that do not say what they should ----------------------------------------------------------------


def test_records_of_other_models_are_refused(write, tmp_path):
    write("a/cola", finetuned(name="big", size=90_000_000))
    with pytest.raises(UserError, match=r"none of the 1 records is about this model \(student.*about big"):
        gather_evidence(facts(), None, [tmp_path / "a"])
    for name in ("one", "two"):
        write(f"b/{name}", finetuned(name=name))
    with pytest.raises(UserError, match="records are about one, two, all of this model's size"):
        gather_evidence(facts(), None, [tmp_path / "b"])
    for name in ("one", "two"):
        write(f"c/{name}", distilled(name))
    with pytest.raises(UserError, match="2 distillation records could be that of student"):
        gather_evidence(facts(), None, [tmp_path / "c"])
    with pytest.raises(UserError, match="does not exist"):
        gather_evidence(facts(), None, [tmp_path / "no"])
    own = write("d", tagging(size=77))
    with pytest.raises(UserError, match="is the record of another model"):
        gather_evidence(tagger(), own)
    own = write("e", finetuned())
    with pytest.raises(UserError, match="is the record of another model"):
        gather_evidence(tagger(), own)


def test_ways_of_tuning_that_cannot_be_told_apart_are_refused(write, tmp_path):
    write("full", tagging())
    write("adapters", tagging(mode="adapters", adapter_init="pre-trained"))
    with pytest.raises(UserError, match="records of 2 ways of tuning could be about tagger-1"):
        gather_evidence(tagger(), None, [tmp_path])
    evidence = gather_evidence(tagger(), None, [tmp_path / "full"])
    assert rows(card(tagger(), evidence))[0][0] == "tuned alike"


def test_fields_that_are_missing_or_of_another_kind_are_left_out(write):
    odd = distilled(
        metrics={"student_end": {"mlm_accuracy": "high", "mlm_loss": float("nan")}, "teacher": []},
        training="long", objective={"mlm_weight": "much"}, data={"sources": [3, None, " "]}, layer_map=["a"],
        seed=True, recipe=None,
    )  # fmt: skip
    text = card(facts(), gather_evidence(facts(), write("run", odd)))
    assert "## Results" not in text
    section = text.partition("## Distillation\n\n")[2].partition("\n\n")[0]
    assert section.splitlines() == [
        "- Teacher: dmis-lab/biobert-base-cased-v1.2 (107,000,000 parameters without its head)"
    ]


HOSTILE = "x\n---\nlicense: mit\n# Big | <script>alert(1)</script> [click](http://evil.example) `code` \"q\" 's' {{a}}"


def test_what_comes_from_data_stays_text(write):
    own = write(
        "tagger-1",
        finetuned(HOSTILE, 0.5, metric="entity_f1", problem="token", name=HOSTILE, teacher=HOSTILE),
    )
    write("run", distilled(HOSTILE, teacher=HOSTILE, data={"sources": [HOSTILE]}))
    model = tagger(
        name=HOSTILE,
        labels=("O", HOSTILE),
        task=TaskInputs(HOSTILE, "token", "entity_f1", 128, 32),
        mask_token=HOSTILE,
    )
    text = card(model, gather_evidence(model, own, [own.parent.parent]))
    _, front, body = re.split(r"^---$", text, maxsplit=2, flags=re.MULTILINE)
    data = yaml.safe_load(front)
    assert data["license"] == "apache-2.0"
    assert data["model-index"][0]["name"] == HOSTILE
    assert ModelCard(text).data.license == "apache-2.0"
    assert "\n---\n" not in body
    assert "<script" not in body
    assert "](http://evil" not in body
    assert "evil.example" in body  # it is shown, as text
    assert [line for line in body.splitlines() if line.startswith("# ")] == [
        line for line in body.splitlines() if line.startswith("# x ")
    ]
    assert len(rows(text)) == 1
    table_lines = [line for line in body.partition("## Results")[2].splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table_lines} == {7}
    assert HOSTILE.splitlines()[-1] not in body


def test_no_path_of_this_machine_is_shown(write):
    paths = distilled(
        teacher="/srv/someone/models/private-teacher",
        data={"sources": ["/data/secret/texts.txt", "C:\\Users\\someone\\more.txt", "~/x/notes.txt"]},
    )
    text = card(facts(), gather_evidence(facts(), write("run", paths)))
    assert "distilled from private-teacher:" in text
    assert "- Texts: texts.txt, more.txt, notes.txt" in text
    for part in ("/srv", "secret", "someone", "base\\_model", "base_model"):
        assert part not in text


def test_the_licence_of_the_code_is_told_where_the_models_is_another():
    code = "The two Python files are part of minialbert, under apache-2.0."
    assert code not in card(facts())
    assert code in card(facts(), license="cc-by-nc-4.0")
    assert ModelCard(card(facts(), license="cc-by-nc-4.0")).data.license == "cc-by-nc-4.0"


# --- names and citation --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nlpie/miniALBERT-128", "nlpie/miniALBERT-128"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        ("distilled", None),
        ("/models/bert", None),
        ("./bert", None),
        ("a/b/c", None),
        ("~/bert", None),
        ("x" * 5000, None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_hub_id_is_one(name, expected):
    assert hub_id(name) == expected


def test_a_folder_that_looks_like_a_hub_id_is_none(tmp_path, monkeypatch):
    (tmp_path / "runs" / "teacher").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_id("runs/teacher") is None
    assert public_name("runs/teacher") == "teacher"
    assert public_name("runs2/teacher") == "runs2/teacher"


def test_the_citation_is_that_of_the_repository():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"][0]
    text = card(facts())
    citation = text.partition("## Citation\n\n```bibtex\n")[2].partition("```")[0]
    plain = citation.replace("{M}", "M").replace("{ALBERT}", "ALBERT")
    authors = " and ".join(
        f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]
    )
    for value in (paper["title"], authors, paper["url"], paper["collection-title"], str(paper["year"])):
        assert f'"{value}"' in plain
    assert f'"{paper["start"]}--{paper["end"]}"' in plain
    assert paper["url"] in text.partition("## Architecture")[0]
