"""The teacher's answers on disk: a run of several epochs asks it for each window once.

One file per window holds what the objective compares, in fp16 and without padding: hidden states of the
matched layers, their attention rows, and logits at the predicted positions. So a cached window is good for
any batch. It also holds the ids that the teacher saw, and a window whose ids differ is refused: with a
cache, masks must not vary over epochs (`FixedMasks`).

Symbols: B batch, T tokens, H heads, D hidden size, V vocabulary, M predicted positions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import Dataset

from minialbert.data.masking import ShuffledWindows
from minialbert.errors import UserError, one_line
from minialbert.method.encoders import Teacher
from minialbert.method.objective import DistillationObjective, EncoderView, Request
from minialbert.runs.files import whole_file, writing
from minialbert.runs.progress import size

logger = logging.getLogger(__name__)

FORMAT = "minialbert-teacher-cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
WINDOWS_PER_FOLDER = 1000
# What stands for log 0: a masked key's log-probability is -3e38, and fp16 ends at -65504.
LOG_ZERO = -1e4
# Part of the free disk space that a cache may fill.
_USABLE = 0.9

Entry = dict[str, Tensor]


class CachedTeacherView:
    """The teacher's view of a batch, from disk where all of its windows are there.

    Otherwise the teacher is asked for the whole batch, and the missing windows are written. Either way the
    numbers returned are those of the files, rounded to fp16, so that a resumed run sees what an uninterrupted
    one sees. The directory may be that of another run of the same teacher, objective, layers and masks.
    `masking` is whatever the masks and ids of a window depend on (seed, rate, tokenizer, …), as plain data;
    `num_windows`, those that the whole run will ask for, tells the size of the whole cache. Raises UserError
    if the teacher is to run with dropout, or the directory holds another cache.
    """

    def __init__(
        self,
        teacher: Teacher,
        directory: str | Path,
        *,
        objective: DistillationObjective,
        layers: Sequence[int],
        masking: Mapping[str, object],
        num_windows: int,
    ) -> None:
        if objective.teacher_dropout:
            raise UserError(
                "training.cache_teacher keeps one answer per window, but distill.teacher_dropout asks for "
                "another one each time: set one of them to false"
            )
        self.teacher = teacher
        self.directory = Path(directory)
        self.num_windows = num_windows
        matched = sorted({layer for layer in layers if layer})
        self.hidden_layers = tuple([0, *matched] if objective.embedding_weight > 0 else matched)
        self.attention_layers = tuple(sorted(set(objective.teacher_request(layers).attention_layers)))
        self.with_logits = objective.output_weight > 0 and teacher.has_mlm_head
        self._size_checked = self._damage_told = False
        identity = {
            "teacher": teacher_fingerprint(teacher), "objective": objective.to_dict(), "layers": list(layers),
            "masking": dict(masking),
        }  # fmt: skip
        self._claim_directory(json.loads(json.dumps(identity)))

    def __call__(self, batch: Mapping[str, Tensor], request: Request | None = None) -> EncoderView:
        """Return the teacher's view of a batch with "window_ids" (B,), without gradients, as `Teacher.view` does.

        It is in fp32, with the hidden states of the matched layers only; what lies beyond a window's last token is
        zero (-1e4 in rows of log-probabilities). Raises UserError if dropout is asked for, a window was cached with
        other ids or masks, or the disk is too small.
        """
        asked = request or Request()
        if asked.after_dropout:
            raise UserError("a teacher cache cannot answer for a teacher with dropout")
        positions = asked.positions
        uncached = set(asked.attention_layers) - set(self.attention_layers)
        if uncached or (positions is not None and self.teacher.has_mlm_head and not self.with_logits):
            return self.teacher.view(batch, asked)
        counts = None if positions is None or not self.with_logits else positions.sum(1).tolist()
        ids, valid = batch["input_ids"].cpu().to(torch.int32), batch["attention_mask"].bool().cpu()
        inputs = [row[kept] for row, kept in zip(ids, valid, strict=True)]
        window_ids = [int(window_id) for window_id in batch["window_ids"].tolist()]
        expected = zip(window_ids, inputs, counts or [None] * len(inputs), strict=True)
        found = [self._read(*window) for window in expected]
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            fresh = self._ask_teacher(batch, inputs, positions)
            for window_id, entry, new in zip(window_ids, found, fresh, strict=True):
                if entry is None and ("logits" in new) == self.with_logits:
                    self._write(window_id, new)
            entries = [new if entry is None else entry for entry, new in zip(found, fresh, strict=True)]
        wanted = [layer for layer in self.attention_layers if layer in set(asked.attention_layers)]
        return self._assemble(entries, batch["attention_mask"], wanted, with_logits=counts is not None)

    def _ask_teacher(
        self, batch: Mapping[str, Tensor], inputs: list[Tensor], positions: Tensor | None
    ) -> list[Entry]:
        """Return one entry per window, as it goes into its file."""
        asked = Request(positions if self.with_logits else None, self.attention_layers)
        view = self.teacher.view(batch, asked)
        rows_name = "log_rows" if view.log_rows else "rows"
        logits: Sequence[Tensor] = ()
        if view.logits is not None and positions is not None:
            logits = view.logits.split(positions.sum(1).tolist())
        valid = batch["attention_mask"].bool()
        entries = []
        for row, (input_ids, kept) in enumerate(zip(inputs, valid, strict=True)):
            entry = {"input_ids": input_ids} | ({"logits": _half(logits[row])} if logits else {})
            for layer in self.hidden_layers:
                entry[f"hidden.{layer}"] = _half(view.hidden_states[layer][row, kept])
            for layer in self.attention_layers:
                rows = view.attention_rows[layer][row][:, kept][:, :, kept]
                entry[f"{rows_name}.{layer}"] = _half(rows.clamp_min(LOG_ZERO))
            entries.append(entry)
        return entries

    def _assemble(
        self,
        entries: list[Entry],
        attention_mask: Tensor,
        attention_layers: Sequence[int],
        *,
        with_logits: bool,
    ) -> EncoderView:
        """Return the view of a batch from its windows, each put where its tokens are in the batch."""
        (batch, length), device = attention_mask.shape, attention_mask.device
        places = [row.nonzero().flatten() for row in attention_mask.cpu()]
        log_rows = not attention_layers or f"log_rows.{attention_layers[0]}" in entries[0]
        hidden_states, attention_rows = {}, {}
        for layer in self.hidden_layers:
            states = [entry[f"hidden.{layer}"] for entry in entries]
            padded = torch.zeros(batch, length, states[0].shape[-1])
            for row, values in enumerate(states):
                padded[row, places[row]] = values.float()
            hidden_states[layer] = padded.to(device)
        for layer in attention_layers:
            maps = [entry[f"{'log_rows' if log_rows else 'rows'}.{layer}"] for entry in entries]
            padded = torch.full((batch, len(maps[0]), length, length), LOG_ZERO if log_rows else 0.0)
            for row, values in enumerate(maps):
                # Rounded rows do not quite sum to one; a divergence from them would not be zero at equality.
                rows = values.float().log_softmax(-1) if log_rows else values
                padded[row][:, places[row][:, None], places[row]] = rows.float()
            attention_rows[layer] = padded.to(device)
        logits = None
        if with_logits:
            logits = torch.cat([entry["logits"] for entry in entries]).float().to(device)
        return EncoderView(hidden_states, attention_rows, log_rows=log_rows, logits=logits)

    # Files

    def _path(self, window_id: int) -> Path:
        return self.directory / str(window_id // WINDOWS_PER_FOLDER) / f"{window_id}.safetensors"

    def _read(self, window_id: int, input_ids: Tensor, num_logits: int | None) -> Entry | None:
        """Return a window's entry, or None where there is none (that can be used)."""
        path = self._path(window_id)
        try:
            entry = safetensors.torch.load(path.read_bytes())
            same_input = torch.equal(entry["input_ids"], input_ids)
            problem = self._problem(entry, num_logits) if same_input else None
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            problem, same_input = one_line(error), True
        if problem is not None:
            if not self._damage_told:
                line = "%s is damaged (%s) and computed again, as any other such file will be"
                logger.warning(line, path, problem)
            self._damage_told = True
            return None
        if not same_input:
            raise UserError(
                f"{path} was made with other tokens or masks for window {window_id}: masks must not vary "
                f"over epochs with a teacher cache; if the data were prepared anew, delete {self.directory}"
            )
        return entry

    def _problem(self, entry: Entry, num_logits: int | None) -> str | None:
        """Return what an entry lacks, or None."""
        tokens, width, heads = len(entry["input_ids"]), self.teacher.hidden_size, self.teacher.num_heads
        shapes: dict[str, tuple[int, ...]] = {
            f"hidden.{layer}": (tokens, width) for layer in self.hidden_layers
        }
        shapes |= {f"log_rows.{layer}": (heads, tokens, tokens) for layer in self.attention_layers}
        if num_logits is not None:
            shapes["logits"] = (num_logits, int(self.teacher.model.config.vocab_size))
        for name, shape in shapes.items():
            names = dict.fromkeys((name, name.removeprefix("log_")))
            found = [tuple(entry[one].shape) for one in names if one in entry]
            if found != [shape]:
                return f"{name} has shape {found[0] if found else None}, expected {shape}"
        return None

    def _write(self, window_id: int, entry: Entry) -> None:
        content = safetensors.torch.save(entry)
        if not self._size_checked:
            self._check_size(len(content))
            self._size_checked = True
        path = self._path(window_id)
        with writing(path, advice="make room, or set training.cache_teacher=false"):
            _write_atomically(path, content)

    def _check_size(self, window_bytes: int) -> None:
        """Refuse a cache that the disk has no room for."""
        stored = sum(1 for _ in self.directory.glob("*/*.safetensors"))
        needed = window_bytes * max(self.num_windows - stored, 1)
        usable = int(shutil.disk_usage(self.directory).free * _USABLE)
        whole = (
            f"{size(window_bytes * self.num_windows)} for {self.num_windows:,} windows ({stored:,} stored)"
        )
        logger.info("teacher cache: about %s, %s usable on this disk", whole, size(usable))
        if needed > usable:
            raise UserError(
                f"the teacher cache would take {size(needed)} more for {self.num_windows:,} windows "
                f"({size(window_bytes)} each), but {self.directory} has room for {size(usable)}: "
                "free some disk space, take fewer windows, or set training.cache_teacher=false"
            )

    def _claim_directory(self, identity: dict[str, Any]) -> None:
        """Write the manifest, or check that the one that is there tells of the same cache."""
        path = self.directory / MANIFEST
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **identity}
        try:
            if not path.exists():
                if any(self.directory.glob("*/*.safetensors")):
                    raise UserError(
                        f"{self.directory} holds files but no {MANIFEST}: delete it, and start anew"
                    )
                _write_atomically(path, json.dumps(manifest, indent=2).encode())
            found = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be written or read ({error.strerror or error})") from error
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path} is damaged ({error}): delete {self.directory}, and start anew"
            ) from error
        if found != manifest:
            keys = [key for key in manifest if not isinstance(found, dict) or found.get(key) != manifest[key]]
            raise UserError(
                f"{self.directory} holds a cache with another {', '.join(keys) or 'content'}: delete it, or "
                "give another output directory"
            )


class FixedMasks(Dataset[dict[str, Any]]):
    """Shuffled windows with the masks of epoch 0 in every epoch; their order still varies."""

    def __init__(self, windows: ShuffledWindows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return sample `index` with "epoch" 0."""
        return {**self.windows[index], "epoch": 0}


def teacher_fingerprint(teacher: Teacher) -> str:
    """Return a sha256 over names and values of the parameters that give the teacher's view."""
    # Without a masked-LM head of its own, the one on top is random and differs each time.
    model = teacher.model if teacher.has_mlm_head else teacher.model.base_model
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)};".encode())
        values = parameter.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(values.numpy()))
    return digest.hexdigest()


def _half(values: Tensor) -> Tensor:
    limit = torch.finfo(torch.float16).max
    return values.detach().float().clamp(-limit, limit).to(torch.float16).cpu().contiguous()


def _write_atomically(path: Path, content: bytes) -> None:
    # Several processes may write the same window, with the same content.
    with whole_file(path, "xb", by=f".{os.getpid()}", synced=False) as file:
        file.write(content)
