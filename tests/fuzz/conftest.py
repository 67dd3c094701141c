"""Keeps the line that each hunt prints for the page of the slow tests."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _kept(record_property, capsys):
    yield
    printed = capsys.readouterr().out
    for line in printed.splitlines():
        if line.startswith("fuzz "):
            record_property("measured", line.removeprefix("fuzz "))
    sys.stdout.write(printed)
