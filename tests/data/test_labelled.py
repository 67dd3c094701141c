"""Which file is which split, and which format it is forced to be."""

from __future__ import annotations

import pytest

from minialbert.data.labelled import Labelled
from minialbert.errors import UserError

PUBTATOR = "1|t|a b\n1|a|c\n1\t0\t1\ta\tX\n\n"


def test_the_names_of_published_files_are_understood(tmp_path):
    for name in (
        "CDR_TrainingSet.PubTator.txt",
        "CDR_DevelopmentSet.PubTator.txt",
        "CDR_TestSet.PubTator.txt",
    ):
        (tmp_path / name).write_text(PUBTATOR)
    source = Labelled(tagging=True)
    _, tables = source.splits(tmp_path)
    assert {split: table.format for split, table in tables.items()} == dict.fromkeys(
        ("train", "validation", "test"), "PubTator"
    )
    assert "validation: read from CDR_DevelopmentSet.PubTator.txt" in source.notes
    (tmp_path / "train_and_test.txt").write_text(PUBTATOR)
    assert len(Labelled(tagging=True).splits(tmp_path)[1]) == 3
    (tmp_path / "TrainingSet2.txt").write_text(PUBTATOR)
    with pytest.raises(UserError, match="no train split; expected train with one of"):
        Labelled(tagging=True).splits(tmp_path)


def test_a_format_can_be_forced(tmp_path):
    path = tmp_path / "export.data"
    path.write_text('[{"id": 1, "data": {"text": "a b"}, "annotations": []}]')
    table = Labelled(tagging=True, format="label-studio").splits(path)[1]["train"]
    assert table.format == "Label Studio" and table.columns == ("text", "id")
    with pytest.raises(UserError, match=r"export.data:1: expected ID\|t\|TITLE"):
        Labelled(tagging=True, format="pubtator").splits(path)
    with pytest.raises(UserError, match="no format is called 'bratt': expected one of brat, pubtator"):
        Labelled(tagging=True, format="bratt").splits(path)
    path.write_text('{"text": "a"}')
    with pytest.raises(UserError, match=r"export.data:1: not a task of Label Studio"):
        Labelled(tagging=True, format="label-studio").splits(path)
