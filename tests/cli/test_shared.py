"""What verbs share: `--help`, options that stand for settings, and options that had another name."""

from __future__ import annotations

import io
import re
import shlex
import time

import pytest
from rich.console import Console
from typer.main import get_command

from minialbert.cli import shared
from minialbert.cli.main import app
from minialbert.cli.shared import _GROUPS
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.checkpoints import new_checkpoint
from minialbert.runs.results import ModelResult


def commands(group=None, path=()):
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_help_has_examples_that_parse_and_types_in_plain_words(path, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    status, out, _ = call(*path, "--help")
    assert status == 0
    command = COMMANDS[path]
    text = f"{command.help}\n{command.epilog or ''}"
    examples = [
        shlex.split(line) for line in re.findall(r"^\s*(?:cat .* \| )?(minialbert .*)$", text, re.MULTILINE)
    ]
    assert examples and all(example[1 : len(path) + 1] == list(path) for example in examples)
    for example in examples:
        command.make_context(" ".join(path), example[len(path) + 1 :])
    shown = {word for line in out.splitlines() for word in line.split() if line.startswith("│")}
    assert not {word for word in shown if re.fullmatch(r"<(list\[.*|path|int|float|bool)>", word)}
    assert len(command.help.split("\n")[0]) < 66  # the list of verbs shows it whole in 80 columns


def test_options_stand_in_groups_and_required_ones_are_marked(call):
    _, out, _ = call("distill", "--help")
    groups = re.findall(r"^╭─ (.*?) ─", out, re.MULTILINE)
    assert groups == ["Options", "Training", "Run"]
    assert re.search(r"│ \* +--data", out) and "[required]" in out
    training = out.partition("─ Training ─")[2].partition("─ Run ─")[0]
    options = ("--steps", "--epochs", "--time", "--batch-size", "--lr", "--seed", "--precision", "--set")
    assert all(option in training for option in options)
    named = {param.name for command in COMMANDS.values() for param in command.params}
    assert {name for names in _GROUPS.values() for name in names.split()} <= named


TRAINED = {
    "distill": ("training", {"steps": 7, "epochs": 2.5, "batch-size": 24, "lr": 3e-5, "seed": 9, "precision": "bf16"}),
    "finetune": ("tuning", {"epochs": 2.5, "batch-size": 24, "lr": 3e-5, "seed": 9, "precision": "bf16"}),
}  # fmt: skip
KEYS = {"steps": "max_steps", "lr": "learning_rate", "batch-size": "batch_size"}


@pytest.mark.parametrize("verb", TRAINED)
def test_options_are_their_settings_and_none_is_given_twice(verb, call, refuse, monkeypatch, tmp_path):
    given = {}

    def run(*_, settings, output, **__):
        given["settings"] = settings
        return ModelResult({}, output, None, None)

    room = {"distill": "minialbert.method.distill.distill", "finetune": "minialbert.tasks.finetune.finetune"}
    monkeypatch.setattr(room[verb], run)
    section, options = TRAINED[verb]
    command = [verb, "--output", tmp_path / "run", *(["--data", tmp_path] if verb == "distill" else [])]
    for option, value in options.items():
        assert call(*command, f"--{option}", value)[0] == 0
        named = apply_overrides(_recipe(verb), given["settings"])
        assert call(*command, "--set", f"{section}.{KEYS.get(option, option)}={value}")[0] == 0
        assert named == apply_overrides(_recipe(verb), given["settings"]) != _recipe(verb)
        line = refuse(*command, f"--{option}", value, "--set", f"{section}.{KEYS.get(option, option)}=1")
        assert f"--{option} and --set {section}." in line


def _recipe(verb):
    return load_recipe("default", FinetuneRecipe) if verb == "finetune" else load_recipe("default")


def test_former_names_of_options_are_taken_and_told(call, refuse, tmp_path):
    status, _, err = call("suite", "status", "miniature", "--output", tmp_path)
    assert status == 0 and "minialbert: --output is now called --records" in err
    _, _, err = call("bench", "--models", "nothing/here", "--engines", "no-engine")
    assert "minialbert: --models is now called --model" in err
    _, _, err = call("prepare", "--text-field", "note")
    assert "minialbert: --text-field is now called --column" in err and "no corpus" in err
    _, _, err = call(
        "export", "--model", tmp_path, "--output", tmp_path / "o", "--to", "hub", "--evaluate=ner"
    )
    assert "--evaluate is now called --task" in err and "no option of --to hub" in err


def test_a_mistake_in_a_command_line_is_one_line(refuse):
    assert "No such option: --jobs" in refuse("distill", "--jobs", 3)
    assert "Missing option '--data' (minialbert distill --help" in refuse("distill", "--output", "x")
    assert "No such command 'fintune'" in refuse("fintune")
    assert "'--precision'" in refuse("finetune", "--output", "x", "--precision", "fp8")


def test_an_interrupted_page_says_that_the_rest_is_written(tmp_path, monkeypatch, capsys):
    def stop(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("minialbert.report.leave_page", stop)
    with pytest.raises(SystemExit, match="130"):
        shared.leave_page(tmp_path)
    said = f"minialbert: interrupted; all but the page is written; minialbert report {tmp_path} --output DIR writes one"
    assert capsys.readouterr().err.replace("\n", "") == said


@pytest.mark.parametrize(("more", "said"), [("", "nothing was written;"), ("--push", "with --overwrite")])
def test_an_interrupted_upload_does_not_say_that_nothing_was_written(more, said, call, tmp_path, monkeypatch):
    def stop(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("minialbert.deploy.export.export", stop)
    status, _, err = call("export", "--model", "m", "--to", "hub", "--output", tmp_path, *more.split())
    assert (status, err.strip()) == (130, f"minialbert: interrupted; {said} the same command starts it again")


def test_a_terminal_sees_at_once_that_a_verb_is_loaded_and_a_pipe_nothing(monkeypatch):
    for terminal in (True, False):
        seen = io.StringIO()
        console = Console(file=seen, force_terminal=terminal)
        monkeypatch.setattr(shared, "err", console)
        monkeypatch.setattr(shared, "_loading", console.status("loading ..."))
        with shared.loading():
            deadline = time.monotonic() + 10
            while terminal and "loading" not in seen.getvalue():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with shared.interruptible():
                before = seen.getvalue()
                time.sleep(0.2)
                assert seen.getvalue() == before  # the spinner has stopped
        assert bool(seen.getvalue()) is terminal


@pytest.mark.parametrize(
    ("verb", "work", "goes_on"),
    [
        (["distill", "--data", "w"], "minialbert.method.distill.distill", None),
        (["finetune", "--task", "ner"], "minialbert.tasks.finetune.finetune", None),
        (["finetune", "--grid"], "minialbert.experiments.grid.run_grid", "goes on; finished cells are not run again"),
        (["prepare"], "minialbert.data.prepare.prepare", "goes on where it stopped"),
    ],
)  # fmt: skip
def test_an_interrupted_run_says_how_it_goes_on(verb, work, goes_on, call, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def interrupted(leaves, *more):
        def stop(*args, **options):
            leaves()
            raise KeyboardInterrupt

        monkeypatch.setattr(work, stop)
        status, _, err = call(*verb, "--output", run, *more)
        assert status == 130
        return err.removeprefix("minialbert: interrupted; the same command ").strip()

    def begin():
        run.mkdir(exist_ok=True)
        (run / "recipe.yaml").unlink(missing_ok=True)
        (run / "recipe.yaml").write_text("")

    def save():
        begin()
        with new_checkpoint(run / "checkpoints", 3, keep=None):
            pass

    last = "goes on from the last checkpoint"
    assert interrupted(lambda: None) == "starts it again"
    assert interrupted(begin) == (goes_on or "with --resume starts its training")
    (run / "teacher-labels").mkdir()
    labelled = "with --resume goes on with the labels that the teacher has given"
    assert interrupted(begin) == (goes_on or labelled)
    assert interrupted(save) == (goes_on or f"with --resume {last}")

    def record():
        begin()
        (run / "result.json").write_text("{}")

    only = "with --resume writes its page, which alone is missing"
    assert interrupted(record) == (goes_on or only)
    (run / "result.json").unlink()
    # What is to be replaced says nothing of the run in its place.
    assert interrupted(lambda: None, "--overwrite") == "starts it again"
    instead = f"with --resume in place of --overwrite {last}"
    assert interrupted(save, "--overwrite") == (f"without --overwrite {goes_on}" if goes_on else instead)
