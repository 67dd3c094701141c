"""Write the tables of docs/ that stand for measurements anew from the records under results/.

    python benchmarks/pages/performance_page.py

Each table lies between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, where NAME is one of `guide_tables.TABLES`, or a
folder (or a file without its suffix) under results/ that holds a `table.md` or a record with a table.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import guide_tables

RESULTS = Path("results")
PAGES = tuple(
    Path("docs") / f"{name}.md"
    for name in (
        "annotations",
        "tasks",
        "performance",
        "deployment",
        "browser",
        "scaling",
        "choosing-a-size",
        "how-long",
        "memory",
        "comparison",
        "serving",
    )
)


def table_of(name: str) -> str:
    """Return a table, composed of several records, or from the file that the benchmark left beside its record."""
    if name in guide_tables.TABLES:
        return guide_tables.TABLES[name](RESULTS)
    file = RESULTS / name / "table.md"
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    record = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return "\n".join(record["metrics"]["table"])


def main() -> None:
    """Replace every marked block of the pages."""
    pattern = re.compile(r"(<!-- (\S+):begin -->\n).*?(<!-- \2:end -->)", re.DOTALL)
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        text = pattern.sub(lambda match: f"{match[1]}{table_of(match[2])}\n{match[3]}", text)
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
