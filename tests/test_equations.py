"""The table of equations that the room opens with names what there is, and leaves no equation out."""

from __future__ import annotations

from functools import reduce
from importlib import import_module

import pytest

from minialbert import method

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (method.__doc__ or "").splitlines()
    if line.startswith("|")
][2:]


def test_every_equation_has_a_row():
    assert {int(row[0].partition(":")[0]) for row in ROWS} == set(range(1, 13))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_names_of_a_row_exist(row):
    equation, file, name, twin = row
    module = import_module(f"minialbert.method.{file}")
    assert reduce(getattr, name.split("."), module).__doc__, equation
    if twin:
        place, _, function = twin.rpartition(".")
        assert callable(getattr(import_module(f"minialbert.method.{place}"), function))
