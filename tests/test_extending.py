"""docs/extending.md: its examples run as they stand, one after the other; what nobody registered is refused."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch

import minialbert
from minialbert.data import corpora, task_types
from minialbert.deploy import card
from minialbert.errors import UserError
from minialbert.method import modeling_minialbert, objective
from minialbert.method.adapters import add_adapters, load_adapters, save_adapters
from minialbert.runs import records

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
ROWS = [(f"the king was {word}", label) for word, label in [("small", "a"), ("large", "b")] * 8]


@pytest.fixture(autouse=True)
def registries():
    """Registries that forget what a test adds."""
    all_of_them = (
        objective._REGISTERED, corpora._REGISTERED, corpora._KIND_OF_SUFFIX, modeling_minialbert.ADAPTER_KINDS,
        task_types.TASK_TYPES, task_types.ANSWERS,
    )  # fmt: skip
    before = [dict(registry) for registry in all_of_them]
    yield
    for registry, entries in zip(all_of_them, before, strict=True):
        registry.clear()
        registry.update(entries)


def test_the_examples_of_the_page_run(tiny_teacher_dir, tmp_path):
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 5
    names = {"teacher": str(tiny_teacher_dir), "folder": tmp_path, "rows": ROWS, "__name__": "example"}
    for block in code:
        exec(compile(block, PAGE.name, "exec", dont_inherit=True), names)
    record = names["distilled"].record
    assert record["training"]["steps"] == 3
    assert "cosine 2" in card._weights(record["objective"])
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in logged if "loss_cosine" in line]
    assert len(steps) == 3 and all(0 < line["loss_cosine"] < 20 for line in steps)
    manifest = json.loads((tmp_path / "windows" / "manifest.json").read_text())
    assert '"film.srt"' in json.dumps(manifest) and '"other"' in json.dumps(manifest)
    # an adapter file says its kind, and is refused where nobody registered it
    folder = tmp_path / "tuned" / "adapters"
    assert json.loads((folder / "adapter_config.json").read_text())["adapter_kind"] == "low-rank"
    load_adapters(names["plain"].model, folder)
    del modeling_minialbert.ADAPTER_KINDS["low-rank"]
    with pytest.raises(UserError, match=r"the adapter kind 'low-rank' is not known \(bottleneck, lora, "):
        load_adapters(names["plain"].model, folder)
    with pytest.raises(UserError, match="the adapter kind 'low-rank' is not known"):
        minialbert.predict(tmp_path / "tuned" / "model", ["the king"])
    # a folder of a kind of task that nobody registered is refused by name
    record = names["grader"].record
    assert (
        record["metric"] == "mean_distance"
        and record["score"] == record["metrics"]["validation"]["mean_distance"]
    )
    assert records.lower_is_better("mean_distance") and not records.is_tagging("grades")
    with pytest.raises(UserError, match=r"train.* row 2: expected a grade, found 'bad'"):
        minialbert.finetune(str(tiny_teacher_dir), task="grades", data=[("a", "1"), ("b", "bad")])
    del task_types.TASK_TYPES["grades"]
    with pytest.raises(
        UserError, match="its kind of task 'grades' is not registered: there are single-label"
    ):
        minialbert.predict(tmp_path / "grades" / "model", ["the king"])


@torch.no_grad()
def test_an_adapter_may_change_the_linear_layers_of_its_iteration():
    class Change(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            shapes = {name: (config.hidden_size,) * 2 for name in ("query", "key", "value", "dense")}
            shapes |= {"ffn": (config.intermediate_size, config.hidden_size)}
            shapes |= {"ffn_output": shapes["ffn"][::-1]}
            self.delta = torch.nn.ParameterDict({name: torch.zeros(shape) for name, shape in shapes.items()})

        def forward(self, hidden_states):
            return hidden_states

        def change(self, name, inputs):
            return inputs @ self.delta[name].T if name != "key" else None

    modeling_minialbert.register_adapter("change", Change)
    config = minialbert.MiniAlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32,
        num_hidden_layers=2, adapter_reduction_factor=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model, ids = minialbert.MiniAlbertModel(config).eval(), torch.arange(5, 15)[None]
    before = model(ids, output_hidden_states=True).hidden_states
    add_adapters(model, kind="change")
    assert all(map(torch.equal, model(ids, output_hidden_states=True).hidden_states, before))
    places = {"attention": ("query", "key", "value", "dense"), "ffn": ("ffn", "ffn_output")}
    merged = copy.deepcopy(model)
    for place, names in places.items():
        adapter = getattr(model, f"{place}_adapters")[1]
        owner = merged.block.attention if place == "attention" else merged.block
        for name in names:
            torch.nn.init.normal_(adapter.delta[name], std=0.3)
            if name != "key":
                getattr(owner, name).weight += adapter.delta[name]
    after = model(ids, output_hidden_states=True).hidden_states
    assert torch.equal(after[1], before[1])  # the other iteration's layers stay as they are
    torch.testing.assert_close(after[2], merged.iterate(0, before[1], None)[0])
    assert not torch.allclose(after[2], before[2])


@pytest.mark.parametrize("need", ["attention_rows", "attention_inputs", "logits"])
def test_a_term_gets_what_it_needs_though_no_other_term_does(need, tiny_teacher_dir, tmp_path):
    seen = []

    @objective.register_loss("look", needs=(need,))
    def look(student, teacher, batch):
        seen.append((getattr(student, need), getattr(teacher, need), batch))
        return student.hidden_states[0].sum() * 0 + 3

    texts = ["the king was small and large city by river"] * 40
    result = minialbert.distill(
        str(tiny_teacher_dir), texts, recipe="tiny", max_steps=1, output=tmp_path / "run",
        objective=objective.DistillationObjective(
            attention_weight=0, output_weight=0, hidden_weight=0, extra={"look": 2.0}
        ),
        settings={"student.adapter_reduction_factor": 8},
    )  # fmt: skip
    assert result.record["objective"]["look_weight"] == 2.0
    for ours, theirs, batch in seen:
        if need == "logits":
            assert ours.shape == theirs.shape and len(ours) == int(batch.positions.sum())
        else:
            assert set(ours) >= {i for i, _ in batch.pairs} and set(theirs) >= {i for _, i in batch.pairs}


def test_weights_add_up_and_nothing_changes_without_terms():
    plain = objective.DistillationObjective()
    objective.register_loss("three")(lambda student, teacher, batch: torch.tensor(3.0))
    weighted = objective.DistillationObjective(extra={"three": 2.0})
    view = objective.EncoderView({0: torch.zeros(1, 2, 4), 1: torch.ones(1, 2, 4)})
    both = [
        one.without("mlm", "attention", "output")(view, view, labels=torch.full((1, 2), -100))
        for one in (plain, weighted)
    ]
    assert both[1].total - both[0].total == 6 and dict(both[1].items())["three"] == 3
    assert [name for name, _ in both[0].items()] == [name for name, _ in both[1].items() if name != "three"]
    assert weighted.without("three") == plain and "extra" not in plain.to_dict()
    assert weighted.weighted_terms == (*plain.weighted_terms, "three")


def test_wrong_names_are_refused():
    with pytest.raises(UserError, match="no loss term 'absent' is registered"):
        objective.DistillationObjective(extra={"absent": 1.0})
    with pytest.raises(UserError, match="cannot be called 'hidden'"):
        objective.register_loss("hidden")
    with pytest.raises(UserError, match="not known: give"):
        objective.register_loss("new", needs=("gradients",))
    objective.register_loss("new")(lambda *_: torch.zeros(()))
    with pytest.raises(UserError, match="must be above 0"):
        objective.DistillationObjective(extra={"new": 0.0})
    for suffix in (".txt", ".gz", "srt"):
        with pytest.raises(UserError, match="give a new suffix"):
            corpora.register_reader(suffix, lambda path: [])
    for name in ("token", "classification"):
        kind = type("Kind", (task_types.SingleLabel,), {"name": name, "option": name})()
        with pytest.raises(UserError, match="there is a task type .* already"):
            task_types.register_task_type(kind)
    with pytest.raises(UserError, match="unknown problem 'grade'; expected one of single-label, multi-label"):
        minialbert.finetune("model", task="mine", data="d", settings={"task.problem": "grade"})
    with pytest.raises(ValueError, match="give another name"):
        modeling_minialbert.register_adapter("bottleneck", torch.nn.Identity)


def test_files_of_the_bottleneck_do_not_name_it(tmp_path):
    config = minialbert.MiniAlbertConfig(
        vocab_size=50, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=32,
        adapter_reduction_factor=None,
    )  # fmt: skip
    model = minialbert.MiniAlbertForSequenceClassification(config)
    add_adapters(model, reduction_factor=4)
    model.save_pretrained(tmp_path / "model")
    save_adapters(model, tmp_path / "adapters")
    assert "adapter_kind" not in (tmp_path / "model" / "config.json").read_text()
    assert "adapter_kind" not in (tmp_path / "adapters" / "adapter_config.json").read_text()
    assert minialbert.MiniAlbertConfig.from_pretrained(tmp_path / "model").adapter_kind == "bottleneck"
    bare = minialbert.MiniAlbertModel(
        minialbert.MiniAlbertConfig(
            vocab_size=9,
            embedding_size=8,
            hidden_size=16,
            num_attention_heads=2,
            adapter_reduction_factor=None,
        )
    )
    with pytest.raises(UserError, match="'strange' is not known"):
        add_adapters(bare, kind="strange")
