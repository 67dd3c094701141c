"""Whatever stands in a tool's file, it is read, or refused in one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minialbert.data.convert_data import read_documents
from minialbert.errors import UserError

SAMPLES = Path(__file__).parents[1] / "data" / "formats" / "samples"
ODD = st.sampled_from(
    [None, 3, -1, 1.5, "", "x", [], {}, [[]], [None], ["x"], {"x": 1}, True, "\ud7ff", 10**30]
)


def read(path):
    try:
        for documents in read_documents(path, []).values():
            for document in documents:
                assert all(0 <= one.start < one.end <= len(document.text) for one in document.entities or ())
    except UserError as error:
        assert "\n" not in str(error)


def places(value, at=()):
    yield at
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(inner, (*at, key))


@pytest.mark.parametrize("name", ["bioc.json", "spacy.json", "label-studio.json", "label-studio-min.json"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_odd_value_anywhere_in_json(tmp_path, name, data):
    record = json.loads((SAMPLES / name).read_text(encoding="utf-8"))
    changed = copy.deepcopy(record)
    at = data.draw(st.sampled_from(list(places(record))[1:]))
    holder = changed
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = data.draw(ODD)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(changed), encoding="utf-8")
    read(path)


@pytest.mark.parametrize("name", ["bioc.xml", "sample.pubtator", "brat/1.ann", "label-studio.conll"])
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_piece_of_a_file_that_is_gone_or_odd(tmp_path, name, data):
    text = (SAMPLES / name).read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start, min(start + 30, len(text))))
    odd = data.draw(st.sampled_from(["", "\t", "\n", "|", "99999999999999999999", "&x;", "<", "-1 ", "\x00"]))
    path = tmp_path / Path(name).name
    path.write_text(text[:start] + odd + text[end:], encoding="utf-8")
    (tmp_path / "1.txt").write_text(
        (SAMPLES / "brat" / "1.txt").read_text(encoding="utf-8"), encoding="utf-8"
    )
    read(tmp_path if path.suffix == ".ann" else path)
