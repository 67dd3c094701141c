"""Predictions for plain texts: classes, scores, or entities with their place in the text; and the texts of files."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from minialbert_runtime.answers import MAX_CHARACTERS, TextModel
from minialbert_runtime.folder import exported_head, is_exported, read_folder
from minialbert_runtime.lines import SHORTEN, STDIN, read_lines, read_text
from minialbert_runtime.windows import Text

from minialbert.data.columns import find_all, usual_pairs
from minialbert.data.table_files import EXTENSIONS, Table, read_table
from minialbert.errors import UserError, display_name, needs_extra, quoted
from minialbert.method.live import AnyModel, on_disk
from minialbert.runs.files import check_fetched, files_below
from minialbert.runs.progress import quiet_transformers
from minialbert.tasks.embed import load_embedder

logger = logging.getLogger(__name__)

_ROWS_TOLD = 10


def predict(
    model: AnyModel,
    texts: str | Iterable[Text],
    *,
    batch_size: int | None = None,
    threshold: float | None = None,
    top_k: int | None = None,
    max_characters: int = MAX_CHARACTERS,
    precision: str = "auto",
    num_iterations: int | None = None,
    exit_threshold: float | None = None,
    tokenizer: Any = None,
) -> list[dict[str, Any]]:
    """Return the predictions of a tuned model: one dictionary per text, entities with character offsets.

    Examples:
        >>> answers = minialbert.predict("tuned/model", ["A large house.", "A small river."])
        >>> answers[0]["label"] in ("large", "small")
        True

    Args:
        model: a directory or hub id of a tuned model, an exported folder, a live model, or the result of `finetune`.
            Each call loads the model; keep a `Predictor` to call it repeatedly.
        texts: a text, or texts, or pairs of texts.
        batch_size: inputs per forward pass. Default: 32, but 1 for an exported folder with int8-dynamic (or int8 from
            before it had that name), where the answer for a text would otherwise depend on the others in its batch.
        threshold: a label or an entity counts above this probability. Default: 0.5 if several labels may apply.
        top_k: number of labels with a score, the most probable first. Default: all.
        max_characters: longest text that is accepted.
        precision: "auto", "fp32", "bf16" or "fp16".
        num_iterations: how often a MiniALBERT applies its block. Default: as trained.
        exit_threshold: confidence (0 to 1) at which an input leaves early. Default: as calibrated.
        tokenizer: of a live model.

    Returns:
        One dictionary per text, in their order.

    Raises:
        UserError: if the model cannot be loaded, an option is out of range, or an input is not a text.
    """
    with quiet_transformers(), on_disk(model, tokenizer) as source:
        predictor = load_predictor(
            source, batch_size=batch_size, threshold=threshold, top_k=top_k, max_characters=max_characters,
            precision=precision, num_iterations=num_iterations, exit_threshold=exit_threshold,
        )  # fmt: skip
        return list(predictor.predict([texts] if isinstance(texts, str) else texts))


def load(model: AnyModel, *, tokenizer: Any = None, **options: Any) -> TextModel | Any:
    """Return a model that takes texts and stays loaded: `model(text)` for labels, `model.embed(texts)` for vectors.

    Examples:
        >>> model = minialbert.load("tuned/model")
        >>> model("A large house.")["label"] in ("large", "small")
        True

    Args:
        model: the name of a model in the distribution minialbert-models, as "minilm-5mb"; a directory or hub id of a
            tuned model or a sentence encoder; an exported folder; a live model; or the result of a verb.
        tokenizer: of a live model.
        **options: those of `predict`, as `batch_size`, `threshold` and `precision`.

    Returns:
        A `Model` of the runtime for an exported folder, else one in PyTorch with the same methods. Of an exported
        masked LM, as "english-4mb", the pipeline "fill-mask" of Transformers, with its weights in PyTorch.

    Raises:
        UserError: if the model cannot be loaded, or an option is out of range.
    """
    with quiet_transformers(), on_disk(model, tokenizer) as source:
        head = exported_head(source) if is_exported(source) else None
        if head == "masked-lm":
            if options:
                raise UserError(
                    f"{display_name(source)} predicts masked words, and takes no options: give them with the text, "
                    "as in model(TEXT, top_k=3)"
                )
            return _in_torch().fill_mask(source)
        is_encoder = (
            _in_torch().gives_vectors(source) if head is None else read_folder(source).problem == "embedding"
        )
        return (load_embedder if is_encoder else load_predictor)(source, **options)


def load_predictor(
    name: str,
    *,
    precision: str = "auto",
    num_iterations: int | None = None,
    exit_threshold: float | None = None,
    **options: Any,
) -> TextModel:
    """Return the predictor of a tuned model, or of a folder that `minialbert export` wrote.

    Such a folder has its own precision and depth: it takes "auto" and None alone. `options` are those of `TextModel`.
    Raises UserError if the model cannot be loaded, an option is out of range or settled by the export, or ONNX Runtime
    is not installed.
    """
    depth = {"num_iterations": num_iterations, "exit_threshold": exit_threshold}
    if not is_exported(name):
        return _in_torch().Predictor.load(name, precision=precision, **depth, **options)
    given = depth | {"precision": None if precision == "auto" else precision}
    settled = [option for option, value in given.items() if value is not None]
    if settled:
        raise UserError(
            f"{name} is an exported folder, in which {' and '.join(settled).replace('_', ' ')} cannot be chosen any "
            "more: leave it out, or give the model that was exported"
        )
    with needs_extra("export", "predicting with an exported folder"):
        from minialbert_runtime.model import Model
    model = Model(name, **options)
    if model.problem == "embedding":
        raise UserError(
            f"{name} is a sentence encoder, which labels nothing: minialbert embed gives its vectors"
        )
    return model


def _in_torch() -> Any:
    """Return the module of models in PyTorch, which is imported with it: an exported folder does without."""
    from minialbert.tasks import text_models

    return text_models


def __getattr__(name: str) -> Any:
    if name == "Predictor":  # by the name that it has in the documentation
        return _in_torch().Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Input(NamedTuple):
    """A text or pair, and what its result repeats of where it came from: `id` and `file`, where they are known."""

    text: Text
    about: dict[str, Any]


def answers(predictor: TextModel, inputs: Iterable[Input]) -> Iterator[dict[str, Any]]:
    """Return the result of each input, in order, beginning with what is known of where it came from."""
    waiting: deque[dict[str, Any]] = deque()

    def texts() -> Iterator[Text]:
        for text, about in inputs:
            waiting.append(about)
            yield text

    return (waiting.popleft() | result for result in predictor.predict(texts()))


def read_inputs(
    paths: Sequence[str],
    *,
    column: str | None = None,
    pair_column: str | None = None,
    id_column: str | None = None,
    documents: bool | None = False,
    max_characters: int = MAX_CHARACTERS,
    model: Callable[[], TextModel | None] = lambda: None,
    stdin: BinaryIO | None = None,
) -> Iterator[Input]:
    """Return the texts of files, in order: one per line of text files and stdin, one per row of tables.

    Paths are .txt files; tables (.csv, .tsv, .jsonl, .ndjson, .parquet), whose column `text` (or that with another
    usual name of a text) is read unless one is named; "-" for stdin, of bytes. With a `pair_column`, or for a `model`
    of pairs, pairs of texts are returned, of columns with usual names where none are named. With `documents` a text
    file, or stdin, is one text, and a path may be a folder, of which all .txt files are read; None says that there is
    no such option. What is wrong with a row for the model, asked for once the paths have been looked at, is told before
    the first text. A row keeps its `id`: what the table's `id` column holds, or the named one. Texts from several
    files, and documents, keep their `file`.

    All paths are looked at before this returns, and all tables are read and checked before the first text. Blank lines
    are texts too, so that results can be put beside their lines; blank lines of tables are not rows. Raises UserError,
    naming file and rows, if a file is missing, of an unknown kind, damaged or not UTF-8, or lacks the column or a cell
    of it, or a text has more than `max_characters`.
    """
    files = [file for path in paths for file in _files(path, documents=documents)]
    kinds = [_kind(path) for path in files]
    if any(name is not None for name in (column, pair_column, id_column)) and "table" not in kinds:
        raise UserError(
            f"columns are for tables ({' '.join(EXTENSIONS)}), and there is none: leave the column out"
        )
    if "lines" in kinds and not documents:
        more = "; --documents takes each file as one text" if documents is False else ""
        logger.info("text files are read as one text a line%s", more)

    def read() -> Iterator[Input]:
        named = column, pair_column
        tables = [
            _table_inputs(Path(path), named, id_column, max_characters, model()) if kind == "table" else []
            for path, kind in zip(files, kinds, strict=True)
        ]
        for path, kind, rows in zip(files, kinds, tables, strict=True):
            about = {"file": path} if documents or len(files) > 1 else {}
            if kind == "table":
                yield from (Input(text, own | about) for text, own in rows)
            elif documents:
                yield Input(read_text(path, stdin, max_characters=max_characters), about)
            else:
                lines = read_lines(path, stdin, max_characters=max_characters)
                yield from (Input(line, about) for line in lines)

    return read()


def _files(path: str, *, documents: bool | None) -> list[str]:
    if path == STDIN or not Path(path).is_dir():
        return [path]
    if not documents:
        advice = "its files" if documents is None else "--documents, and each .txt file in it is one text"
        raise UserError(f"{path} is a folder: give {advice}")
    found = sorted(str(file) for file in files_below(Path(path)) if file.suffix.lower() == ".txt")
    if not found:
        raise UserError(f"{path} holds no .txt file")
    return found


def _kind(path: str) -> str:
    if path == STDIN:
        return "stdin"
    suffix = Path(path).suffix.lower()
    if suffix != ".txt" and suffix not in EXTENSIONS:
        expected = " ".join((".txt", *EXTENSIONS))
        raise UserError(f"{path}: unknown extension; expected one of {expected}, or - for stdin")
    check_fetched(Path(path))
    if not Path(path).is_file():
        raise UserError(f"no such file: {path}")
    return "table" if suffix in EXTENSIONS else "lines"


def _table_inputs(
    path: Path, named: Sequence[str | None], id_column: str | None, most: int, model: TextModel | None
) -> list[Input]:
    table = read_table(path)
    for note in table.notes:
        logger.info("%s: %s", path, note)
    columns = _text_columns(table, named, model is not None and model._pairs)
    asked = {id_column: "--id-column", columns[-1]: "--pair-column", columns[0]: "--column"}
    for name, option in asked.items():
        if name is not None and name not in table.columns:
            raise table.lacks(f"no column {quoted(name)}; {option} names it")
    usual = (name for name in table.columns if name.lower() == "id" and name not in columns)
    identity = next(usual, None) if id_column is None else id_column
    inputs, refused = [], {}
    for row, cells in table.rows:
        texts = [cells.get(name) for name in columns]
        given: Any = texts[0] if len(texts) == 1 else tuple(texts)
        problems = (_problem(cells, name, most) for name in columns)
        if problem := next(filter(None, problems), None) or (model and model.fault(given)):
            refused[row] = problem
            continue
        known = cells.get(identity) if identity is not None else None
        about = {} if known is None else {"id": known if isinstance(known, str | int) else str(known)}
        inputs.append(Input(given, about))
    if refused:
        rows, more = list(refused), ", …" if len(refused) > _ROWS_TOLD else ""
        first = ", ".join(map(str, rows[:_ROWS_TOLD])) + more
        told = f"; {len(rows):,} of {len(table.rows):,} rows are refused: {first}"
        raise table.error(rows[0], refused[rows[0]] + (told if len(rows) > 1 else ""))
    return inputs


def _text_columns(table: Table, named: Sequence[str | None], pairs: bool | None) -> Sequence[str]:
    text, pair = named
    if pair is not None or not pairs:
        return [text or _usual_text(table), *([] if pair is None else [pair])]
    usual = usual_pairs(table, text)
    if len(usual) != 1:
        raise table.lacks("the model takes pairs of texts: --column and --pair-column name them")
    return usual[0]


def _usual_text(table: Table) -> str:
    """Returns the column of the text as labelled data have it, unless that is one of a pair; else "text"."""
    usual = [] if "text" in table.columns or usual_pairs(table) else find_all(table, "text")
    if len(usual) != 1:
        return "text"
    logger.info("%s: the text is the column %s", table.name, quoted(usual[0]))
    return usual[0]


def _problem(cells: dict[str, Any], name: str, max_characters: int) -> str | None:
    text = cells.get(name)
    if not isinstance(text, str):
        found = "nothing" if text is None else type(text).__name__
        return f"expected a text in column {name!r}, found {found}"
    if len(text) > max_characters:
        return f"{len(text):,} characters in column {name!r}, and the limit is {max_characters:,}: {SHORTEN}"
    return None
