"""Trackers: what they get is what log.jsonl has, nothing of the machine, and a run outlives them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import write_tiny_task

from minialbert.errors import MissingExtraError, UserError
from minialbert.method import distill as distillation
from minialbert.method.distill import distill
from minialbert.method.trainer import DistillationTrainer
from minialbert.recipes.load import apply_overrides, dump_recipe, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, flat_settings, without_folders, without_places
from minialbert.runs import trackers
from minialbert.runs.directory import RunDirectory
from minialbert.tasks import finetune as finetuning
from minialbert.tasks.finetune import finetune, finetune_command

# What the packages themselves, and what they are built on, deprecate.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:trackio.*"),
]


@pytest.fixture
def distil(tiny_teacher_dir, tiny_windows, tmp_path):
    def start(*overrides: str, output: str = "run", **arguments: Any) -> dict[str, Any]:
        settings = [
            "student.adapter_reduction_factor=8", "training.eval_windows=8", f"teacher.model='{tiny_teacher_dir}'",
        ]  # fmt: skip
        recipe = apply_overrides(load_recipe("tiny"), [*settings, *overrides])
        return distill(
            None, tiny_windows, recipe=recipe, output=tmp_path / output, progress=False, **arguments
        ).record

    return start


@pytest.fixture
def tune(tiny_student_dir, tmp_path):
    def start(*overrides: str, output: str = "tuned", **arguments: Any) -> dict[str, Any]:
        data = tmp_path / "my-task"
        if not data.exists():
            write_tiny_task(data, "classification")
        settings = [
            f"model.name='{tiny_student_dir}'", "task.name=classification", f"task.data='{data}'",
            "tuning.batch_size=16", "tuning.epochs=2", "tuning.logging_steps=5", "tuning.dropout=0",
        ]  # fmt: skip
        recipe = apply_overrides(load_recipe("default", FinetuneRecipe), [*settings, *overrides])
        return finetune(recipe=recipe, output=tmp_path / output, progress=False, **arguments).record

    return start


def logged(run: Path) -> dict[str, dict[int, float]]:
    """Figures of a log by their names in a tracker and by step, told from its lines alone."""
    figures: dict[str, dict[int, float]] = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        if record["kind"] == "start":
            first = record["metrics"].get("student_start", {})
            record = {f"eval_{name}": value for name, value in first.items()}
        measured = any(name.startswith("eval_") for name in record)
        for name, value in record.items():
            if isinstance(value, int | float) and not (measured and name == "epoch"):
                place = f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}"
                figures.setdefault(place, {})[step] = value
    return figures


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of event files as TensorBoard's own reader sees them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reader = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def assert_same_figures(run: Path) -> None:
    expected, found = logged(run), events(run / "tracking")
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert [step for step, _ in values] == sorted(expected[name])
        assert dict(values) == pytest.approx(expected[name], rel=1e-6)  # event files have 32 bits


def test_nothing_is_reported_unasked(tiny_teacher_dir):
    recipe = load_recipe("tiny")
    assert recipe.training.report_to == []
    assert load_recipe("default", FinetuneRecipe).tuning.report_to == []
    assert trackers.trackers(recipe.training.report_to, RunDirectory("run"), recipe) == []


def test_a_trainer_has_no_tracker_unasked(distil, tmp_path, monkeypatch):
    found = []
    original = DistillationTrainer.train

    def train(self, *args, **kwargs):
        found.append((self.args.report_to, [type(one).__module__ for one in self.callback_handler.callbacks]))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(DistillationTrainer, "train", train)
    distil()
    (report_to, modules), *_ = found
    assert report_to == []
    assert not [name for name in modules if "integration" in name or name == "minialbert.runs.trackers"]
    assert not (tmp_path / "run" / "tracking").exists()


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("tensorboard", ["tensorboard"]),
        ("[tensorboard,wandb]", ["tensorboard", "wandb"]),
        ("[tensorboard, wandb, trackio]", ["tensorboard", "wandb", "trackio"]),
        ("none", []),
        ("null", []),
        ("[]", []),
    ],
)
def test_names_on_the_command_line(value, names):
    recipe = apply_overrides(load_recipe("tiny"), [f"training.report_to={value}"])
    assert recipe.training.report_to == names
    tuning = apply_overrides(load_recipe("default", FinetuneRecipe), [f"tuning.report_to={value}"])
    assert tuning.tuning.report_to == names


def test_an_unknown_tracker():
    with pytest.raises(UserError, match="report_to.*'tensorboard', 'wandb' or 'trackio'.*got 'mlflow'"):
        apply_overrides(load_recipe("tiny"), ["training.report_to=mlflow"])


def test_a_recipe_survives_its_file(tmp_path):
    recipe = apply_overrides(load_recipe("tiny"), ["training.report_to=[tensorboard,trackio]"])
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_missing_package_is_told_before_anything_is_written(name, distil, tune, tmp_path, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda spec, *rest: None if spec == name else original(spec, *rest)
    )
    with pytest.raises(MissingExtraError, match=rf"needs {name}: pip install .*\[tracking\]'"):
        distil(f"training.report_to={name}")
    with pytest.raises(MissingExtraError, match=rf"needs {name}"):
        tune(f"tuning.report_to={name}")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "tuned").exists()


def test_names_of_figures():
    logs = {
        "loss": 2.0, "loss_mlm": 1, "epoch": 0.5, "non_finite": ["mlm"], "grad_norm": float("nan"), "flag": True,
    }  # fmt: skip
    assert trackers.named(logs) == {"train/loss": 2.0, "train/loss_mlm": 1.0, "train/epoch": 0.5}
    logs = {"eval_cosine_1": 0.5, "eval_metric": "accuracy", "epoch": 0.5}
    assert trackers.named(logs) == {"eval/cosine_1": 0.5}


@pytest.mark.parametrize(
    ("place", "value", "shown"),
    [
        ("teacher.model", "/home/someone/teachers/bert", "bert"),
        ("model.name", "runs/mine/model", "mine/model"),
        ("model.name", "owner/name", "owner/name"),  # of the hub, as far as one can tell
        ("data.corpus", "someone/patients", "patients"),
        ("task.data", "patients/table.csv", "table.csv"),
        ("data.corpus", "~/text.txt", "text.txt"),
        ("teacher.model", "C:\\Users\\someone\\bert", "bert"),
        ("teacher.model", "C:/bert", "bert"),
        ("data.corpus", "hub:owner/name:config:train", "hub:owner/name:config:train"),
        ("data.corpus", "hub:/home/someone/x", "x"),
        ("data.corpus", ["/data/a.txt", "hub:owner/b"], ["a.txt", "hub:owner/b"]),
        ("data.corpus", None, None),
    ],
)
def test_places_without_their_folders(place, value, shown):
    assert without_folders(value, place) == shown
    section, _, key = place.partition(".")
    assert without_places({"name": "x", section: {key: value, "seed": 1}}) == {
        "name": "x", section: {key: shown, "seed": 1},
    }  # fmt: skip


def test_settings_by_dotted_name():
    assert flat_settings({"name": "x", "a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {
        "name": "x", "a.b": 1, "a.c.d": [2],
    }  # fmt: skip
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"x": deep}
    assert list(flat_settings(deep)) == [".".join("x" * 11)]


class Fake:
    """A tracker that keeps what it gets, and fails when told to."""

    def __init__(self) -> None:
        self.written: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.fails = False

    def write(self, figures, step):
        if self.fails:
            raise OSError(28, "No space left on device")
        self.written.append((step, dict(figures)))

    def finish(self):
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    made = Fake()
    for module in (distillation, finetuning):
        monkeypatch.setattr(module, "check_trackers", lambda names: None)
    monkeypatch.setitem(trackers._TRACKERS, "trackio", lambda run, config, step: made)
    return made


def state(step: int, *, first: bool = True) -> SimpleNamespace:
    return SimpleNamespace(global_step=step, is_world_process_zero=first, max_steps=9)


def callback(tmp_path: Path) -> trackers.RunTracking:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir(exist_ok=True)
    (found,) = trackers.trackers(["trackio", "trackio"], run, load_recipe("tiny"))
    return found


def test_only_the_first_process_reports(fake, tmp_path):
    one = callback(tmp_path)
    one.on_train_begin(None, state(0, first=False), None)
    one.on_log(None, state(1, first=False), None, logs={"loss": 1.0})
    one.on_train_end(None, state(1, first=False), None)
    assert (fake.written, fake.finished) == ([], 0)
    assert not (tmp_path / "run" / "tracking").exists()


def test_a_tracker_that_fails_is_told_once_and_left_alone(fake, tmp_path, caplog):
    one = callback(tmp_path)
    one.on_train_begin(None, state(0), None)
    one.on_log(None, state(1), None, logs={"loss": 1.0})
    fake.fails = True
    with caplog.at_level(logging.WARNING, logger="minialbert.runs.trackers"):
        for step in (2, 3):
            one.on_log(None, state(step), None, logs={"loss": 1.0})
        one.on_train_end(None, state(3), None)
    assert fake.written == [(1, {"train/loss": 1.0})]
    assert fake.finished == 0
    (message,) = [record.getMessage() for record in caplog.records]
    assert message == (
        "trackio cannot take more figures (OSError: [Errno 28] No space left on device); the run goes on without it, "
        "and log.jsonl has every figure"
    )


def _unreachable(run, config, step):
    raise ConnectionError("no network")


def test_a_tracker_that_cannot_start_ends_a_new_run_but_no_resumed_one(fake, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(trackers._TRACKERS, "trackio", _unreachable)
    with pytest.raises(UserError, match="trackio cannot be started .ConnectionError: no network.: fix that"):
        callback(tmp_path).on_train_begin(None, state(0), None)
    one = callback(tmp_path)
    with caplog.at_level(logging.WARNING, logger="minialbert.runs.trackers"):
        one.on_train_begin(None, state(4), None)
        one.on_log(None, state(5), None, logs={"loss": 1.0})
    assert ["cannot go on" in record.getMessage() for record in caplog.records] == [True]


def test_a_link_is_not_followed(fake, tmp_path):
    one = callback(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "tracking").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        one.on_train_begin(None, state(0), None)


def test_a_run_is_not_lost_with_its_tracker(fake, distil, tmp_path):
    fake.fails = True
    distil("training.report_to=trackio")
    assert (tmp_path / "run" / "result.json").is_file()
    assert (tmp_path / "run" / "model").is_dir()


def test_reporting_changes_nothing_of_what_is_learnt(fake, distil, distilled, tune, tmp_path):
    distil("training.report_to=trackio", output="one")
    weights = [(at / "model" / "model.safetensors").read_bytes() for at in (tmp_path / "one", distilled)]
    assert weights[0] == weights[1]
    with_it, without = tune("tuning.report_to=trackio", output="three"), tune(output="four")
    assert with_it["metrics"] == without["metrics"]
    assert with_it["command"] == without["command"] and "report_to" not in with_it["command"]
    assert fake.finished == 2


def test_the_command_of_a_recipe_leaves_trackers_to_who_runs_it():
    recipe = apply_overrides(load_recipe("default", FinetuneRecipe), ["tuning.report_to=wandb"])
    assert "report_to" not in finetune_command(recipe)


def test_tensorboard_has_what_the_log_of_a_distillation_has(distil, tmp_path):
    pytest.importorskip("tensorboard")
    distil("training.report_to=tensorboard")
    run = tmp_path / "run"
    assert_same_figures(run)
    found = events(run / "tracking")
    assert {"train/loss", "train/loss_mlm", "train/grad_norm", "train/tokens_per_second"} <= found.keys()
    assert [step for step, _ in found["eval/mlm_accuracy"]] == [0, 2, 4]
    assert str(tmp_path).encode() not in b"".join(path.read_bytes() for path in (run / "tracking").iterdir())
    distil(overwrite=True)
    assert not (run / "tracking").exists()


def test_tensorboard_has_what_the_log_of_a_tuning_has(tune, tmp_path):
    pytest.importorskip("tensorboard")
    tune("tuning.report_to=[tensorboard]")
    assert_same_figures(tmp_path / "tuned")
    assert [step for step, _ in events(tmp_path / "tuned" / "tracking")["eval/accuracy"]] == [10, 20]


def stop_in_step(number: int, patch: pytest.MonkeyPatch, deed) -> None:
    """Do something in an optimiser step of a distillation, of two micro-batches each."""
    original, calls = DistillationTrainer.training_step, []

    def step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2 * number - 1:
            deed()
        return original(self, *args, **kwargs)

    patch.setattr(DistillationTrainer, "training_step", step)


class Killed(BaseException):
    """Ends a run as kill -9 does: without any clearing up."""


def kill() -> None:
    raise Killed


def test_a_resumed_run_goes_on_in_tensorboard_without_a_step_twice(distil, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    settings = ["training.report_to=tensorboard", "training.save_steps=2"]
    with monkeypatch.context() as patch:
        stop_in_step(4, patch, kill)
        with pytest.raises(Killed):
            distil(*settings)
    assert [step for step, _ in events(tmp_path / "run" / "tracking")["train/loss"]] == [1, 2, 3]
    distil(*settings, resume=True)
    assert_same_figures(tmp_path / "run")


@pytest.fixture
def offline_wandb(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))
    yield wandb
    wandb.teardown()


def transaction_log(run: Path) -> list[Any]:
    """Records of the offline files of W&B, in the order of their writing."""
    from wandb.proto import wandb_internal_pb2

    return [
        wandb_internal_pb2.Record.FromString(data)
        for file in sorted(run.glob("tracking/wandb/offline-run-*/*.wandb"))
        for data in level_db_log(file.read_bytes())
    ]


def level_db_log(content: bytes) -> Iterator[bytes]:
    """Records of a log as LevelDB writes it, after the seven bytes that W&B puts before it.

    Blocks have 32 KiB; a fragment has a checksum (4 bytes), a length (2) and a type (whole, first, middle, last).
    """
    assert content.startswith(b":W&B")
    place, parts = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def wandb_history(records: list[Any]) -> dict[str, dict[int, float]]:
    figures: dict[str, dict[int, float]] = {}
    for record in records:
        if record.WhichOneof("record_type") != "history":
            continue
        items = {
            "/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item
        }
        for name, value in items.items():
            if not name.startswith("_"):
                figures.setdefault(name, {})[int(items["_step"])] = value
    return figures


def test_wandb_has_what_the_log_has_and_nothing_of_the_machine(offline_wandb, distil, tmp_path):
    before = dict(os.environ)
    distil("training.report_to=wandb")
    after = dict(os.environ)
    after.pop("WANDB_SERVICE", None)  # W&B's own, for processes that the run starts; no run is told by it
    assert after == before
    assert offline_wandb.run is None
    records = transaction_log(tmp_path / "run")
    found, expected = wandb_history(records), logged(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values == pytest.approx(expected[name])
    (run,) = {record.run.run_id: record.run for record in records if record.HasField("run")}.values()
    assert (run.project, run.display_name, run.host) == ("minialbert", "run", "")
    assert run.run_id == (tmp_path / "run" / "tracking" / "wandb-id").read_text().strip()
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["training"]["learning_rate"] == load_recipe("tiny").training.learning_rate
    assert config["teacher"]["model"] == "teacher"
    sent = b"".join(
        file.read_bytes() for file in (tmp_path / "run").glob("tracking/wandb/offline-run-*/**/*.wandb")
    )
    sent += b"".join(
        file.read_bytes()
        for file in (tmp_path / "run").glob("tracking/wandb/offline-run-*/files/**/*")
        if file.is_file()
    )
    assert str(tmp_path).encode() not in sent
    host = socket.gethostname().encode()
    # Two letters turn up in binary data by chance: a short name is looked for as a value, in protobuf and in JSON.
    forms = (host,) if len(host) > 5 else (bytes([len(host)]) + host, b'"' + host + b'"')
    assert not any(form in sent for form in forms)


def test_a_stopped_run_goes_on_as_the_same_run_of_wandb(offline_wandb, distil, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_step(3, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            distil("training.report_to=wandb")
    first = (tmp_path / "run" / "tracking" / "wandb-id").read_text()
    distil("training.report_to=wandb", resume=True)
    assert (tmp_path / "run" / "tracking" / "wandb-id").read_text() == first
    records = transaction_log(tmp_path / "run")
    assert {record.run.run_id for record in records if record.HasField("run")} == {first.strip()}
    assert wandb_history(records)["train/loss"].keys() == {1, 2, 3, 4}
    distil("training.report_to=wandb", overwrite=True)
    assert (tmp_path / "run" / "tracking" / "wandb-id").read_text() != first


def test_no_id_of_a_run(offline_wandb, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.tracking.mkdir(parents=True)
    (run.tracking / "wandb-id").write_text("../../x")
    (one,) = trackers.trackers(["wandb"], run, load_recipe("tiny"))
    with pytest.raises(UserError, match="holds no id of a run"):
        one.on_train_begin(None, state(0), None)


@pytest.fixture
def local_trackio(monkeypatch, tmp_path):
    trackio = pytest.importorskip("trackio")
    from trackio import sqlite_storage, utils

    for name in [name for name in os.environ if name.startswith("TRACKIO_")]:
        monkeypatch.delenv(name)
    for module in (trackio, sqlite_storage, utils):
        if hasattr(module, "TRACKIO_DIR"):
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")

    def query(statement: str) -> list[tuple[Any, ...]]:
        (file,) = (tmp_path / "trackio").glob("minialbert*.db")
        with contextlib.closing(sqlite3.connect(file)) as database:
            return database.execute(statement).fetchall()

    return query


def test_trackio_has_what_the_log_has(local_trackio, tune, tmp_path, capsys):
    tune("tuning.report_to=trackio")
    assert capsys.readouterr().out == ""
    found: dict[str, dict[int, float]] = {}
    for name, step, metrics in local_trackio("SELECT run_name, step, metrics FROM metrics"):
        assert name == "tuned"
        for key, value in json.loads(metrics).items():
            found.setdefault(key, {})[step] = value
    expected = logged(tmp_path / "tuned")
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values == pytest.approx(expected[name])
    ((config,),) = local_trackio("SELECT CAST(config AS TEXT) FROM configs")
    assert json.loads(config)["tuning"]["epochs"] == 2
    assert str(tmp_path) not in config
    assert socket.gethostname() not in config


def test_a_stopped_run_goes_on_as_the_same_run_of_trackio(local_trackio, distil, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_step(3, patch, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(KeyboardInterrupt):
            distil("training.report_to=trackio")
    distil("training.report_to=trackio", resume=True)
    assert len(local_trackio("SELECT DISTINCT run_id FROM metrics")) == 1
    rows = local_trackio("SELECT step, metrics FROM metrics ORDER BY step")
    assert [step for step, metrics in rows if "train/loss" in json.loads(metrics)] == [1, 2, 3, 4]
    distil("training.report_to=trackio", overwrite=True)
    assert len(local_trackio("SELECT DISTINCT run_id FROM metrics")) == 2
