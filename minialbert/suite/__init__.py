"""Suites: many rows distilled, tuned on many tasks with seeds, and held against the paper's claims."""

from .cells import Cell, expand, select
from .claims import compare, judge
from .estimates import time_left
from .records import Result, find_results
from .report import write_suite_report
from .running import Work, plan_work, run_suite
from .schema import Suite, list_suites, load_suite

__all__ = [
    "Cell",
    "Result",
    "Suite",
    "Work",
    "compare",
    "expand",
    "find_results",
    "judge",
    "list_suites",
    "load_suite",
    "plan_work",
    "run_suite",
    "select",
    "time_left",
    "write_suite_report",
]
