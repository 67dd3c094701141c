"""Suites: many rows distilled, tuned on many tasks with seeds, and held against the paper's claims."""

from minialbert.experiments.suite.cells import Cell, Result, expand, find_results, select
from minialbert.experiments.suite.claims import compare, judge
from minialbert.experiments.suite.page import write_suite_report
from minialbert.experiments.suite.run import Work, plan_work, run_suite
from minialbert.experiments.suite.schema import Suite, list_suites, load_suite
from minialbert.experiments.suite.time_left import time_left

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
