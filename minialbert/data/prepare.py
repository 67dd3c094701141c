"""Documents become token windows on disk.

While `prepare` runs, `progress.json` says how far the other files of the folder can be trusted; a call that
was killed goes on from there. `window_store.py` describes, writes and reads the folder.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

from minialbert.data.corpora import (
    Corpus,
    Document,
    DocumentSeparator,
    Source,
    by_row,
    corpus_entries,
    count_kinds,
    find_sources,
    read_documents,
)
from minialbert.data.text_streams import ReadStats
from minialbert.data.tokenizers import encode_batches, load_tokenizer, serialized_backend
from minialbert.data.window_store import (
    FORMAT,
    FORMAT_VERSION,
    HALF_WRITTEN,
    MANIFEST,
    PROGRESS,
    SPLITS,
    TOKENIZER,
    Plan,
    SourceRecord,
    Split,
    SplitCounts,
    SplitWriter,
    TokenizerRecord,
    WindowOptions,
    WindowsManifest,
    choose_windows,
    hash_data,
    is_held_out,
    own_files,
    read_json,
    remove_own_files,
)
from minialbert.errors import UserError, failing_as, quoted
from minialbert.recipes.load import load_recipe
from minialbert.recipes.schema import Recipe
from minialbert.runs.files import check_own, sha256_of, sole_user, sync, write_json, writing
from minialbert.runs.machine import installed_versions, usable_cores
from minialbert.runs.progress import progress_bar, size, speaking
from minialbert.runs.results import Result, output_folder
from minialbert.runs.untrusted import record_from_plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

BATCH_CHARACTERS = 500_000
BATCH_DOCUMENTS = 2_000
BATCHES_PER_SAVE = 8
_PARALLEL_FROM_BYTES = 8_000_000  # below, starting the processes takes longer than the work
_MAX_DEFAULT_WORKERS = 16
_READ_ONCE = "texts in memory, read once"


@dataclass(frozen=True, repr=False)
class Windows(Result):
    """Prepared windows: `path` is their folder, `record` their manifest as plain values.

    Attributes:
        manifest: what the folder says of itself.
    """

    manifest: WindowsManifest | None = None


def prepare(
    corpus: Corpus | None = None,
    tokenizer: str | Path | PreTrainedTokenizerFast | None = None,
    output: str | Path | None = None,
    *,
    recipe: str | Path | Recipe = "default",
    progress: bool = True,
    **options: Any,  # of `WindowOptions`, by name
) -> Windows:
    """Cut a corpus into token windows on disk.

    Examples:
        >>> texts = ["The king was small.", "He had one large house by the river."] * 30
        >>> windows = minialbert.prepare(texts, "bert-base-uncased", "windows", window_length=64, overlap=32)
        >>> sorted(windows.manifest.splits)
        ['held_out', 'train']

    Args:
        corpus: files, directories, globs, hub data sets; texts, or dictionaries with a field for the text, in a list or
            from an iterator; a data set of the `datasets` library, a pandas frame; or a list of such. Default: that of
            the recipe.
        tokenizer: the teacher's fast tokenizer, its directory or hub id. Default: that of the recipe.
        output: the folder to write. Default: a temporary one, which the log names.
        recipe: whose data settings are the defaults.
        progress: show a bar.
        **options: fields of `WindowOptions`, as in `window_length=128`, and `num_workers` and `overwrite` of
            `make_windows`.

    Returns:
        The folder and its manifest, which `distill` takes as its data.

    Raises:
        UserError: if there is no corpus or tokenizer, an option is out of range, a text cannot be read, or the folder
            holds other files.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    known = {"num_workers", "overwrite", *(field.name for field in fields(WindowOptions))}
    if unknown := sorted(set(options) - known):
        raise UserError(f"prepare has no option {unknown[0]}; it has {', '.join(sorted(known))}")
    chosen = recipe_options(loaded) | options
    # An entry of the recipe's corpus is a place, never a text.
    places, named = chosen.pop("corpus"), chosen.pop("tokenizer")
    of_pairs = chosen["pair_field"] is not None
    entries = places if corpus is None else corpus_entries(corpus, of_pairs=of_pairs)
    if entries is None or entries == []:
        raise UserError("no corpus: give --corpus FILES, a directory, a glob or a hub id")
    if (read_with := named if tokenizer is None else tokenizer) is None:
        raise UserError("no tokenizer: give --tokenizer, the directory or hub id of the teacher")
    folder = output_folder(output, "prepare")
    with speaking(progress):
        found = find_sources(entries, chosen["text_field"], chosen["pair_field"])
        manifest = make_windows(found, read_with, folder, progress=progress, **chosen)
    return Windows(manifest.to_dict(), folder, manifest)


