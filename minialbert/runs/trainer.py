"""Transformers' Trainer for runs that may end at any moment: whole checkpoints, exact resume, skipped steps counted."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback

from minialbert.errors import UserError, quoted
from minialbert.recipes.schema import Optimisation
from minialbert.runs.checkpoints import last_whole_checkpoint, new_checkpoint, step_of
from minialbert.runs.device import resolve_precision
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import write_json
from minialbert.runs.fitting import PROGRESS_FILE, Progress, find_misfit
from minialbert.runs.machine import keep_freed_memory, release_freed_memory
from minialbert.runs.muon import MuonAdamW, trained_matrices
from minialbert.runs.noise import layer_matrices, rounding_noise
from minialbert.runs.stopping import GracefulStop, StopRequested, refuse_data_parallel

logger = logging.getLogger(__name__)


class LossMeter:
    """Adds up loss terms over the micro-batches of a step, and over the steps since the last log.

    A step that is skipped leaves no trace in the means.
    """

    def __init__(self) -> None:
        self.tokens = 0.0
        self.steps = 0
        self._sums: dict[str, float] = {}
        self._step: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add a micro-batch's share of the step's terms."""
        for name, value in terms.items():
            value = value.detach()
            self._step[name] = self._step[name] + value if name in self._step else value

    def step_terms(self) -> dict[str, float]:
        """Return the terms of the step under way, as one transfer from the device."""
        if not self._step:
            return {}
        return dict(zip(self._step, torch.stack(list(self._step.values())).tolist(), strict=True))

    def non_finite(self) -> list[str]:
        """Return the terms of the step under way that are not finite; the total only where no other is."""
        names = [name for name, value in self.step_terms().items() if not math.isfinite(value)]
        return [name for name in names if name != "total"] or names

    def end_step(self, tokens: float, *, kept: bool) -> None:
        """Close the step under way, which covered these tokens; only one that changed the model is kept."""
        if kept:
            for name, value in self.step_terms().items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            self.steps += 1
        self.tokens += tokens
        self.drop_step()

    def drop_step(self) -> None:
        """Forget the step under way."""
        self._step = {}

    def means(self, over_processes: Callable[[Sequence[float]], Sequence[float]]) -> dict[str, float]:
        """Return the mean of each term over the steps since the last log, by what sums figures over processes."""
        if not self.steps:
            return {}
        sums = over_processes(list(self._sums.values()))
        return {name: value / self.steps for name, value in zip(self._sums, sums, strict=True)}

    def reset(self) -> None:
        """Start anew after a log."""
        self._sums, self.steps, self.tokens = {}, 0, 0.0

    def state(self) -> dict[str, Any]:
        """Return what `load` takes, as plain data: 64-bit floats survive JSON unchanged."""
        return {"sums": self._sums, "steps": self.steps, "tokens": self.tokens}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._sums = {str(name): float(value) for name, value in state["sums"].items()}
        self.steps, self.tokens = int(state["steps"]), float(state["tokens"])
        self.drop_step()


def share_of_meters(states: Sequence[Mapping[str, Any]], process: int, processes: int) -> Mapping[str, Any]:
    """Return what a process's meter goes on from, of the states of all, perhaps of another number of processes.

    Its own state; where their number has changed, the first takes all sums and the others none.
    """
    if len(states) == processes:
        return states[process]
    sums = {name: sum(state["sums"][name] for state in states) for name in states[0]["sums"]}
    return {**states[0], "sums": sums if process == 0 else dict.fromkeys(sums, 0.0)}


# What Transformers calls as a recipe does.
_ALIKE = (
    "learning_rate", "weight_decay", "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "seed",
    "logging_steps",
)  # fmt: skip


