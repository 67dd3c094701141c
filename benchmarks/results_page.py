"""Write the page of results/miniature, its tables, and docs/results.md anew from the records there.

python benchmarks/results_page.py
"""

from __future__ import annotations

from pathlib import Path

from minialbert.suite import load_suite, write_suite_report

RESULTS = Path("results") / "miniature"
PAGE = Path("docs") / "results.md"
HEAD = """# Results: the paper in miniature

Made by `python benchmarks/results_page.py` from the records in [results/miniature](../results/miniature), which
[a suite](suite.md) left there; not written by hand. The same as one file with plots, training curves and attention
maps: [results/miniature/report.html](../results/miniature/report.html).
"""


def main() -> None:
    """Write the report beside its records, and the page of the documentation."""
    report = write_suite_report(load_suite("miniature"), RESULTS, RESULTS)
    _, _, body = report.partition("\n")
    PAGE.write_text(f"{HEAD}{body}", encoding="utf-8")


if __name__ == "__main__":
    main()