def make_windows(
    corpus: Corpus,
    tokenizer: str | Path | PreTrainedTokenizerFast,
    output: str | Path,
    *,
    num_workers: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,  # of `WindowOptions`
) -> WindowsManifest:
    """Returns the manifest of a folder with the token windows of a corpus, which it writes.

    The folder is the same, byte for byte, for any number of workers. Killed and called again with the same
    options, it goes on where it stopped; a folder that is finished is left as it is. Windows are held out by
    document, by a hash of (seed, document index); the first two documents go one to each split, so that
    neither is empty. Texts in memory that can be read once only, as those of an iterator, have nothing to go on from: a
    call that was killed begins anew. See `corpus_entries` for how a text is told from a file.

    Corpus and tokenizer are as for `prepare`; the folder is new, empty, or left by an earlier call, or with `overwrite`
    loses what `prepare` writes. `num_workers` are processes: by default one per core, up to 16, and for a small corpus
    just this one. The other options are those of `WindowOptions`.

    Note:
        The paper says "stride 128"; its code passes 128 as the tokenizer's `stride`, which is the OVERLAP.
        With two special tokens the windows of the defaults are therefore 254 - 128 = 126 tokens apart.
    """
    chosen = WindowOptions(**{name: _number(name, value) for name, value in options.items()})
    of_pairs = chosen.pair_field is not None
    chosen = replace(chosen, truncate=chosen.truncate or of_pairs)
    loaded = load_tokenizer(tokenizer)
    record = TokenizerRecord.of(loaded)
    _check_options(chosen, record, loaded)
    sources = find_sources(corpus_entries(corpus, of_pairs=of_pairs), *chosen.fields)
    workers = _number_of_workers(num_workers, sources)
    folder = Path(output)
    plan = Plan(record, chosen, _source_records(sources))
    advice = "free some space; the same command (without --overwrite) then goes on where it stopped"
    with writing(folder, advice=advice), sole_user(folder, "prepare"):
        check_own(*own_files(folder))
        state = _open_folder(folder, plan, sources, overwrite)
        if isinstance(state, WindowsManifest):
            logger.info("%s is finished: nothing to do", folder)
            return state
        num_bytes = sum(source.num_bytes for source in sources)
        logger.info("corpus: %s%s", count_kinds(sources), f", {size(num_bytes)}" if num_bytes else "")
        loaded.save_pretrained(folder / TOKENIZER)
        try:
            _write_windows(folder, plan, state, sources, serialized_backend(loaded), workers, progress)
        except UserError:
            if not _read_progress(folder / PROGRESS)[1].documents:  # nothing to go on from
                remove_own_files(folder)
            raise
        return _finish(folder, replace(plan, sources=_source_records(sources, plan.sources)), state)


def recipe_options(recipe: Recipe) -> dict[str, Any]:
    """Returns the arguments of `prepare` that a recipe has: "corpus" and "tokenizer", perhaps None, and all others."""
    data = recipe.data
    same = {field.name for field in fields(WindowOptions)}  # what is called as the recipe calls it
    places = {"corpus": data.corpus, "tokenizer": data.tokenizer or recipe.teacher.model}
    others = {"separator": data.documents, "seed": recipe.training.seed}
    return {**places, **data.model_dump(include=same), **others}


def _differences(plan: Plan, other: Plan) -> str:
    """Names what another plan has otherwise; empty when nothing."""
    before, now = asdict(other.options), asdict(plan.options)
    found = [f"{name} {before[name]!r}, now {now[name]!r}" for name in now if before[name] != now[name]]
    if other.tokenizer.fingerprint != plan.tokenizer.fingerprint:
        told = [f"{it.name} ({it.fingerprint[:12]})" for it in (other.tokenizer, plan.tokenizer)]
        found.append(f"tokenizer {', now '.join(told)}")
    old, new = ({source.name: source for source in side.sources} for side in (other, plan))
    changed = sorted(name for name in old | new if _differ(old.get(name), new.get(name)))
    if changed or [source.name for source in other.sources] != [source.name for source in plan.sources]:
        found.append(f"corpus files ({', '.join(changed[:3]) or 'their order'})")
    return "; ".join(found)


def _differ(one: SourceRecord | None, other: SourceRecord | None) -> bool:
    if one is None or other is None or None in (one.sha256, other.sha256):
        return (one and replace(one, sha256=None)) != (other and replace(other, sha256=None))
    return one != other


