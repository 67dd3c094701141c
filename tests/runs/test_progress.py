"""The one bar: on a terminal, in a notebook, and silent elsewhere; and numbers as they are shown."""

from __future__ import annotations

import io
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

from minialbert.errors import UserError
from minialbert.runs import progress, run_progress
from minialbert.runs.directory import RunDirectory
from minialbert.runs.progress import (
    duration,
    progress_bar,
    quiet_transformers,
    seconds_of,
    size,
    speaking,
)
from minialbert.runs.run_progress import RunProgress


def draw(monkeypatch, console, **options):
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    with progress_bar("cells", **options) as bar:
        assert list(bar.track(range(3))) == [0, 1, 2]


def test_a_bar_on_a_terminal_tells_how_many_of_how_many(monkeypatch):
    shown = io.StringIO()
    draw(monkeypatch, Console(file=shown, force_terminal=True, width=90))
    assert "cells" in shown.getvalue() and "3/3" in shown.getvalue() and "left" in shown.getvalue()


@pytest.mark.parametrize(("options", "is_seen"), [({}, False), ({"in_files": True}, True)])
def test_a_bar_in_a_file_is_asked_for(monkeypatch, options, is_seen):
    shown = io.StringIO()
    draw(monkeypatch, Console(file=shown, width=90), **options)
    assert ("3/3" in shown.getvalue()) == is_seen
    hidden = io.StringIO()
    draw(monkeypatch, Console(file=hidden, force_terminal=True), shown=False)
    assert hidden.getvalue() == ""


@pytest.fixture
def notebook(monkeypatch):
    """Stand-ins for what a notebook has: they keep what is displayed."""
    displayed = []

    class Output:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def clear_output(self, wait=False):
            pass

    modules = {name: ModuleType(name) for name in ("ipywidgets", "IPython", "IPython.display")}
    modules["ipywidgets"].__spec__ = ModuleSpec("ipywidgets", None)
    modules["ipywidgets"].Output = Output
    modules["IPython.display"].display = lambda *things, **_: displayed.extend(things)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return displayed


def test_a_bar_in_a_notebook(monkeypatch, notebook):
    draw(monkeypatch, Console(force_jupyter=True, stderr=True))
    assert len(notebook) > 1


@pytest.mark.parametrize("options", [{}, {"in_files": True}])
def test_a_notebook_without_widgets_goes_without(monkeypatch, notebook, options):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    draw(monkeypatch, Console(force_jupyter=True, stderr=True), **options)
    assert notebook == []


def test_numbers_as_they_are_shown():
    assert [size(number) for number in (12, 1_234, 9_870_000, 5e12)] == [
        "12 bytes",
        "1.2 kB",
        "9.9 MB",
        "5.0 TB",
    ]
    assert [duration(seconds) for seconds in (5, 65, 3_725)] == ["0:05", "1:05", "1:02:05"]


def test_a_long_silence_ends_within_a_minute_and_leaves_the_log_alone(monkeypatch, tmp_path, caplog):
    clock = SimpleNamespace(monotonic=lambda: clock.now, now=100.0)
    monkeypatch.setattr(run_progress, "time", clock)
    monkeypatch.setattr(run_progress, "peak_memory_mb", lambda: 2_900.0)
    shown = RunProgress(RunDirectory(tmp_path), terms=(), bar=False)
    args = SimpleNamespace(gradient_accumulation_steps=12)
    state = SimpleNamespace(global_step=40, max_steps=76, is_world_process_zero=True)
    control = SimpleNamespace(should_log=False)

    def lines():
        found = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return found

    with caplog.at_level("INFO", "minialbert"):
        shown.on_train_begin(args, state, control)
        for _ in range(2):  # micro-batches of 14 s: a step takes 168 s
            clock.now += 14
            shown.on_substep_end(args, state, control)
            assert not lines()
        clock.now += 14
        shown.on_substep_end(args, state, control)
        (line,) = lines()
        assert line == "step 40.2/76 under way  left 1:40:06  2.9 GB of memory in all"
        clock.now += 126
        state.global_step += 1
        shown.on_step_end(args, state, control)
        assert lines() == ["step 41.0/76 under way  left 1:38:00  2.9 GB of memory in all"]
        clock.now += 14  # the waits grow
        shown.on_substep_end(args, state, control)
        clock.now += 28
        shown.on_substep_end(args, state, control)
        assert not lines()
        clock.now += 126
        state.global_step, control.should_log = 42, True  # a log follows at once
        shown.on_step_end(args, state, control)
        shown.on_log(args, state, control, {"loss": 1.0, "tokens_per_second": 300.0})
        assert len(lines()) == 1
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_an_evaluation_without_a_finite_loss_is_told(tmp_path, caplog):
    shown = RunProgress(RunDirectory(tmp_path), terms=(), bar=False)
    state = SimpleNamespace(global_step=10, max_steps=20, is_world_process_zero=True)
    with caplog.at_level("INFO", "minialbert"):
        shown.on_log(SimpleNamespace(), state, SimpleNamespace(), {"eval_mlm_accuracy": 0.0})
    assert caplog.messages == ["step 10/20  held-out: masked-token accuracy 0.0 %, loss not finite"]


def test_time_spans_are_read_as_people_write_them():
    spans = {"2h": 7200, "90m": 5400, "45s": 45, "1h30m": 5400, "1.5h": 5400, "1h0m5s": 3605}
    assert {span: seconds_of(span) for span in spans} == spans
    for wrong in (60, "", "2", "h", "2 days", "30m1h", "0s", "-1h"):
        with pytest.raises(UserError, match="expected a span such as 2h"):
            seconds_of(wrong)


def test_transformers_speaks_again_after_quiet_blocks_that_overlap():
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_info()
    theirs.enable_progress_bar()
    one, other = quiet_transformers(), quiet_transformers()  # as of two threads
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == (logging.ERROR, False)
    other.__exit__(None, None, None)
    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == (logging.INFO, True)
    theirs.set_verbosity(before[0])
    (theirs.enable_progress_bar if before[1] else theirs.disable_progress_bar)()


def test_lines_are_shown_where_nobody_has_set_up_logging(monkeypatch, capsys):
    ours = logging.getLogger("minialbert")
    monkeypatch.setattr(ours, "propagate", False)  # pytest has set it up
    for shown in (True, False):
        with speaking(shown):
            ours.info("shown: %s", shown)
    ours.addHandler(theirs := logging.NullHandler())
    with speaking():
        ours.warning("for them alone")
    ours.removeHandler(theirs)
    assert capsys.readouterr().err == "shown: True\n"
