"""Write results/reliability.md from the JUnit file of the slow tests (`make test-slow`).

    python benchmarks/pages/reliability_page.py results/reliability.xml results/reliability.md [AGAIN.xml]

AGAIN is that of failed tests that were run again, of the same commit; what passes then is told apart.
A test tells what it counted or measured with pytest's `record_property("measured", "one line")`.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

from minialbert.runs.machine import environment
from minialbert.runs.progress import duration


def page(junit: Path, again: Path | None = None) -> str:
    """Return the page as Markdown: a table per test file, with what each test measured."""
    suite = next(ElementTree.parse(junit).getroot().iter("testsuite"))  # our own files, none from elsewhere
    second = () if again is None else ElementTree.parse(again).getroot().iter("testcase")
    repeated = {(_file(case), case.get("name")): case for case in second}
    files: dict[str, list[ElementTree.Element]] = defaultdict(list)
    outcome: dict[ElementTree.Element, str] = {}
    for case in suite.iter("testcase"):
        last = repeated.get((_file(case), case.get("name")), case) if _outcome(case) == "failed" else case
        files[_file(case)].append(last)
        outcome[last] = _outcome(last) + (" when run again alone" if last is not case else "")
    outcomes = Counter(outcome.values())
    machine = environment()
    lines = [
        "# The slow tests, last run",
        "",
        "Made by `make test-slow`; what is promised is in [docs/reliability.md](../docs/reliability.md)."
        + " What failed was run again by `pytest -m slow FILE -k TEST`." * bool(repeated),
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
            f"| {_cell(case.get('name', ''))} | {outcome[case]} | {float(case.get('time', '0')):.0f} | "
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
    junit, output, *more = map(Path, sys.argv[1:])
    output.write_text(page(junit, *more), encoding="utf-8")
