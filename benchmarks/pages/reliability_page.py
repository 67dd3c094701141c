"""Write results/reliability.md from the JUnit file of the slow tests (`make test-slow`).

    python benchmarks/pages/reliability_page.py results/reliability.xml results/reliability.md

A test tells what it counted or measured with pytest's `record_property("measured", "one line")`.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

from minialbert.runs.machine import environment
from minialbert.runs.progress import duration


def page(junit: Path) -> str:
    """Return the page as Markdown: a table per test file, with what each test measured."""
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))  # our own file, not one from elsewhere
    files: dict[str, list[ElementTree.Element]] = defaultdict(list)
    for case in suite.iter("testcase"):
        files[_file(case)].append(case)
    outcomes = Counter(_outcome(case) for cases in files.values() for case in cases)
    machine = environment()
    lines = [
        "# The slow tests, last run",
        "",
        "Made by `make test-slow`; what is promised is in [docs/reliability.md](../docs/reliability.md).",
        "",
        f"{', '.join(f'{count} {name}' for name, count in sorted(outcomes.items()))} in "
        f"{duration(float(suite.get('time', '0')))}, started {suite.get('timestamp', '')[:16].replace('T', ' ')}, on "
        f"{machine['machine']['cores']} cores ({machine['machine']['processor']}), "
        f"torch {machine['versions']['torch']}, transformers {machine['versions']['transformers']}, "
        f"Python {machine['versions']['python']}, commit "
        f"{(machine['commit'] or 'unknown')[:10]}.",
    ]
    for name in sorted(files):
        lines += ["", f"## {name}", "", "| test | outcome | seconds | measured |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(case.get('name', ''))} | {_outcome(case)} | {float(case.get('time', '0')):.0f} | "
            f"{_cell('; '.join(_measured(case)))} |"
            for case in files[name]
        ]
    return "\n".join(lines) + "\n"


def _file(case: ElementTree.Element) -> str:
    parts = (case.get("classname") or case.get("name", "")).split(".")
    return "/".join(parts) + ".py"


def _outcome(case: ElementTree.Element) -> str:
    for kind, name in (("failure", "failed"), ("error", "failed"), ("skipped", "skipped")):
        if case.find(kind) is not None:
            return name
    return "passed"


def _measured(case: ElementTree.Element) -> list[str]:
    found = [p.get("value", "") for p in case.iter("property") if p.get("name") == "measured"]
    skipped = case.find("skipped")
    return found if skipped is None else [*found, skipped.get("message", "")]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(page(Path(sys.argv[1])), encoding="utf-8")
