"""The command line with one fault built in: at a named point the process is killed, asked to stop, or out of room.

`CHAOS` in the environment says which, as JSON (`Fault`). Everything else is the command as users run it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "CHAOS"
_SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}


@dataclass
class Fault:
    """What is to go wrong, and where.

    Attributes:
        point: the name of the point; None for nowhere.
        nth: the how-manieth time.
        action: "kill", "terminate", "interrupt", or "full" (no file may grow past `room` bytes from then on).
        room: bytes.
        phase: a file that always tells where the process is.
        fired: a file that is made when the fault happens; while it is there, nothing happens.
        in_worker: the fault is for the workers of a grid, not for the process that starts them.
        often: checkpoints of a tuning, and the state of `prepare`, are saved as often as can be.
    """

    point: str | None = None
    nth: int = 1
    action: str = "kill"
    room: int = 0
    phase: str = os.devnull
    fired: str = os.devnull
    in_worker: bool = False
    often: bool = True


class Faults:
    """Counts how often each point was reached, and makes the fault happen.

    Args:
        fault: which.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.trained = False
        self.training = False
        self._counts: Counter[str] = Counter()
        self._phase = os.open(fault.phase, os.O_WRONLY | os.O_CREAT, 0o600)

    def reach(self, point: str, where: object = "", half: Callable[[], object] | None = None) -> None:
        """Note where the process is, and let the fault happen if this is the place.

        Args:
            point: the name of the point.
            where: a step, for the report.
            half: what is done before the fault, and only then, such as writing the half of a file.
        """
        self._counts[point] += 1
        os.pwrite(self._phase, f"{point} {where}".strip().ljust(100).encode(), 0)
        fault = self.fault
        if point != fault.point or self._counts[point] != fault.nth or Path(fault.fired).is_file():
            return
        if half is not None:
            half()
        if fault.fired != os.devnull:
            Path(fault.fired).touch()
        if fault.action == "full":
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.room, resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), _SIGNALS[fault.action])

    def before(self, owner: Any, name: str, point: str) -> None:
        """Make a point before each call of a function.

        Args:
            owner: module or class.
            name: of the function.
            point: the name of the point.
        """
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.reach(point, _step_of(args))
            return original(*args, **kwargs)

        setattr(owner, name, call)

    def after(self, owner: Any, name: str, point: str) -> None:
        """Make a point after each call of a function; see `before`."""
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.reach(point, _step_of(args))
            return result

        setattr(owner, name, call)


def _step_of(args: tuple[Any, ...]) -> object:
    state = getattr(args[0], "state", None) if args else None
    return f"after step {state.global_step}" if hasattr(state, "global_step") else ""


