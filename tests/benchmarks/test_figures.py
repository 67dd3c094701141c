"""The README's figures and captions are those of the records and of the script that draws them."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "pages" / "figures.py"
    spec = importlib.util.spec_from_file_location("figures", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)  # study
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shown(script):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return script.numbers()


def test_no_figure_is_stale(script, shown):
    known = script.digest(shown)
    for name in script.FIGURES:
        for theme in script.THEMES:
            drawn = (ROOT / "docs" / "img" / f"{name}-{theme}.svg").read_text(encoding="utf-8")
            assert known in drawn, f"{name}: run python benchmarks/pages/figures.py"


def test_captions_and_badges_are_those_of_the_records(script, monkeypatch):
    monkeypatch.chdir(ROOT)
    for path, text in script.files().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: run python benchmarks/pages/figures.py"


def test_another_number_is_another_figure(script, shown):
    other = {
        **shown,
        "spent": {**shown["spent"], "hidden-only": {**shown["spent"]["hidden-only"], "share": 1.0}},
    }
    assert script.digest(other) != script.digest(shown)
    assert script.draw("tokens", "light", other) != script.draw("tokens", "light", shown)
    drawn = script.draw("latency", "dark", shown)
    assert (
        all(label in drawn for label, *_ in script.PEERS.values()) and "http://www.w3.org/2000/svg" in drawn
    )


def test_every_picture_of_the_readme_is_there_in_light_and_dark():
    named = set(re.findall(r'"?(docs/img/[\w-]+\.svg)', (ROOT / "README.md").read_text(encoding="utf-8")))
    assert len(named) >= 8 and all((ROOT / name).is_file() for name in named)
    assert {name.replace("-light", "-dark") for name in named} <= named
