"""Versions agree, and the release's checks see what they should."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import minialbert_runtime
import pytest

import minialbert

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def release():
    spec = importlib.util.spec_from_file_location("release", ROOT / "tools" / "release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_is_the_same_everywhere():
    def found(pattern: str, file: str) -> list[str]:
        return re.findall(pattern, (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)

    projects = [
        tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in (".", "runtime", "models", "native")
    ]
    version = minialbert.__version__
    assert {minialbert_runtime.__version__, *(one["version"] for one in projects)} == {version}
    assert found(r"^version: (\S+)$", "CITATION.cff") == [version]
    (day,) = found(r"^date-released: (\S+)$", "CITATION.cff")
    assert f"## [{version}] - {day}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"![version {version}]" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_wheel_with_a_file_too_few_or_too_many_is_named(release):
    package = ROOT / "runtime" / "minialbert_runtime"
    names = [f"minialbert_runtime/{path.name}" for path in package.iterdir() if path.is_file()]
    names += [f"minialbert_runtime-1.dist-info/{name}" for name in release.METADATA]
    assert release.odd_names("minialbert_runtime", "1", names) == []
    missing = "minialbert_runtime/py.typed"
    changed = [*(name for name in names if name != missing), "tests/test_cli.py"]
    assert release.odd_names("minialbert_runtime", "1", changed) == [
        f"minialbert_runtime: the wheel lacks {missing}",
        "minialbert_runtime: the wheel has tests/test_cli.py too many",
    ]


def test_components_are_those_that_a_distribution_needs(release, monkeypatch):
    names = ("tokenizers", "numpy", "onnxruntime", "torch", "pytest")
    listed = {"metadata": {}, "components": [{"name": name, "bom-ref": f"{name}-1"} for name in names]}
    monkeypatch.setattr(release.metadata, "requires", lambda name: [])
    made = release.components_of("minialbert_runtime", listed)
    assert [one["name"] for one in made["components"]] == ["tokenizers", "numpy", "onnxruntime"]
    (root,) = (one for one in made["dependencies"] if one["ref"] == made["metadata"]["component"]["bom-ref"])
    assert root["dependsOn"] == ["numpy-1", "onnxruntime-1", "tokenizers-1"]


def test_extras_and_markers_are_heeded(release):
    asked = ["a; extra == 'more'", "b[fast]; python_version > '3'", "c; python_version < '3'"]
    assert release.needed(asked, ()) == {("b", ("fast",))}
    assert release.needed(asked, ("more",)) == {("a", ()), ("b", ("fast",))}


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("compiler", ["true", "none-such"])
def test_make_installs_the_native_engine_where_it_can_be_compiled(compiler):
    asked = subprocess.run(
        ["make", "--dry-run", "--always-make", "install"],
        cwd=ROOT, env=os.environ | {"CXX": compiler}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert asked.stderr == ""
    assert ("-e ./native" in asked.stdout) == (platform.machine() == "x86_64" and compiler == "true")


def test_the_container_file_copies_what_is_there_and_runs_without_rights():
    text = (ROOT / "runtime" / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    steps = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    copied = [
        source for step in steps if step[0] == "COPY" and "--from" not in step[1] for source in step[1:-1]
    ]
    assert {"pyproject.toml", "README.md", "LICENSE", "minialbert_runtime"} <= set(copied)
    assert all((ROOT / "runtime" / source).exists() for source in copied)
    (user,) = (step[1] for step in steps if step[0] == "USER")
    assert user.split(":")[0].isdigit() and int(user.split(":")[0]) > 0
    # 10 s, which engines wait otherwise, would cut running requests; podman's own format has no health check.
    assert "--stop-timeout 60" in text and "`--format docker`" in text
    assert steps[-1][0] == "ENTRYPOINT" and "/runtime/bin/minialbert-runtime" in text