def _half_of(path: str | Path, write: Callable[[], object]) -> None:
    """Write a file, then cut it in half."""
    write()
    os.truncate(path, Path(path).stat().st_size // 2)


def install(faults: Faults) -> None:
    """Put the points into the package.

    Args:
        faults: what is told of them.
    """
    _in_runs(faults)
    _in_training(faults)
    _in_checkpoints(faults)
    _in_models(faults)
    _in_prepare(faults)
    _in_grids(faults)


def _in_runs(faults: Faults) -> None:
    from minialbert.experiments import pool
    from minialbert.runs import directory, files

    write = files.write_atomically

    def write_atomically(path: Path, content: str | bytes) -> None:
        partial = path.with_name(f".{path.name}.partial")
        data = content if isinstance(content, bytes) else content.encode()
        faults.reach(f"{path.name}: half", half=lambda: partial.write_bytes(data[: len(data) // 2]))
        write(path, content)
        faults.reach(f"{path.name}: written")

    # `write_json` of the same module finds it there; these took it by name.
    files.write_atomically = directory.write_atomically = pool.write_atomically = write_atomically
    append = directory.RunDirectory.append_log

    def append_log(run: directory.RunDirectory, record: dict[str, Any]) -> None:
        def half() -> None:
            line = json.dumps(record)
            with run.log.open("a", encoding="utf-8") as file:
                file.write(line[: len(line) // 2])

        cut = half if faults.fault.action == "kill" else None
        faults.reach("log: half a line", f"step {record.get('step')}", half=cut)
        append(run, record)
        faults.reach("log: a line", f"step {record.get('step')}")

    directory.RunDirectory.append_log = append_log  # type: ignore[method-assign]


def _in_training(faults: Faults) -> None:
    from transformers import Trainer

    from minialbert.experiments import grid
    from minialbert.method import distill
    from minialbert.method.trainer import DistillationTrainer
    from minialbert.runs.trainer import ResumableTrainer
    from minialbert.tasks import finetune
    from minialbert.tasks import trainer as tuning_trainer

    faults.before(distill, "plan_distillation", "plan")
    faults.before(finetune, "plan_finetuning", "plan")
    faults.before(grid, "plan_finetuning", "plan")
    faults.before(Trainer, "training_step", "batch")
    faults.before(ResumableTrainer, "_drop_non_finite", "optimiser step")
    if faults.fault.often:
        tuning_trainer._SECONDS_BETWEEN_CHECKPOINTS = -1.0
    train = ResumableTrainer.train

    def trained(*args: Any, **kwargs: Any) -> Any:
        faults.training = True
        result = train(*args, **kwargs)
        faults.training, faults.trained = False, True
        return result

    ResumableTrainer.train = trained  # type: ignore[method-assign]

    def measuring() -> str:
        if faults.trained:
            return "final measurement"
        return "evaluation" if faults.training else "first measurement"

    batches = DistillationTrainer._until_stopped

    def until_stopped(trainer: DistillationTrainer, loader: Any) -> Any:
        # Before the batch is asked for: where a signal is seen.
        iterator = batches(trainer, loader)
        while True:
            faults.reach(measuring(), _step_of((trainer,)))
            try:
                batch = next(iterator)
            except StopIteration:
                return
            yield batch

    DistillationTrainer._until_stopped = until_stopped  # type: ignore[method-assign]
    run_model = finetune._measure

    def measure(*args: Any, **kwargs: Any) -> Any:
        faults.reach(measuring())
        return run_model(*args, **kwargs)

    finetune._measure = measure


def _in_checkpoints(faults: Faults) -> None:
    import safetensors.torch
    import torch

    from minialbert.runs import checkpoints
    from minialbert.runs.trainer import ResumableTrainer

    faults.before(ResumableTrainer, "_save", "checkpoint: before the weights")
    faults.before(ResumableTrainer, "_save_optimizer_and_scheduler", "checkpoint: between two files")
    faults.before(checkpoints, "_seal", "checkpoint: before the manifest")
    faults.after(checkpoints, "_seal", "checkpoint: before the rename")
    save_model, save_file, save, sync = (
        safetensors.torch.save_model, safetensors.torch.save_file, torch.save, checkpoints.sync
    )  # fmt: skip

    def half_model(model: Any, path: str, *args: Any, **kwargs: Any) -> None:
        point = "checkpoint: half of the weights"
        faults.reach(point, half=lambda: _half_of(path, lambda: save_model(model, path, *args, **kwargs)))
        save_model(model, path, *args, **kwargs)

    def half_file(tensors: Any, path: str, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == "best.safetensors":
            point = "checkpoint: half of the best state"
            faults.reach(point, half=lambda: _half_of(path, lambda: save_file(tensors, path)))
        save_file(tensors, path, *args, **kwargs)

    def half_optimiser(value: Any, path: str, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == "optimizer.pt":
            point = "checkpoint: half of the optimiser"
            faults.reach(point, half=lambda: _half_of(path, lambda: save(value, path)))
        save(value, path, *args, **kwargs)

    def synced(path: Path) -> None:
        if path.name == "checkpoints":
            faults.reach("checkpoint: after the rename")
        sync(path)

    safetensors.torch.save_model = half_model
    safetensors.torch.save_file = half_file
    torch.save = half_optimiser
    checkpoints.sync = synced

    remove = shutil.rmtree

    def rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).is_dir():
            name = Path(path).name
            point = "checkpoint: rotation" if name.startswith("checkpoint-") else f"removing {name}"
            faults.reach(point, half=lambda: next(p for p in Path(path).iterdir() if p.is_file()).unlink())
        remove(path, *args, **kwargs)

    shutil.rmtree = rmtree  # type: ignore[assignment]


def _in_models(faults: Faults) -> None:
    import transformers.modeling_utils
    from transformers import PreTrainedTokenizerBase

    from minialbert.runs import files

    save = transformers.modeling_utils.safe_save_file

    def half_weights(tensors: Any, path: str, *args: Any, **kwargs: Any) -> None:
        point = "model: half of the weights"
        faults.reach(point, half=lambda: _half_of(path, lambda: save(tensors, path, *args, **kwargs)))
        save(tensors, path, *args, **kwargs)

    transformers.modeling_utils.safe_save_file = half_weights
    faults.before(PreTrainedTokenizerBase, "save_pretrained", "tokenizer: before")
    faults.before(files, "_put_in_place", "model: before it is in place")
    faults.after(files, "_put_in_place", "model: in place")
    faults.after(files, "_exchange", "model: the old one still beside it")


def _in_prepare(faults: Faults) -> None:
    from minialbert.data import prepare, window_store

    if faults.fault.often:
        prepare.BATCH_DOCUMENTS, prepare.BATCHES_PER_SAVE = 4, 2
    writer = window_store.SplitWriter
    write = writer.write

    def write_half(split: window_store.SplitWriter) -> None:
        def half() -> None:
            write(split)
            for file in split._files:
                file.truncate(max(0, file.tell() - 3))

        faults.reach("windows: half a batch", half=half)
        write(split)

    writer.write = write_half  # type: ignore[method-assign]
    faults.after(writer, "sync", "windows: synced")


def _in_grids(faults: Faults) -> None:
    from minialbert.experiments import pool

    popen = subprocess.Popen

    class Injected(popen):  # type: ignore[type-arg, misc, valid-type]
        """Starts the worker of a grid by this file, so that faults can happen in it too."""

        def __init__(self, command: Any, *args: Any, **kwargs: Any) -> None:
            if isinstance(command, list) and pool.WORKER in command:
                faults.reach("grid: starting a worker")
                first = command.index("-m")
                command = [*command[:first], __file__, "--worker", *command[first + 2 :]]
            super().__init__(command, *args, **kwargs)

    subprocess.Popen = Injected  # type: ignore[misc]
    copy = shutil.copytree

    def copytree(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        result = copy(source, target, *args, **kwargs)
        faults.reach("grid: copying the model", half=lambda: next(Path(target).glob("*.json")).unlink())
        return result

    shutil.copytree = copytree


def main() -> None:
    """Run the command line, or the worker of a grid, with the fault that the environment asks for."""
    fault = Fault(**json.loads(os.environ.get(VARIABLE, "{}")))
    worker = sys.argv[1:2] == ["--worker"]
    if worker != fault.in_worker:
        fault.point = None
        fault.phase = os.devnull if worker else fault.phase
    install(Faults(fault))
    if worker:
        from minialbert.cli import worker as cells

        del sys.argv[1]
        cells.main()
    from minialbert.cli import main as cli

    cli.main()


if __name__ == "__main__":
    main()