@dataclass
class _State:
    """How far the data files are complete.

    `source` and `documents_in_source` say where to read on; `skipped_before` counts the empty documents of
    the sources before that one, `empty` the documents that had no token, `left_out` the tokens in no window.
    """

    source: int = 0
    documents_in_source: int = 0
    documents: int = 0
    skipped_before: int = 0
    empty: int = 0
    left_out: int = 0
    splits: dict[str, SplitCounts] = field(default_factory=lambda: {split: SplitCounts() for split in SPLITS})


def _number(name: str, value: Any) -> Any:
    """Returns an option, as Python's own number where it is one."""
    kind = {field.name: str(field.type) for field in fields(WindowOptions)}[name]
    if not kind.startswith(("int", "float")) or (value is None and "None" in kind):
        return value
    with failing_as(f"{name} is {quoted(value)}", (TypeError, ValueError), "give a number"):
        return float(value) if kind == "float" else operator.index(value)


def _check_options(
    options: WindowOptions, record: TokenizerRecord, tokenizer: PreTrainedTokenizerFast
) -> None:
    specials = len(record.prefix_ids) + len(record.suffix_ids)
    content = options.window_length - specials
    limit = options.max_windows_per_document
    if content < 1:
        told = f"window_length {options.window_length} has no room beside {specials} special tokens"
        raise UserError(f"{told}: give at least {specials + 1}")
    if not options.truncate and not 0 <= options.overlap < content:
        room = f"[0, {content}) (window_length {options.window_length} less {specials} special tokens)"
        found = f"found {options.overlap}: give --overlap {content // 2}"
        raise UserError(f"overlap must lie in {room}, {found}")
    if limit is not None and limit < 1:
        raise UserError(f"max_windows_per_document must be at least 1 or None, found {limit}")
    if not 0 <= options.held_out_fraction < 1:
        raise UserError(f"held_out_fraction must lie in [0, 1), found {options.held_out_fraction}")
    if not 0 <= options.seed < 2**64:
        raise UserError(f"seed must lie in [0, 2^64), found {options.seed}")
    if options.separator not in get_args(DocumentSeparator):
        expected = ", ".join(get_args(DocumentSeparator))
        raise UserError(f"no document separator {options.separator!r}: expected one of {expected}")
    if options.pair_field == options.text_field:
        raise UserError(
            f"the column {quoted(options.pair_field)} cannot be both texts of a pair: name another"
        )
    if options.max_document_bytes < 1:
        raise UserError(f"max_document_bytes must be at least 1, found {options.max_document_bytes}")
    if options.window_length > tokenizer.model_max_length:
        told = (
            "window_length %d is longer than the %s tokens that the tokenizer %s states as its model's limit"
        )
        logger.warning(told, options.window_length, tokenizer.model_max_length, record.name)


def _number_of_workers(num_workers: int | None, sources: Sequence[Source]) -> int:
    if num_workers is not None:
        if num_workers < 1:
            raise UserError(f"num_workers (--workers) must be at least 1, found {num_workers}")
        return num_workers
    if sum(source.num_bytes for source in sources) < _PARALLEL_FROM_BYTES:
        return 1
    return min(usable_cores(), _MAX_DEFAULT_WORKERS)


def _source_records(sources: Sequence[Source], before: Sequence[SourceRecord] = ()) -> list[SourceRecord]:
    """Returns the records of sources; `before` are those of an earlier call, whose files are not read again."""
    files = [source.path.resolve() for source in sources if source.kind not in ("hub", "memory")]
    root = os.path.commonpath([str(file.parent) for file in files]) if files else ""

    def record(index: int, source: Source) -> SourceRecord:
        name, num_bytes, sha256 = str(source.path), source.num_bytes, None
        if source.texts is not None:
            # Texts have no name: the manifest knows them by what they say, however they were given.
            name, num_bytes = _READ_ONCE, 0
            if digest := source.texts.digest:
                name, num_bytes = f"{source.path} ({digest[:16]})", source.texts.num_bytes
        elif source.kind != "hub":
            name = source.path.resolve().relative_to(root).as_posix()
            with failing_as(f"{source.path}: cannot be read", OSError):
                # A second reading of the corpus, of 1.4 GB a second: tokenising takes a hundred times as long.
                sha256 = before[index].sha256 if before else sha256_of(source.path)
        return SourceRecord(name, source.kind, num_bytes, sha256)

    return [record(index, source) for index, source in enumerate(sources)]


