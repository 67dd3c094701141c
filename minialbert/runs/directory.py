"""A run directory: resolved recipe, log, checkpoints, model, and one JSON record of the result."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import yaml

from minialbert.errors import FinishedRunError, UserError, failing_as, listed, quoted, shown
from minialbert.recipes.load import AnyRecipe, apply_overrides, dump_recipe, load_recipe
from minialbert.recipes.schema import RecipeBase, learned_settings
from minialbert.runs.checkpoints import has_known_data
from minialbert.runs.device import resolve_precision
from minialbert.runs.files import (
    check_folder,
    check_own,
    sole_user,
    to_json,
    write_atomically,
    write_json,
    writing,
)
from minialbert.runs.stopping import rank

logger = logging.getLogger(__name__)

# A worker notices within 20 s that its driver is gone.
_PATIENCE = 30.0


class RunDirectory:
    """The files of one run, each under a fixed name."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.data = self.path / "data.json"
        self.log = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.teacher_cache = self.path / "teacher-cache"
        self.teacher_labels = self.path / "teacher-labels"
        self.tracking = self.path / "tracking"
        self.model = self.path / "model"
        self.adapters = self.path / "adapters"
        self.attention = self.path / "attention.json"
        self.result = self.path / "result.json"
        self.page = self.path / "report.html"

    @property
    def _own(self) -> tuple[Path, ...]:
        # In the order in which they are removed: as long as there is something to resume, what it belongs to is there.
        return (
            self.checkpoints, self.page, self.result, *self._left_over(), self.attention, self.model, self.adapters,
            self.teacher_cache, self.teacher_labels, self.tracking, self.log, self.data, self.recipe,
        )  # fmt: skip

    def _left_over(self) -> list[Path]:
        """Return what was left half-written by a run that was killed."""
        files = (self.log, self.data, self.recipe, self.attention, self.result, self.page)
        folders = [path for name in ("model", "adapters") for path in self.path.glob(f".{name}.*")]
        return folders + [self.path / f".{file.name}.partial" for file in files]

    @contextmanager
    def alone(self, *, resume: bool = False) -> Iterator[None]:
        """Keep other runs out of the directory, which is created; the processes of one run are as one.

        One that resumes waits for a run that is about to end, such as that of a grid whose driver was killed.
        """
        patience = _PATIENCE if resume else 0.0
        with sole_user(self.path, "run", patience=patience) if rank() == 0 else nullcontext():
            yield

    def open(
        self,
        recipe: RecipeBase,
        *,
        data: dict[str, Any] | None = None,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Create the directory, or take an existing one over; the resolved recipe is written to `recipe.yaml`.

        The data, written to `data.json`, tell what is read from others: "folders" of windows, and by name whatever
        else, each a dictionary of fingerprints, None where there is none. To resume goes on with a run of the same
        recipe and data, and starts anew without one; files that no run writes are never touched.
        """
        self.make_room(resume=resume, overwrite=overwrite)
        with writing(self.path, advice=None):
            if resume:
                self._check_whole()
                if self.recipe.is_file():
                    check_same_recipe(self.path, load_recipe(str(self.recipe), type(recipe)), recipe)
                unknown = self.check_same_data(data or {})
                if unknown and has_known_data(self.checkpoints) is not None:
                    tell_unchecked(self.path, unknown)
                if not unknown:
                    data = None  # what is there says it all
                elif self.data.is_file():
                    data = _with_known(self._read_data(), data or {})
                _remove(self._left_over())
            write_atomically(self.recipe, dump_recipe(recipe))
            if data is not None:
                write_json(self.data, data)

    def check_room(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a directory with files in it, unless to go on with a run or to replace it; nothing is touched."""
        if resume and overwrite:
            raise UserError(
                "--resume and --overwrite exclude each other: resume keeps what overwrite removes"
            )
        advice = "give --resume to go on with the run in it, --overwrite to replace it, or another --output"
        check_folder(self.path, "run", overwrite=overwrite or resume, advice=advice)

    def make_room(self, *, resume: bool, overwrite: bool) -> None:
        """Refuse a directory that may not be written to; remove what an earlier run left, if it is to be replaced."""
        self.check_room(resume=resume, overwrite=overwrite)
        folders = (self.checkpoints, self.teacher_cache, self.teacher_labels)
        with writing(self.path, advice=None):
            if overwrite:
                _remove(self._own)
            check_own(*self._own, *(path for folder in folders for path in folder.glob("*")))
            for folder in (*folders, self.tracking, self.model, self.adapters):
                check_folder(folder, "run", overwrite=True)

    def refuse_finished(self, *files: Path) -> None:
        """Refuse to resume a run that has its record, and all of some other files."""
        if all(path.exists() for path in (self.result, *files)):
            raise FinishedRunError(
                f"{self.path} holds a finished run: nothing is left to resume; --overwrite starts it anew"
            )

    def as_begun(self, recipe: AnyRecipe, section: str, *keys: str) -> AnyRecipe | None:
        """Return a recipe with what the run in the directory has settled on this machine; None where there is none.

        That is what "auto" means for its precision, a learning rate that is left open, and the values of some keys.
        """
        if not self.recipe.is_file():
            return None
        begun = getattr(load_recipe(str(self.recipe), type(recipe)), section)
        settled = {key: getattr(begun, key) for key in keys}
        if getattr(recipe, section).precision == "auto":
            settled["precision"] = resolve_precision(begun.precision)
        if getattr(recipe, section).learning_rate is None:
            settled["learning_rate"] = begun.learning_rate
        return apply_overrides(recipe, {f"{section}.{key}": value for key, value in settled.items()})

    def _check_whole(self) -> None:
        """Refuse checkpoints without the files that say what they belong to."""
        known = has_known_data(self.checkpoints)
        for file in () if known is None else (self.recipe, self.data) if known else (self.recipe,):
            if not file.is_file():
                advice = "put it back, or start the run anew with --overwrite"
                raise UserError(f"{file} is missing; it identifies the checkpoints: {advice}")

    def check_same_data(
        self, data: Mapping[str, Any], *, advice: str = "give the same --data and models, or another --output"
    ) -> list[str]:
        """Return what of the data has no fingerprint now or from before, by name; refuse other data than the run's."""
        if not self.data.is_file():
            return list(data)
        before = self._read_data()
        if data and (differences := data_differences(before, data)):
            raise UserError(f"{self.path} holds a run on other data ({differences}): {advice}")
        return [name for name, old, new in _parts(before, data) if any(_gap(old, new, key) for key in new)]

    def _read_data(self) -> Any:
        advice = "start the run anew with --overwrite"
        with failing_as(f"{self.data} is damaged", (ValueError, RecursionError), advice):
            return json.loads(self.data.read_text(encoding="utf-8"))

    def append_log(self, record: dict[str, Any]) -> None:
        """Add one line to `log.jsonl`, and wait until it is on the disk."""
        check_own(self.log)
        with writing(self.log), self.log.open("a", encoding="utf-8") as file:
            file.write(to_json(record, indent=None, where=self.log) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def rewind_log(self, step: int) -> None:
        """Drop log records past a step: a resumed run writes them again."""
        if not self.log.is_file():
            return
        kept = ""
        for line in self.log.read_text(encoding="utf-8").splitlines():
            # Some line was being written when the run was killed, or is none that a run writes.
            with suppress(ValueError, TypeError, AttributeError, RecursionError):
                kept += f"{line}\n" if json.loads(line).get("step", 0) <= step else ""
        with writing(self.log):
            write_atomically(self.log, kept)

    def read_log(self) -> list[dict[str, Any]]:
        """Return all log records."""
        if not self.log.is_file():
            return []
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


def tell_unchecked(folder: Path, names: Iterable[str]) -> None:
    """Say what of the data of a folder's runs could not be compared."""
    unsure = "it could not be checked that nothing has changed since it began"
    logger.warning("%s: no fingerprint of %s to compare: %s", folder, listed(names), unsure)


def data_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return how what a run reads differs from what it was, in one line for a message; empty if it does not."""
    folders = before.get("folders", None if "folders" in now else []) if isinstance(before, Mapping) else None
    if not isinstance(folders, list) or not all(isinstance(folder, dict) for folder in folders):
        return "what the run says of its windows is damaged"
    now = {"folders": [], **now}
    old, new = ([folder.get("fingerprint") for folder in side] for side in (folders, now["folders"]))
    if old == new:
        changed = [
            f"{name}: {key} {_short(was[key])}, now {_short(value)}"
            for name, was, part in _parts(before, now)
            for key, value in part.items()
            if key != "name" and not _gap(was, part, key) and was[key] != value
        ]
        return "; ".join(changed[:3])
    if len(old) != len(new):
        return f"{_number(folders)}, now {_number(now['folders'])}"
    if sorted(map(str, old)) == sorted(map(str, new)):
        return f"the same folders in another order: {_names(folders)}, now {_names(now['folders'])}"
    place = next(place for place, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1])
    return f"{_folder(folders[place])}, now {_folder(now['folders'][place])}"


def _parts(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], dict[str, Any]]]:
    """Yield the name of each thing that is read, what was said of it, and what is said now."""
    for name, part in now.items():
        if name == "folders":
            folders = before.get(name, [])
            yield from ((f"windows {new['name']}", old, new) for old, new in zip(folders, part, strict=True))
        else:
            old = before.get(name)
            yield name, old if isinstance(old, Mapping) else {}, part


def _with_known(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is read now, with the fingerprints from before of what has none now."""
    known = copy.deepcopy(dict(now))
    for _, old, new in _parts(before, known):
        new |= {key: old.get(key) for key in new if new[key] is None}
    return known


def _gap(old: Mapping[str, Any], new: Mapping[str, Any], key: str) -> bool:
    return old.get(key) is None or new[key] is None


def _short(value: object) -> str:
    # Enough of a fingerprint; counts and names as they are.
    return listed(value) if isinstance(value, list) else shown(value, 12)


def check_same_recipe(
    folder: Path,
    before: RecipeBase,
    now: RecipeBase,
    *,
    advice: str = "Resume with the same settings, give another --output, or remove that folder to begin anew",
) -> None:
    """Refuse to go on in a folder with what was begun by a recipe that differs in more than where its logs go.

    The recipe there is read with its schema: keys that are newer than it have their defaults.
    """
    old, new = learned_settings(before), learned_settings(now)
    for side in (old, new):
        side |= {key: resolve_precision(value) for key, value in side.items() if key.endswith(".precision")}
    different = {key.rpartition(".")[2]: new[key] for key in new if new[key] != old[key]}
    if different:
        lines = [" ".join(yaml.safe_dump({key: value}).split()) for key, value in different.items()]
        raise UserError(
            f"{folder} holds a run of another recipe; different: {'; '.join(lines[:5])}. {advice}"
        )


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _number(folders: Sequence[Mapping[str, Any]]) -> str:
    return f"{len(folders)} folder{'s' * (len(folders) != 1)} ({_names(folders)})"


def _names(folders: Sequence[Mapping[str, Any]]) -> str:
    return listed(folder.get("name") for folder in folders)


def _folder(folder: Mapping[str, Any]) -> str:
    name, fingerprint = shown(folder.get("name")), shown(str(folder.get("fingerprint"))[:12])
    return f"{name} ({quoted(folder.get('windows'))} windows, fingerprint {fingerprint})"
