"""The names that others rely on: each is where it was promised, and the objective does what the promise shows."""

from __future__ import annotations

import inspect
import platform
import re
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from minialbert_runtime.native import has_native
from transformers.modeling_outputs import MaskedLMOutput

import minialbert
from minialbert import DistillationObjective, layer_map
from minialbert.method import losses

ROOT = Path(__file__).parent.parent

# Module and the names that can be imported from it. A name that is promised anew gets a place here.
PROMISED = {
    "minialbert": (
        "DistillationObjective",
        "DistillationTrainer",
        "MiniAlbertConfig",
        "MiniAlbertForMaskedLM",
        "MiniAlbertForQuestionAnswering",
        "MiniAlbertForSequenceClassification",
        "MiniAlbertForTokenClassification",
        "MiniAlbertModel",
        "ModelResult",
        "Result",
        "calibrate",
        "convert_data",
        "distill",
        "evaluate",
        "export",
        "finetune",
        "layer_map",
        "predict",
        "prepare",
        "render",
    ),
    "minialbert.method.losses": (
        "masked_lm_loss",
        "attention_loss",
        "hidden_loss",
        "output_loss",
        "embedding_loss",
        "layer_map",
    ),
    "minialbert.method.distill": ("DistillationObjective", "distill", "initialise"),
    "minialbert.method.trainer": ("DistillationTrainer",),
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in PROMISED.items() for name in names]
)
def test_a_promised_name_is_there(module, name):
    assert getattr(import_module(module), name).__name__ == name


def test_what_the_package_names_it_has():
    assert set(PROMISED["minialbert"]) <= set(minialbert.__all__)
    for name in minialbert.__all__:
        assert hasattr(minialbert, name), name
    with pytest.raises(AttributeError, match="'minialbert' has no attribute 'Distiller'"):
        _ = minialbert.Distiller


def test_the_layer_map_counts_from_one():
    assert layer_map(6, 12) == (2, 4, 6, 8, 10, 12)


def test_the_tests_that_hold_fast_losses_to_the_reference_are_there():
    for text in (inspect.getsource(losses), (ROOT / "docs" / "method.md").read_text(encoding="utf-8")):
        files = set(re.findall(r"`(tests/[\w/]+\.py)`", text))
        assert len(files) >= 2
        sources = "".join((ROOT / file).read_text(encoding="utf-8") for file in files)
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in sources


def outputs(layers: int, seed: int) -> MaskedLMOutput:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return MaskedLMOutput(
        logits=draw(2, 5, 11),
        hidden_states=tuple(draw(2, 5, 8) for _ in range(layers + 1)),
        attentions=tuple(draw(2, 4, 5, 5).softmax(-1) for _ in range(layers)),
    )


@pytest.mark.parametrize("preset", ["default", "paper", "as-published"])
def test_terms_have_their_names_in_every_preset(preset):
    labels = torch.tensor([[-100, 3, -100, 7, -100], [1, -100, -100, -100, -100]])
    attention_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    objective = DistillationObjective.preset(preset)
    terms = objective(outputs(2, 0), outputs(4, 1), labels=labels, attention_mask=attention_mask)
    values = [terms.mlm, terms.attention, terms.hidden, terms.output, terms.embedding]
    assert all(value.shape == () and value > 0 for value in values)
    weighted = [
        objective.mlm_weight, objective.attention_weight, objective.hidden_weight, objective.output_weight,
        objective.embedding_weight,
    ]  # fmt: skip
    assert weighted == [1, 3, 3, 5, 0]
    expected = sum(weight * value for weight, value in zip(weighted, values, strict=True))
    torch.testing.assert_close(terms.total, torch.as_tensor(expected))


def rooms_of_the_readme() -> dict[str, set[str]]:
    """Folder below the package, and the files that the README's tree names in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text.partition("<!-- tree:begin -->")[2].partition("<!-- tree:end -->")[0]
    rooms: dict[str, str] = {}
    parents: dict[int, str] = {}
    room = ""
    for line in tree.splitlines():
        if found := re.match(r"( +)([a-z]+)/ +(.*)", line):
            depth = len(found[1])
            parent = next((parents[d] for d in sorted(parents, reverse=True) if d < depth), "")
            room = parents[depth] = f"{parent}/{found[2]}".lstrip("/")
            parents = {d: name for d, name in parents.items() if d <= depth}
            rooms[room] = found[3]
        elif line.startswith(" " * 16) and room:
            rooms[room] += " " + line.strip()
    return {room: set(said.partition(";")[0].split(", ")) for room, said in rooms.items()}


def test_the_tree_in_the_readme_is_the_real_one():
    package = ROOT / "minialbert"
    real: dict[str, set[str]] = {}
    for path in package.rglob("*.py"):
        room = path.parent.relative_to(package).as_posix()
        if room != "." and path.stem != "__init__":
            real.setdefault(room, set()).add(path.stem)
    assert rooms_of_the_readme() == real


def test_the_top_of_the_package_has_twelve_entries_at_most():
    entries = {path.name for path in (ROOT / "minialbert").iterdir()} - {"__pycache__", "py.typed"}
    assert len(entries) <= 12, sorted(entries)


def test_the_compiled_engine_is_installed_where_it_can_be():
    """Its tests are skipped without it: a fault of the installation would hide them all."""
    facts = Path("/proc/cpuinfo")
    able = facts.is_file() and "avx512_vnni" in facts.read_text(encoding="utf-8")
    if not able or platform.machine() != "x86_64" or shutil.which("c++") is None:
        pytest.skip("no AVX-512 VNNI or no compiler")
    assert has_native(), "make install, or pip install ./native"


def test_tests_mirror_the_package():
    """A test file lies in the room of the module whose name it begins with."""
    tests = ROOT / "tests"
    for file in tests.rglob("test_*.py"):
        room = file.parent.relative_to(tests).as_posix()
        folder = ROOT / "minialbert" / room
        if room == "." or room.split("/")[0] in ("benchmarks", "chaos", "docs", "fuzz"):
            continue
        modules = {path.stem for path in folder.glob("*.py")}
        name = file.stem.removeprefix("test_")
        assert any(name == module or name.startswith(f"{module}_") for module in modules), file