def training_arguments(
    section: Optimisation,
    *,
    output: Path,
    max_steps: int,
    micro_batch_size: int,
    accumulation: int,
    warmup_steps: int,
    **others: Any,
) -> TrainingArguments:
    """Return Transformers' arguments for what a recipe says of length, batch, optimiser and schedule.

    `others` are those for evaluating, saving and loading, which the two kinds of training do differently. Trackers get
    the log from `runs.trackers`, and the bar is that of `runs.progress`.
    """
    precision = resolve_precision(section.precision)
    decay = {"num_decay_steps": max(1, max_steps // 5), "decay_type": "linear"}
    return TrainingArguments(
        output_dir=str(output),
        max_steps=max_steps,
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=accumulation,
        **section.model_dump(include=set(_ALIKE)),
        warmup_steps=warmup_steps,
        # Transformers' "constant" has no warm-up.
        lr_scheduler_type=section.lr_scheduler.replace("constant", "constant_with_warmup"),
        lr_scheduler_kwargs=decay if section.lr_scheduler == "warmup_stable_decay" else None,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.cuda.is_available(),
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        **others,
    )


WEIGHTS_FILE = "model.safetensors"


class ResumableTrainer(Trainer):
    """Trainer whose run can be killed at any moment and goes on as if nothing had happened.

    What a step draws (dropout) depends on seed, step and process alone, so no generator's state has to be kept,
    and a run may stop in the middle of a step or of an evaluation. A checkpoint holds the trained tensors, optimiser
    and schedule, the Trainer's state, and `progress.json`: the loss terms since the last log, the steps skipped,
    whether an evaluation is due, and what a subclass adds.

    A step whose loss or gradient is not finite changes nothing but the schedule; it is logged and counted. More than
    `max_skipped_steps` in a row end the run. `verb` and `section`, for messages, are the command that trains and where
    its settings are in a recipe; `some_weights_rest` where a step may leave trained weights without a gradient.
    With `weight_noise`, "int8" or "int4", a step has one noise on the layers' matrices, see `rounding_noise`.
    `optimizer` is "adamw", or "muon" for the layers' or adapters' matrices, see `MuonAdamW`.
    """

    progress_form: type[Progress] = Progress

    def __init__(
        self,
        *,
        verb: str,
        section: str,
        max_skipped_steps: int = 10,
        callbacks: Sequence[TrainerCallback] | None = None,
        some_weights_rest: bool = False,
        weight_noise: str | None = None,
        optimizer: str = "adamw",
        **kwargs: Any,
    ) -> None:
        args = kwargs["args"]
        if optimizer not in ("adamw", "muon"):
            raise UserError(f"unknown optimizer {quoted(optimizer)}: expected adamw or muon")
        if optimizer == "muon":
            settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2)}
            settings |= {"eps": args.adam_epsilon, "matrices": trained_matrices(kwargs["model"])}
            kwargs["optimizer_cls_and_kwargs"] = (MuonAdamW, settings)
        refuse_data_parallel(args, verb)
        args.ddp_find_unused_parameters = some_weights_rest
        if args.device.type == "cpu":
            keep_freed_memory()
        self.meter = LossMeter()
        self.stop = GracefulStop()
        self.skipped_steps = 0
        self._section = section
        self._max_skipped_steps = max_skipped_steps
        self._weight_noise = weight_noise or ""
        self._noisy = layer_matrices(kwargs["model"]) if weight_noise else []
        self._skipped_in_a_row = 0
        self._gradient_was_finite = True
        self._non_finite = ["loss"]
        self._window_ids: list[Tensor] = []
        self._step_tokens = 0.0
        self._evaluation_is_due = False
        self._evaluated_at = -1
        self._saved_step = 0  # of the checkpoint that this run has written, or goes on from
        self._seconds_before: list[float] = []  # of each session of this run
        self._started = self._clock = time.perf_counter()
        super().__init__(callbacks=[*(callbacks or ()), _Bookkeeping(self)], **kwargs)
        self.loss_is_scaled_for_ga = True  # losses are normalised over the whole optimiser step
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        # While signals still end a process at once: it may wait here for one that has failed before.
        self.accelerator.wait_for_everyone()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals as requests to stop inside the block, before each batch; the model is left without a trace."""
        with self.model.register_forward_pre_hook(self._before_batch), self.stop.listening():
            yield

    def resume_point(self, run: RunDirectory, *, resume: bool) -> str | None:
        """Return the checkpoint to go on from, for `train`, after dropping what the log holds beyond it.

        None is to start at the beginning. The first process has opened the run directory, which all must see.
        """
        self.accelerator.wait_for_everyone()
        tell = self.args.should_save
        checkpoint = None
        if resume:
            checkpoint = last_whole_checkpoint(
                run.checkpoints, tell=tell, find_misfit=lambda path: find_misfit(path, step_of(path), self)
            )
        name = checkpoint.name if checkpoint is not None else None
        if len(set(gather_object([name]))) > 1:
            advice = "give an --output on storage that all machines share"
            raise UserError(f"{run.path} is not the same for all processes: {advice}")
        if self.args.should_save:
            run.rewind_log(step_of(checkpoint) if checkpoint is not None else -1)
            if name is not None:
                logger.info("resuming from %s", name)
        self.accelerator.wait_for_everyone()  # before others read the log
        return str(checkpoint) if checkpoint is not None else None

    def saved_tensors(self, progress: Any) -> dict[str, Mapping[str, Tensor]]:
        """Return what each safetensors file of a checkpoint with such progress holds: names, and tensors like them."""
        return {WEIGHTS_FILE: self.accelerator.unwrap_model(self.model).state_dict()}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as the Trainer does; asked to stop, save what is needed to go on and raise `StopRequested`."""
        self._started = time.perf_counter()
        try:
            result = super().train(*args, **kwargs)
            if 0 < self.state.global_step <= self.skipped_steps:
                raise self._never_finite(f"all {self.skipped_steps} steps")
            if self.stops_here() and self.state.global_step < self.state.max_steps:
                raise StopRequested
            return result
        except BaseException as error:
            try:
                if isinstance(error, StopRequested):
                    self.save_for_resume()
            finally:  # a bar that is not put away would keep the screen
                self.callback_handler.on_train_end(self.args, self.state, self.control)
            raise
        finally:
            now = time.perf_counter()
            self._seconds_before, self._started = [*self._seconds_before, now - self._started], now

    def rehearse(self) -> Iterator[tuple[float, float]]:
        """Yield the seconds of a token in training and in a forward pass, after each batch; none changes anything.

        Once there are others, the first does not count: it only warms up. All processes have to come here. What the
        optimiser moves is put back.
        """
        batches = itertools.chain.from_iterable(itertools.repeat(self.get_train_dataloader()))
        model = self.accelerator.prepare_model(self.model)
        optimizer = self.create_optimizer()
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        before = [weight.detach().clone() for weight in weights]
        spent: list[tuple[float, float, float]] = []
        try:
            while True:
                (batch,), counts = self.get_batch_samples(batches, 1, self.args.device)
                started = _now()
                self.training_step(model, batch, counts)
                learnt = _now()
                optimizer.step()
                stepped = _now()
                model.zero_grad()
                with torch.no_grad():
                    torch._foreach_copy_(weights, before)
                    trained = learnt - started + (stepped - learnt) / self.args.gradient_accumulation_steps
                    started = _now()
                    self.compute_loss(model, self._prepare_inputs(batch), num_items_in_batch=counts)
                spent.append((self._step_tokens, trained, _now() - started))
                tokens, *times = (sum(part) for part in zip(*(spent[1:] or spent), strict=True))
                training, forward = self.sum_over_processes(times)
                yield training / tokens / self.args.world_size, forward / tokens / self.args.world_size
        finally:
            self.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    @property
    def times(self) -> dict[str, Any]:
        """Seconds in `train` for a record: the whole, and of each session where the run was resumed.

        A session that was killed counts up to the checkpoint that the next one went on from.
        """
        seconds = [round(each, 1) for each in self._seconds_before]
        return {"wall_seconds": round(sum(seconds), 1)} | (
            {"session_seconds": seconds} if seconds[1:] else {}
        )

    # One optimiser step

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, Any]:
        """Begin an optimiser step: return its micro-batches, and what a subclass counts in them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._window_ids = []
        self._gradient_was_finite = True
        self.meter.drop_step()
        torch.manual_seed(_step_seed(self.args.seed, self.state.global_step, self.args.process_index))
        return batches, None

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss of a micro-batch after its backward pass, with noise on the weights where asked for."""
        seed = _step_seed(self.args.seed, self.state.global_step, -1)  # no process: for all the same
        with rounding_noise(self._noisy, self._weight_noise, seed):
            return super().training_step(*args, **kwargs)

    def sum_over_processes(self, values: Sequence[float]) -> list[float]:
        """Return figures summed over the processes; with several, they agree here on whether to stop."""
        if self.args.world_size == 1:
            return list(values)
        device = "cpu" if self.args.device.type == "mps" else self.args.device
        mine = torch.tensor([*values, float(self.stop.requested)], dtype=torch.float64, device=device)
        *sums, asked = self.accelerator.reduce(mine, reduction="sum").tolist()
        self.stop.agreed = self.stop.agreed or asked > 0
        return sums

    def stops_here(self) -> bool:
        """Return whether the run was asked to stop, and all its processes know."""
        return self.stop.requested if self.args.world_size == 1 else self.stop.agreed

    def check_for_stop(self) -> None:
        """Stop here if it was asked for; all processes must come here, and stop together."""
        self.sum_over_processes([])
        if self.stops_here():
            raise StopRequested

    def _before_batch(self, module: nn.Module, *_: Any) -> None:
        if self.args.world_size == 1 or not module.training:  # several end their step first
            self.check_for_stop()

    def note_terms(
        self, terms: Mapping[str, Tensor], total: Tensor, window_ids: Tensor | None = None
    ) -> Tensor:
        """Return the total to differentiate, after adding a micro-batch's terms, the total among them, to the meter.

        A total that is not finite is made NaN, and with it every gradient, so that all processes skip the step,
        whichever of them saw it; `window_ids` says which windows the batch holds, to be logged with such a step.
        """
        self.meter.add(terms)
        if window_ids is not None:
            self._window_ids.append(window_ids)
        return total * torch.where(torch.isfinite(total.detach()), 1.0, math.nan)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """Return the optimiser, which leaves weights and moments alone where a gradient is not finite."""
        created = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if created:
            optimizer.register_step_pre_hook(self._drop_non_finite)
        return optimizer

    def _drop_non_finite(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        weights = (weight for group in optimizer.param_groups for weight in group["params"])
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        self._gradient_was_finite = bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
        if not self._gradient_was_finite:
            optimizer.zero_grad(set_to_none=True)  # a parameter without gradient is not updated, nor decayed

    def end_step(self) -> None:
        """Close the books of the optimiser step that just ended; one skipped step too many ends the run."""
        skipped = not self._gradient_was_finite or self.accelerator.optimizer_step_was_skipped
        if not skipped:
            self._skipped_in_a_row = 0
            self.meter.end_step(self._step_tokens, kept=True)
            return
        shares = gather_object([(self.meter.non_finite(), [ids.tolist() for ids in self._window_ids])])
        terms = sorted({name for names, _ in shares for name in names}) or ["gradient"]
        windows = sorted({window for _, batches in shares for ids in batches for window in ids})
        self.meter.end_step(self._step_tokens, kept=False)
        self.skipped_steps += 1
        self._skipped_in_a_row += 1
        log_is_due = self.control.should_log  # which any log takes back
        self.log({"skipped_steps": self.skipped_steps, "non_finite": terms, "window_ids": windows})  # type: ignore[dict-item]
        self.control.should_log = log_is_due
        self._non_finite = terms
        if self._skipped_in_a_row > self._max_skipped_steps:
            limit = f"{self._section}.max_skipped_steps is {self._max_skipped_steps}"
            raise self._never_finite(f"{self._skipped_in_a_row} steps in a row, and {limit}")

    def _never_finite(self, when: str) -> UserError:
        what = f"loss or gradient was not finite ({', '.join(self._non_finite)}) in {when}"
        advice = f"lower {self._section}.learning_rate, or train in bf16 or fp32 rather than fp16"
        windows = "log.jsonl names the windows of these steps"
        return UserError(f"step {self.state.global_step}: {what}: {advice}; {windows}")

    # Evaluation, once per step at which it is due

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure and log what a subclass measures; a second call at the same step does nothing."""
        if self._evaluated_at == self.state.global_step:
            return {}
        self._evaluation_is_due = True
        started = time.perf_counter()
        metrics = self.measure_and_log()
        self._clock += time.perf_counter() - started  # throughput is that of training alone
        self._evaluation_is_due, self._evaluated_at = False, self.state.global_step
        return metrics

    def measure_and_log(self) -> dict[str, float]:
        """Return the figures of an evaluation, after logging them."""
        return {}

    # What is reported

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of every term since the last log, and tokens per second, to what the Trainer logs."""
        if "loss" in logs:
            means = self.meter.means(self.sum_over_processes)
            if not means:  # every step was skipped
                return
            logs |= {f"loss_{name}": value for name, value in means.items()}
            logs["loss"] = logs.pop("loss_total")
            logs["tokens_per_second"] = self.meter.tokens / max(time.perf_counter() - self._clock, 1e-9)
            if not math.isfinite(logs.get("grad_norm", 0.0)):  # of a last step that was skipped
                del logs["grad_norm"]
            if self.args.device.type == "cpu":
                release_freed_memory()
            self.meter.reset()
            self._clock = time.perf_counter()
        super().log(logs, start_time)

    # Checkpoints

    def save_for_resume(self) -> None:
        """Write a checkpoint of the last whole step where there is none yet, and say so."""
        step, total = self.state.global_step, self.state.max_steps
        if step:
            self._save_checkpoint(self.model, None)
        if self.args.should_save:
            saved = "a checkpoint is saved" if step else "nothing is lost"
            logger.info("stopped after step %d of %d; %s", step, total, saved)

    def progress(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside tensors, as plain data; a subclass adds its own.

        All processes must come here: each has its share of the sums.
        """
        return {
            "meters": gather_object([self.meter.state()]),
            "skipped_steps": self.skipped_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "evaluation_is_due": self._evaluation_is_due,
            "evaluated_at": self._evaluated_at,
            "session_seconds": [*self._seconds_before, time.perf_counter() - self._started],
        }

    def restore_progress(self, progress: Mapping[str, Any]) -> None:
        """Go on from what `progress` returned."""
        self.meter.load(share_of_meters(progress["meters"], self.args.process_index, self.args.world_size))
        self.skipped_steps = int(progress["skipped_steps"])
        self._skipped_in_a_row = int(progress["skipped_in_a_row"])
        self._evaluation_is_due = bool(progress["evaluation_is_due"])
        self._evaluated_at = int(progress["evaluated_at"])
        seconds = progress.get("session_seconds") or [
            progress.get("seconds", 0.0)
        ]  # one sum in checkpoints of before
        self._seconds_before = [float(each) for each in seconds]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        root, progress, step = Path(self.args.output_dir), self.progress(), self.state.global_step
        if self.args.should_save and step != self._saved_step:
            with new_checkpoint(root, step, keep=self.args.save_total_limit) as folder:
                self._save(str(folder))
                self._save_optimizer_and_scheduler(str(folder))
                self._save_scaler(str(folder))
                state = copy.copy(self.state)
                state.log_history = []  # log.jsonl has it
                state.save_to_json(str(folder / TRAINER_STATE_NAME))
                write_json(folder / PROGRESS_FILE, progress, indent=None)
        self._saved_step = step
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        # The Trainer would pickle its arguments beside the weights, and cannot store tied weights of a module.
        folder = Path(output_dir or self.args.output_dir)
        safetensors.torch.save_model(self.accelerator.unwrap_model(self.model), str(folder / WEIGHTS_FILE))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        target = self.accelerator.unwrap_model(model if model is not None else self.model)
        safetensors.torch.load_model(target, str(folder / WEIGHTS_FILE))
        self.restore_progress(json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8")))
        self._saved_step = step_of(folder)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save nothing: what a step draws depends on seed, step and process alone."""

    def _load_scaler(self, checkpoint: str | None) -> None:
        if self.accelerator.scaler is not None:  # on a machine that trains in fp16 too
            super()._load_scaler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Restore nothing, see `_save_rng_state`."""

    def begin_training(self) -> None:
        """Start the clock; a resumed run first makes up for an evaluation that was cut off."""
        self._clock = time.perf_counter()
        if self._evaluation_is_due:
            self.evaluate()


class _Bookkeeping(TrainerCallback):
    """Tells the trainer where it is."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.begin_training()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.stops_here() and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        self._trainer.end_step()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _step_seed(seed: int, step: int, process: int) -> int:
    digest = hashlib.blake2b(f"training step {seed} {step} {process}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # torch takes 63 bits