def _open_folder(
    folder: Path, plan: Plan, sources: Sequence[Source], overwrite: bool
) -> _State | WindowsManifest:
    """Returns where to go on in the folder, or its manifest when nothing is left to do."""
    once = [source for source in sources if source.reads_once]
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in HALF_WRITTEN)
    if (folder / MANIFEST).exists():
        # Read even with `overwrite`: a manifest that is not ours is nobody's to remove.
        manifest = WindowsManifest.from_dict(read_json(folder / MANIFEST))
        if not overwrite:
            for source in once:
                for _ in _documents(source, plan.options, ReadStats()):
                    pass
            plan = replace(plan, sources=_source_records(sources, plan.sources))
            _refuse_differences(folder, plan, manifest)
            (folder / PROGRESS).unlink(missing_ok=True)
            return WindowsManifest.load(folder)
    elif (folder / PROGRESS).exists() and not overwrite:
        plan_before, state = _read_progress(folder / PROGRESS)
        # An earlier call that kept nothing is nothing to protect, whatever its options were.
        if state.documents:
            _refuse_differences(folder, plan, plan_before)
            if not once:
                logger.info("%s: going on after %d documents", folder, state.documents)
                return state
            logger.info("%s: texts that are read once begin anew; those in a list would go on", folder)
    elif foreign and not overwrite:
        advice = "choose a new folder (or --overwrite, which leaves foreign files alone)"
        raise UserError(f"{folder} is not empty ({foreign[0]}, ...) and was not written by prepare: {advice}")
    remove_own_files(folder)
    _save_progress(folder, plan, _State())
    return _State()


def _refuse_differences(folder: Path, plan: Plan, other: Plan) -> None:
    if differences := _differences(plan, other):
        advice = "choose another folder, or start anew with --overwrite"
        raise UserError(f"{folder} was prepared with other settings ({differences}): {advice}")
    if any(source.sha256 and not old.sha256 for source, old in zip(plan.sources, other.sources, strict=True)):
        told = "names and sizes are the same, whether the text is could not be checked"
        logger.warning("%s was begun by a version that kept no fingerprint of the corpus: %s", folder, told)


def _read_progress(path: Path) -> tuple[Plan, _State]:
    """Returns what decides the bytes of an unfinished folder, and how far they are written."""
    saved = read_json(path)
    with failing_as(f"{path} is damaged", (ValueError, KeyError), "start anew with --overwrite"):
        plan = record_from_plain(Plan, saved.get("plan"))
        state = record_from_plain(_State, saved.get("state"))
        numbers = [value for value in asdict(state).values() if isinstance(value, int)]
        counts = [number for split in SPLITS for number in asdict(state.splits[split]).values()]
        if min(numbers + counts) < 0 or state.source > len(plan.sources):
            raise ValueError("a count is out of range")
    return plan, state


def _save_progress(folder: Path, plan: Plan, state: _State) -> None:
    head = {"format": FORMAT, "format_version": FORMAT_VERSION}
    write_json(folder / PROGRESS, head | {"plan": asdict(plan), "state": asdict(state)})


def _write_windows(
    folder: Path,
    plan: Plan,
    state: _State,
    sources: Sequence[Source],
    backend: str,
    workers: int,
    progress: bool,
) -> None:
    """Reads, tokenises and stores what the state does not cover yet; the state is complete afterwards."""
    reader, per_row = _DocumentReader(sources, plan.options, state), len(plan.options.fields)
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with contextlib.ExitStack() as stack:
        new = ((split, SplitWriter(folder, split, state.splits[split], plan.types)) for split in SPLITS)
        writers = {split: stack.enter_context(writer) for split, writer in new}
        bar = stack.enter_context(progress_bar("prepare", *columns, shown=progress, in_files=True))
        task = bar.add_task("prepare", total=sum(source.num_bytes for source in sources) or None)
        batches = stack.enter_context(contextlib.closing(encode_batches(reader.batches(), backend, workers)))
        for number, (documents, position) in enumerate(batches, start=1):
            for row in by_row(documents, per_row):
                state.documents += per_row
                if not all(map(len, row)):
                    state.empty += per_row
                    continue
                # Counted without the empty ones: the first two always go one to each split.
                index = (state.documents - state.empty) // per_row - 1
                split: Split = "held_out" if is_held_out(index, plan.options) else "train"
                for ids in row:
                    covered, *windows = choose_windows(ids, index, plan.options, plan.tokenizer)
                    state.left_out += len(ids) - len(covered)
                    writers[split].add(covered, *windows)
            for writer in writers.values():
                writer.write()
            state.source, state.documents_in_source, state.skipped_before = position
            bar.update(task, completed=reader.bytes_read)
            if number % BATCHES_PER_SAVE == 0:
                for writer in writers.values():
                    writer.sync()
                _save_progress(folder, plan, state)
        bar.update(task, completed=reader.bytes_read)
    state.source, state.documents_in_source, state.skipped_before = len(sources), 0, reader.skipped


