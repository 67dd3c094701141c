"""README's installation, as written, in a fresh environment; then its shell path there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from blocks import ROOT, blocks_of
from world import a_world


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readme_installs_and_its_shell_path_runs(tmp_path):
    blocks = [block for block in blocks_of("README.md") if block.language == "bash"]
    install = next(block.code for block in blocks if "-m venv" in block.code)
    box = next(block.code for block in blocks if "./models" in block.code)
    first = next(block.code for block in blocks_of("README.md") if "minilm-5mb" in block.code)
    path = next(block.code for block in blocks if "minialbert distill" in block.code)
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    constraints = os.environ.get("PIP_CONSTRAINT", "")
    pinned = (
        tmp_path / "constraints.txt"
    )  # the tested versions; torch's own extra packages are gigabytes large
    pinned.write_text((ROOT / "constraints.txt").read_text())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
        "PATH": f"{Path(sys.base_prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_CONSTRAINT": f"{constraints} {pinned}".strip(),
    }
    if not _has_an_index(tmp_path, environment):
        pytest.skip("no package index at hand")
    with a_world(tmp_path / "w") as world:
        folder = world.page_folder("README.md")
        # What a reader types into one shell, in the checkout, with the data beside it.
        for data in folder.iterdir():
            (checkout / data.name).symlink_to(data) if not (checkout / data.name).exists() else None
        environment |= {name: world.environment[name] for name in ("HF_HOME", "HF_HUB_OFFLINE", "PYTHONPATH")}
        typed = f"{install}\n{box}\npython - <<'END'\n{first}END\n{path}"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", typed], cwd=checkout, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(r'"entities": \[', done.stdout.splitlines()[-1])


def _has_an_index(folder: Path, environment: dict[str, str]) -> bool:
    """Return whether pip finds what a build of the package needs."""
    words = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        str(folder / "tried"),
        "hatchling",
    ]
    return subprocess.run(words, env=environment, capture_output=True, timeout=300).returncode == 0
