"""Runs tests with the lowest versions that the two projects allow, or with the newest, in fresh environments.

    python tools/bounds.py lowest    each requirement at its lower bound (`make bounds` does it)
    python tools/bounds.py newest    each as the package index has it today

torch alone is always that of constraints.txt: other builds are gigabytes large. Its lower bound was tried by hand.
Needs a package index; exit status 1 means that something could not be installed, or that a test failed.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("demo", "tasks", "zstd", "serve")
TESTS = (
    "tests/test_api.py",
    "tests/test_examples.py",
    "tests/test_startup.py",
    "tests/test_extending.py",
    "tests/deploy/onnx/test_export.py",
)
TEST_TOOLS = ("pytest>=9", "pytest-timeout", "hypothesis")


def main() -> int:
    """Install and test the library, then the runtime by itself."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("versions", choices=("lowest", "newest"))
    lowest = parser.parse_args().versions == "lowest"
    with tempfile.TemporaryDirectory(prefix="minialbert-bounds-") as folder:
        library, runtime = Path(folder) / "library", Path(folder) / "runtime"
        torch = re.search(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
        assert torch is not None
        _install(library, [torch[0]])
        extras = f"{ROOT}[{','.join(EXTRAS)}]"
        _install(library, ["-e", f"{ROOT}/runtime", "-e", extras, *TEST_TOOLS, *_lowest(ROOT, lowest)])
        # A new version of a library may warn of what an old one of another calls: that is not what is asked here.
        status = _run(library, "-m", "pytest", "-q", "-W", "ignore::DeprecationWarning", *TESTS)
        _install(runtime, ["-e", f"{ROOT}/runtime[test]", *_lowest(ROOT / "runtime", lowest)])
        of_runtime = ("runtime/tests", "--rootdir=runtime", "--confcutdir=runtime")
        return _run(runtime, "-m", "pytest", "-q", *of_runtime) or status  # both, whatever the first says


def _lowest(project: Path, lowest: bool) -> list[str]:
    """Return each requirement of a project at its lower bound; none where the newest are wanted."""
    table = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    extras = table.get("optional-dependencies", {})
    every = [*table["dependencies"], *(one for extra in EXTRAS for one in extras.get(extra, []))]
    bounds = {match[1]: match[2] for one in every if (match := re.match(r"([\w.-]+)>=([\w.]+)", one))}
    assert len(bounds) == len({re.split(r"[><=!]", one)[0] for one in every}), (
        "a requirement has no lower bound"
    )
    return [f"{name}=={bound}" for name, bound in sorted(bounds.items()) if lowest and name != "torch"]


def _install(environment: Path, what: Sequence[str]) -> None:
    if not environment.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    sys.stdout.write(f"{environment.name}: {' '.join(what)}\n")
    sys.stdout.flush()
    _run(environment, "-m", "pip", "--disable-pip-version-check", "install", "-q", *what, check=True)


def _run(environment: Path, *arguments: str, check: bool = False) -> int:
    return subprocess.run([environment / "bin" / "python", *arguments], cwd=ROOT, check=check).returncode


if __name__ == "__main__":
    sys.exit(main())