class _DocumentReader:
    """The documents of all sources in batches, from where a state left off."""

    def __init__(self, sources: Sequence[Source], options: WindowOptions, state: _State) -> None:
        self._sources, self._options = sources, options
        self._first, self._already_read = state.source, state.documents_in_source
        self.skipped = state.skipped_before
        self.bytes_read = sum(source.num_bytes for source in sources[: self._first])

    def batches(self) -> Iterator[tuple[list[str], tuple[int, int, int]]]:
        """Yields texts, and the position after them: source, documents of it, skipped before it."""
        texts: list[str] = []
        characters = 0
        position = (self._first, self._already_read, self.skipped)
        for index, source in enumerate(self._sources[self._first :], start=self._first):
            stats = ReadStats()
            bytes_before, skipped_before = self.bytes_read, self.skipped
            for count, document in enumerate(_documents(source, self._options, stats), start=1):
                if index == self._first and count <= self._already_read:
                    continue
                texts.append(document.text)
                characters += len(document.text)
                position = (index, count, skipped_before)
                self.bytes_read = bytes_before + stats.bytes_read
                is_full = characters >= BATCH_CHARACTERS or len(texts) >= BATCH_DOCUMENTS
                if is_full and len(texts) % len(self._options.fields) == 0:
                    yield texts, position
                    texts, characters = [], 0
            self.skipped = skipped_before + stats.skipped
            self.bytes_read = bytes_before + source.num_bytes
        if texts:
            yield texts, position


def _documents(source: Source, options: WindowOptions, stats: ReadStats) -> Iterator[Document]:
    same = ("separator", "text_field", "max_document_bytes", "pair_field")
    how = {name: getattr(options, name) for name in same}
    return read_documents(source, stats=stats, **how)


def _left_out(share: float, plan: Plan) -> str:
    """Returns a line on the share of the tokens that stand in no window, why, and what takes more of them."""
    options = plan.options
    lines = options.separator == "blank-line" and any(source.kind == "text" for source in plan.sources)
    more = "; if each line is a text, give --documents line" * lines
    most = f"at most {options.max_windows_per_document} (--max-windows-per-document 0 takes all{more})"
    most = "only its first (--truncate)" if options.truncate else most
    return f"{share:.1%} of the tokens are in no window: a document gives {most}"


def _finish(folder: Path, plan: Plan, state: _State) -> WindowsManifest:
    counts, fraction = state.splits, plan.options.held_out_fraction
    expected: list[Split] = ["train", "held_out"] if fraction > 0 else ["train"]
    if any(counts[split].windows == 0 for split in expected):
        # Nothing in the folder is worth keeping, and it would stand in the way of the mended call.
        remove_own_files(folder)
        found = sum(count.documents for count in counts.values())
        if found == 0:
            raise UserError(f"the corpus has no document: {plan.sources[0].name} ... hold only whitespace")
        told = f"the corpus has {found} document(s), too few for a training and a held-out split"
        advice = "cut it into more (--documents line, if each line is a text)"
        raise UserError(f"{told}: {advice}, or hold out nothing (--held-out-fraction 0)")
    files = hash_data(folder)
    num_bytes = sum((folder / name).stat().st_size for name in files)
    manifest = WindowsManifest(
        **vars(plan),
        splits=counts,
        skipped_documents=state.skipped_before + state.empty,
        bytes_per_token=round(num_bytes / sum(count.tokens for count in counts.values()), 4),
        versions=installed_versions("minialbert", "transformers", "tokenizers", "numpy"),
        files=files,
    )
    read = ", ".join(f"{counts[split].documents:,} {split.replace('_', ' ')}" for split in SPLITS)
    skipped = f"; {manifest.skipped_documents:,} skipped, empty or without a token"
    skipped += " (with the text that they belong to)" * (plan.options.pair_field is not None)
    logger.info("documents: %s%s", read, skipped * (manifest.skipped_documents > 0))
    if state.left_out:
        stored = sum(count.tokens for count in counts.values())
        logger.info("%s", _left_out(state.left_out / (state.left_out + stored), plan))
    # Nothing is whole before all of it is on the disk.
    sync(*(path for path in own_files(folder) if path.exists()), folder)
    write_json(folder / MANIFEST, manifest.to_dict())
    (folder / PROGRESS).unlink(missing_ok=True)
    return manifest
