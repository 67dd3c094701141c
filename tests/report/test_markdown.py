"""A report's sections as Markdown."""

from __future__ import annotations

from minialbert.report.blocks import LineChart, Listing, Section, Series, Text
from minialbert.report.markdown import markdown_page
from minialbert.report.tables import Difference, Table

CURVE = LineChart("Loss", "steps", "loss", (Series("a", ((0.0, 1.0),)),))


def test_a_page():
    table = Table(
        "Scores", ("row", "a - b"), (("x|y", Difference(1.25, (-0.5, 3.0))), ("z", Difference(-2.0)))
    )
    sections = [
        Section(
            "Scores", (table, Table("More", ("n",), ((1_500_000,),))), (Section("Below", (Text("a <b>"),)),)
        ),
        Section("Curves", (CURVE,)),
        Section("Parts", (CURVE,), (Section("Verdict", (Text("held", strong=True),)),)),
        Section(
            "How",
            (Listing("How", ("run `this`", "```"), folded=False, language="sh"), Listing("Long", ("x",))),
        ),
    ]
    assert markdown_page("A *page*", sections, summary=(Text("Two rows."),)).splitlines() == [
        "# A \\*page\\*",
        "",
        "Two rows.",
        "",
        "## Scores",
        "",
        "| row | a - b |",
        "| --- | ---: |",
        "| x\\|y | +1.2 (-0.5, +3.0) |",
        "| z | -2.0 |",
        "",
        "**More**",
        "",
        "| n |",
        "| ---: |",
        "| 1.5M |",
        "",
        "### Below",
        "",
        "a &lt;b&gt;",
        "",
        "## Parts",
        "",
        "### Verdict",
        "",
        "**held**",
        "",
        "## How",
        "",
        "````sh",
        "run `this`",
        "```",
        "````",
    ]


def test_an_empty_table_is_left_out():
    assert markdown_page("T", [Section("Empty", (Table("Empty", ("a",), ()),))]) == "# T\n"
