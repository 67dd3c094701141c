"""Ctrl-C before a verb has begun: one line and status 130, whatever is being imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

_INTERRUPTED_AT = """
import sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
sys.argv = ["minialbert", "distill", "--data", "nowhere", "--output", "run"]
from minialbert.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["typer", "minialbert.cli.main", "torch", "torch._export.verifier"])
def test_ctrl_c_while_something_is_imported(name, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED_AT.format(name=name)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 130 and ended.stdout == ""
    assert ended.stderr == "minialbert: interrupted; the same command starts it again\n"
    assert not (tmp_path / "run").exists()
