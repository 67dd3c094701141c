"""Checks what `python -m build` left in a folder, and writes lists of components and checksums there.

    python tools/release.py dist

A wheel holds its package: every file of it that Git knows, what is compiled, and no other. A list of components (an
SBOM in CycloneDX's format) has what the installation of a distribution with the extras below brings, in the versions
that are installed here, with licences and the graph of who needs what.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
# What is compiled into the wheel of one platform, and Git does not know.
COMPILED = {"minialbert_native": "minialbert_native/kernel.so"}
# By the name of a distribution: its project, the folders in its wheel, and the extras that its components include.
DISTRIBUTIONS = {
    "minialbert": (ROOT, ("minialbert", "runtime/minialbert_runtime"), ("tasks", "export", "report", "zstd")),
    "minialbert_runtime": (ROOT / "runtime", ("runtime/minialbert_runtime",), ()),
    "minialbert_models": (ROOT / "models", ("models/minialbert_models",), ()),
    "minialbert_native": (ROOT / "native", ("native/minialbert_native",), ()),
}
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def main() -> int:
    """Check and complete a folder; the exit status is 1 if something is odd."""
    folder, faults = Path(sys.argv[1]), list[str]()
    versions = {name: _project(name)["version"] for name in DISTRIBUTIONS}
    if len(set(versions.values())) > 1:
        faults.append(f"versions differ: {versions}")
    listed = installed()
    for name, version in versions.items():
        pattern = f"{name}-{version}-py3-none-{'*' if name in COMPILED else 'any'}.whl"
        wheels, source = list(folder.glob(pattern)), folder / f"{name}-{version}.tar.gz"
        if len(wheels) != 1 or not source.is_file():
            faults.append(f"{name}: expected one {pattern} and {source.name}")
            continue
        (wheel,) = wheels
        with zipfile.ZipFile(wheel) as archive:
            faults += odd_names(name, version, archive.namelist())
        components = components_of(name, listed)
        (folder / f"{name}-{version}.cdx.json").write_text(json.dumps(components, indent=1) + "\n")
        size, count = wheel.stat().st_size / 1e3, len(components["components"])
        sys.stdout.write(f"{wheel.name}: {size:.0f} kB, {count} components\n")
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != "SHA256SUMS")
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (folder / "SHA256SUMS").write_text("".join(sums))
    return 1 if faults else 0


def odd_names(name: str, version: str, names: list[str]) -> list[str]:
    """Return a line for each file that a wheel lacks or has too many."""
    metadata_files = METADATA - (set() if "scripts" in _project(name) else {"entry_points.txt"})
    expected = {f"{name}-{version}.dist-info/{file}" for file in metadata_files}
    expected |= {COMPILED[name]} if name in COMPILED else set()
    for folder in DISTRIBUTIONS[name][1]:
        parent = (ROOT / folder).parent
        listed = subprocess.run(
            ["git", "ls-files", "-z", folder], cwd=ROOT, capture_output=True, text=True, check=True
        )
        files = filter(None, listed.stdout.split("\0"))
        expected |= {(ROOT / file).relative_to(parent).as_posix() for file in files}
    return [
        *(f"{name}: the wheel lacks {file}" for file in sorted(expected - set(names))),
        *(f"{name}: the wheel has {file} too many" for file in sorted(set(names) - expected)),
    ]


def installed() -> dict[str, Any]:
    """Return the components of this environment, as CycloneDX has them."""
    command = [
        Path(sys.executable).parent / "cyclonedx-py",
        "environment",
        "--output-reproducible",
        sys.executable,
    ]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def components_of(name: str, listed: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a list of components that a distribution needs, directly or through others."""
    table, extras = _project(name), DISTRIBUTIONS[name][2]
    root = f"{name}=={table['version']}"
    asked = [
        *table["dependencies"],
        *(one for extra in extras for one in table["optional-dependencies"][extra]),
    ]
    needs = {root: needed(asked, ())}
    waiting = list(needs[root])
    while waiting:
        one, wanted = waiting.pop()
        if one not in needs or not needs[one] >= needed(metadata.requires(one) or [], wanted):
            needs[one] = needs.get(one, set()) | needed(metadata.requires(one) or [], wanted)
            waiting += needs[one]
    refs = {canonicalize_name(one["name"]): one["bom-ref"] for one in listed["components"]} | {root: root}
    component = {
        "bom-ref": root, "type": "library", "name": table["name"], "version": table["version"],
        "licenses": [{"license": {"id": table["license"], "acknowledgement": "declared"}}],
        "purl": f"pkg:pypi/{table['name']}@{table['version']}",
    }  # fmt: skip
    graph = [
        {"ref": refs[one], "dependsOn": sorted({refs[other] for other, _ in others})}
        for one, others in needs.items()
    ]
    kept = {one["ref"] for one in graph}
    return listed | {
        "metadata": {**listed["metadata"], "component": component},
        "components": [one for one in listed["components"] if one["bom-ref"] in kept],
        "dependencies": sorted(graph, key=lambda one: one["ref"]),
    }


def needed(requirements: Iterable[str], extras: Iterable[str]) -> set[tuple[str, tuple[str, ...]]]:
    """Return the installed packages, each with its extras, that requirements name on this machine."""
    found = set()
    for one in map(Requirement, requirements):
        if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            found.add((canonicalize_name(one.name), tuple(sorted(one.extras))))
    return found


def _project(name: str) -> dict[str, Any]:
    return tomllib.loads((DISTRIBUTIONS[name][0] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


if __name__ == "__main__":
    sys.exit(main())
