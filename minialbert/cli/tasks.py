"""The verbs about models and their runs: finetune, evaluate, predict, calibrate, report, attention."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from minialbert_runtime.cli import check_given
from rich.table import Table

from minialbert.cli.shared import (
    InputFiles,
    JsonFlag,
    OverwriteFlag,
    PrecisionOption,
    ResumeFlag,
    Rows,
    YesFlag,
    chosen,
    interruptible,
    leave_page,
    option,
    out,
    patience,
    print_answers,
    print_json,
    print_table,
    printed_json,
    say,
    way_on,
    with_page,
)
from minialbert.errors import UserError, in_words, local_path, quoted
from minialbert.runs.files import check_apart, check_file, writing

TASK_HELP = "A GLUE task, ner, classification, multi-label, regression, qa, or a name of your own."
_MODEL = "a folder, also an exported one, the name of an installed model, or a hub id"
_NEEDED = "Required unless the recipe names it."
_Iterations = Annotated[int | None, option("How often the student applies its block (default: as trained).")]
_ExitThreshold = Annotated[float | None, option("Confidence for early exit (default: as calibrated).")]
_Data = Annotated[str | None, option("Labelled data: directory, file or hub:OWNER/NAME.")]
_TaskOfModel = Annotated[str | None, option(f"{TASK_HELP} Default: the task of the model.")]
_Set = Annotated[list[str] | None, option("Any setting, as in task.text=sentence.", "--set")]
AnswerFormat = StrEnum(
    "AnswerFormat", {
        "table": "table", "json": "json", "jsonl": "jsonl", "brat": "brat", "label_studio": "label-studio",
        "doccano": "doccano", "conll": "conll", "spacy": "spacy", "csv": "csv", "html": "html",
    }
)  # fmt: skip
Overlaps = StrEnum("Overlaps", ["longest", "first", "refuse"])
_Format = Annotated[
    str | None, option("Format of the files, as in pubtator (default: recognised).", "--format")
]
_Layers = StrEnum("_Layers", ["longest", "first", "refuse", "layers"])
_Overlaps = Annotated[Overlaps | None, option("Entity to keep of those that share a word (default: refuse).")]
CalibrationSplit = StrEnum("CalibrationSplit", ["train", "validation"])
KeepModels = StrEnum("KeepModels", ["selected", "all", "none"])
_SHOWN_CLASSES = 50


def finetune(
    output: Annotated[Path, option("Folder for the run.")],
    model: Annotated[str | None, option(f"Encoder to tune: {_MODEL}. {_NEEDED}")] = None,
    task: Annotated[str | None, option(f"{TASK_HELP} {_NEEDED}")] = None,
    data: _Data = None,
    format_: _Format = None,
    overlaps: _Overlaps = None,
    adapters: Annotated[bool, option("Train only adapters and head.", "--adapters")] = False,
    teacher: Annotated[str | None, option("A model tuned for the task, to learn from as well.")] = None,
    unlabelled: Annotated[
        list[str] | None, option("Texts for the teacher to label, with or without --data.", metavar="PATH")
    ] = None,
    recipe: Annotated[str | None, option("Name of a fine-tuning recipe, or a YAML file.")] = None,
    epochs: Annotated[float | None, option("Length in passes over the training rows.")] = None,
    time: Annotated[str | None, option("Length as a time, as in 2h or 1h30m.")] = None,
    batch_size: Annotated[int | None, option("Rows per optimiser step.")] = None,
    lr: Annotated[float | None, option("Highest learning rate (default: by the model's width).")] = None,
    seed: Annotated[int | None, option("Random seed for head, order and dropout.")] = None,
    precision: PrecisionOption = None,
    set_: Annotated[list[str] | None, option("Any setting, as in tuning.warmup_ratio=0.1.", "--set")] = None,
    grid: Annotated[bool, option("Run the recipe's grid; select the best.", "--grid")] = False,
    jobs: Annotated[int, option("Runs at a time on this machine.", min=1)] = 1,
    ray: Annotated[str | None, option("Address of a Ray cluster to run on.")] = None,
    keep_models: Annotated[KeepModels, option("Models to keep on disk.")] = KeepModels.selected,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Tune an encoder on a labelled task.

    minialbert finetune --model run/model --task ner --data my-ner/ --output tuned/
    minialbert finetune --model run/model --task sst2 --adapters --lr 1e-3 --epochs 5 --output tuned/
    minialbert finetune --model english-4mb --task classification --data notes.csv --output tuned/
    minialbert finetune --model run/model --teacher tuned/model --unlabelled texts/ --output student/
    """
    if not grid and (jobs != 1 or ray is not None or keep_models is KeepModels.all):
        raise UserError("--jobs, --ray and --keep-models are for grids: give --grid too")
    if grid and time is not None:
        raise UserError("--time is for a single run: leave out --grid")
    if grid and resume and overwrite:
        raise UserError(
            "a grid goes on without --resume, and --overwrite replaces it: give one of them at most"
        )
    from minialbert.tasks.advice import remedy
    from minialbert.tasks.finetune import finetune as run
    from minialbert.tasks.finetune import tuning_recipe

    named: dict[str, Any] = {
        "model": model, "task": task, "data": data, "adapters": adapters, "teacher": teacher,
        "unlabelled": unlabelled or None, "recipe": recipe,
        "settings": chosen(
            "tuning", chosen("task", set_, format=format_, overlaps=overlaps), epochs=epochs, batch_size=batch_size,
            lr=lr, seed=seed, precision=precision,
        ),
    }  # fmt: skip
    if grid:
        from minialbert.experiments.grid import grid_rows, run_grid

        then = "goes on; finished cells are not run again"
        with interruptible(way_on(output, overwrite=overwrite, then=then)):
            record = run_grid(
                tuning_recipe(**named), output=output, jobs=jobs, ray_address=ray, keep_models=keep_models.value,  # type: ignore[arg-type]
                overwrite=overwrite, progress=not as_json,
            )  # fmt: skip
        if not printed_json(record, as_json):
            header, *rows = grid_rows(record)
            print_table(header, rows)
            _print_selected(record)
        return
    kept = keep_models is not KeepModels.none
    with interruptible(way_on(output, overwrite=overwrite)), with_page(output, as_json):
        record = run(
            **named, output=output, resume=resume, overwrite=overwrite, progress=not as_json, keep_model=kept,
            max_hours=patience(yes), time=time,
        ).record  # fmt: skip
    if printed_json(record, as_json):
        return
    _print_scores(record)
    say(f"model and tokenizer in {output / 'model'}; " * kept + f"record in {output / 'result.json'}")
    export = f"minialbert export --quantize int8 --output exported/ --model {output / 'model'}"
    if todo := remedy(record) or kept * export:
        say(f"next: {todo}")
    leave_page(output)


def evaluate(
    model: Annotated[str, option(f"Tuned model: {_MODEL}.")],
    data: _Data = None,
    format_: _Format = None,
    overlaps: _Overlaps = None,
    task: Annotated[
        str | None,
        option(f"{TASK_HELP} Vectors: sts, retrieval, clustering. Default: the task of the model."),
    ] = None,
    reference: Annotated[str | None, option("Sentence encoder to score beside the model (vectors).")] = None,
    split: Annotated[str | None, option("Split (default: test if labelled, else validation).")] = None,
    output: Annotated[Path | None, option("Folder for the record and the predictions.")] = None,
    submission: Annotated[Path | None, option("Folder for GLUE's submission files.")] = None,
    set_: _Set = None,
    batch_size: Rows = 64,
    num_iterations: _Iterations = None,
    exit_threshold: _ExitThreshold = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Score a tuned model on labelled data.

    minialbert evaluate --model tuned/model --data my-ner/ --output scores/
    minialbert evaluate --model tuned/model --data my-ner/ --split validation --num-iterations 4
    minialbert evaluate --model run/model --task sts --data pairs.csv --reference TEACHER
    """
    from minialbert.tasks.evaluate import evaluate as run

    with interruptible():
        record = run(
            model, data, task=task, split=split, output=output, submission=submission, overwrite=overwrite,
            batch_size=batch_size, num_iterations=num_iterations, exit_threshold=exit_threshold, reference=reference,
            settings=chosen("task", set_, format=format_, overlaps=overlaps), progress=not as_json,
        ).record  # fmt: skip
    if printed_json(record, as_json):
        return
    for note in record["notes"]:
        say(note)
    if record["problem"] == "embedding":
        _print_vectors(record)
    else:
        _print_scores(record)
    for name, mean in record.get("mean_iterations", {}).items():
        say(f"{name}: {mean:.2f} iterations per input on average, at threshold {record['exit_threshold']:g}")
    for name in record.get("submission", ()):
        say(f"{submission}/{name}")
    if output is not None:
        say(f"record{' and predictions' * ('submission' in record)} in {output}")
        leave_page(output)


def predict(
    model: Annotated[str, option(f"Tuned model: {_MODEL}.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts (or --input).", show_default=False)] = None,
    input_: InputFiles = None,
    column: Annotated[str | None, option("Column of the text in tables.")] = None,
    pair: Annotated[str | None, option("Second text of each pair of texts.")] = None,
    pair_column: Annotated[str | None, option("Column of the second text of a pair.")] = None,
    id_column: Annotated[str | None, option("Column of the result's id (default: id).")] = None,
    documents: Annotated[bool, option("Read each file as one text.", "--documents")] = False,
    max_characters: Annotated[int, option("Longest text accepted, in characters.")] = 1_000_000,
    output: Annotated[Path | None, option("File, or brat's folder (default: standard output).")] = None,
    format_: Annotated[
        AnswerFormat | None, option("Format (default: that of --output, else jsonl or a table).", "--format")
    ] = None,
    threshold: Annotated[float | None, option("Lowest probability of an answer.")] = None,
    top_k: Annotated[int | None, option("Show the scores of this many labels, the highest first.")] = None,
    batch_size: Annotated[int | None, option("Inputs per pass (32; dynamic int8: 1).")] = None,
    num_iterations: _Iterations = None,
    exit_threshold: _ExitThreshold = None,
    overwrite: OverwriteFlag = False,
) -> None:
    """Label texts with a tuned or exported model.

    minialbert predict --model tuned/model "Aspirin relieves pain."
    minialbert predict --model tuned/model --input notes.csv --column note --output answers.jsonl
    minialbert predict --model tuned/model --input notes.txt --format html --output answers.html
    cat notes.txt | minialbert predict --model tuned/model --input -
    """
    from minialbert.report.render import FILES, FORMATS, format_of, render
    from minialbert.runs.progress import quiet_transformers
    from minialbert.tasks.predict import Input, answers, load_predictor, read_inputs

    check_given(texts, input_)
    if texts and (documents or column or pair_column or id_column):
        raise UserError("--column, --pair-column, --id-column and --documents need --input")
    if input_ and pair is not None:
        raise UserError("--pair is for texts on the command line: --pair-column names a column of --input")
    output = None if output == Path("-") else output  # standard output, as elsewhere
    on_screen = output is None and sys.stdout.isatty()
    shown = format_.value if format_ else format_of(output, "table" if on_screen else "jsonl")
    if output is None and shown in FILES:
        raise UserError(f"{shown} takes {'a folder' if shown == 'brat' else 'a file'}: give --output")
    if output is not None:  # before a model is loaded
        check_apart(output, input_ or ())
        if shown != "brat":
            check_file(output, overwrite=overwrite)
    inputs: Iterable[Input] = [Input(text if pair is None else (text, pair), {}) for text in texts or ()]
    if input_:
        inputs = read_inputs(
            input_, column=column, pair_column=pair_column, id_column=id_column, documents=documents,
            max_characters=max_characters, model=lambda: predictor,
        )  # fmt: skip
    with interruptible(), quiet_transformers():
        predictor = load_predictor(
            model, batch_size=batch_size, threshold=threshold, top_k=top_k, max_characters=max_characters,
            num_iterations=num_iterations, exit_threshold=exit_threshold,
        )  # fmt: skip
        results = answers(predictor, inputs)
        if output is not None:
            render(results, output, format=shown, overwrite=overwrite)
        elif shown == "table":
            print_answers(results)
        else:
            for piece in FORMATS[shown](results):
                sys.stdout.write(piece)
                sys.stdout.flush()


def convert_data(
    data: Annotated[str, typer.Argument(help="Labelled data: directory, file or hub:OWNER/NAME.")],
    output: Annotated[Path, typer.Argument(help="File to write, or folder.")],
    format_: Annotated[str, option("Format to write, as in doccano.", "--format")],
    read_as: Annotated[str | None, option("Format of the data (default: recognised).")] = None,
    split: Annotated[str | None, option("Shares of train, validation and test, as in 80,10,10.")] = None,
    group: Annotated[str | None, option("Column whose documents of one value stay together.")] = None,
    seed: Annotated[int, option("Random seed of the split.")] = 0,
    overlaps: Annotated[
        _Layers | None,
        option(
            "Entity to keep of those that share a word, or a folder for each layer of them (default: refuse)."
        ),
    ] = None,
    set_: Annotated[list[str] | None, option("Name of a column, as in text=note.", "--set")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write labelled data in another format.

    minialbert convert-data corpus.pubtator my-ner/ --format conll --split 80,10,10
    minialbert convert-data brat/ tasks.json --format label-studio
    """
    from minialbert.data.convert_data import convert_data as run

    try:
        shares = tuple(float(share) for share in split.split(",")) if split else None
    except ValueError as error:
        raise UserError(f"--split {quoted(split)}: expected shares, as in 80,10,10") from error
    if wrong := [entry for entry in set_ or () if "=" not in entry]:
        raise UserError(
            f"--set {quoted(wrong[0])}: expected what a column holds and its name, as in text=note"
        )
    columns = dict(entry.removeprefix("task.").partition("=")[::2] for entry in set_ or ())
    with interruptible():
        made = run(
            data, output, format=format_, read_as=read_as, columns=columns, split=shares, group=group, seed=seed,
            overlaps=overlaps.value if overlaps else "refuse", overwrite=overwrite,  # type: ignore[arg-type]
        )  # fmt: skip
    if as_json:
        print_json({"output": str(made.output), "documents": dict(made.documents), "notes": list(made.notes)})
        return
    for note in made.notes:
        say(note)
    counts = ", ".join(f"{count:,} {name}" for name, count in made.documents.items())
    say(f"{counts} documents in {made.output}")


def report(
    paths: Annotated[list[Path] | None, typer.Argument(help="Records or folders of them.")] = None,
    compare: Annotated[tuple[Path, Path] | None, option("Compare two runs instead.", metavar="A B")] = None,
    output: Annotated[Path | None, option("Folder for the page, its tables (CSV) and charts (SVG).")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Put the records of runs on one page, or compare two runs.

    minialbert report run/ tuned/ --output page/
    minialbert report --compare tuned-a/ tuned-b/
    """
    if (compare is None) == (not paths):
        raise UserError("give either records and run directories, or --compare and two of them")
    from minialbert.report import report as run

    page = run(compare or paths or [], output, compare=compare is not None)
    name = "report" if compare is None else "compare"
    if as_json:
        from minialbert.runs.records import load_record, record_files

        print_json({str(file): load_record(file) for file in record_files(compare or paths or [])})
    elif output is None:
        sys.stdout.write(page)
    else:
        said = "report in" if compare is None else "comparison in"
        say(f"{said} {output / f'{name}.md'}, as a page in {output / f'{name}.html'}")


def _print_selected(record: dict[str, Any]) -> None:
    chosen = record["selected"]
    spread = f" ± {chosen['sd']:.4f}" if chosen["sd"] is not None else ""
    out.print(
        f"selected on validation: learning rate {chosen['learning_rate']:g}, batch {chosen['batch_size']}, "
        f"{chosen['epochs']:g} epochs; {in_words(record['metric'])} on {record['split']} "
        f"{chosen['score']:.4f}{spread} over {chosen['n']} seeds"
    )


def _print_scores(record: dict[str, Any]) -> None:
    """Print the figures of each labelled split, then those by class, or by type of entity."""
    for split, metrics in record["metrics"].items():
        how = " (agreement with the teacher)" if split in record.get("agreement", ()) else ""
        table = Table(f"{record['task']}, {split}{how}", "")
        for name, value in metrics.items():
            if isinstance(value, float) and not _is_repeated(name, metrics):
                mark = " (over word pieces, as the release)" if name == "entity_f1_subword" else ""
                if record.get("positive") and name in ("f1", "auroc", "average_precision"):
                    mark = f" (of {record['positive']})"
                style = "bold" if name == record["metric"] else None
                table.add_row(f"{in_words(name)}{mark}", f"{value:.4f}", style=style)
        out.print(table)
        sure = record.get("certificate") or {} if split == record["split"] else {}
        for key, title, counted in (
            ("per_type", "type", "entities"), ("per_class", "class", "rows"), ("per_length", "length", "entities")
        ):  # fmt: skip
            of = sure.get(key) or metrics.get(key) or {}
            rows = [
                (name, *(_figure(one, key) for key in ("precision", "recall", "f1")), str(one["support"]))
                for name, one in list(of.items())[:_SHOWN_CLASSES]
            ]
            if rows:
                print_table((title, "precision", "recall", "F1", counted), rows)
        if sure:
            say(
                f"in brackets: 95 % intervals, from {sure['resamples']:,} samples of {sure['units']:,} {sure['drawn']}"
            )


def _is_repeated(name: str, metrics: dict[str, Any]) -> bool:
    """Tell whether a tagger's figure by another rule is the one by words again; the record has it all the same."""
    twin = f"entity{name.removeprefix('span')}" if name.startswith("span_") else name.removesuffix("_strict")
    return twin != name and metrics[name] == metrics.get(twin)


def _figure(values: dict[str, Any], name: str) -> str:
    """Return a figure, and in brackets its interval where there is one."""
    ends = (values.get("intervals") or {}).get(name)
    return f"{values[name]:.4f}" + (f" ({ends[0]:.2f}-{ends[1]:.2f})" if ends else "")


def _print_vectors(record: dict[str, Any]) -> None:
    """Print the figures of a sentence encoder, and beside them those of its reference."""
    split, other = record["split"], record.get("reference")
    columns = {"model": record["metrics"][split]}
    if other is not None:
        columns |= {"reference": other["metrics"], "model with reference": other.get("mixed", {})}
    rows = [
        (in_words(name), *(f"{found[name]:.4f}" if name in found else "" for found in columns.values()))
        for name in columns["model"]
    ]
    if other is not None:
        shares = (1.0, other.get("mixed_share"))
        shown_shares = ("" if one is None else f"{one:.1%}" for one in (other["share"], *shares))
        rows.append(("share of the reference", *shown_shares))
    print_table((f"{record['task']}, {split}", *columns), rows)


def embed(
    model: Annotated[str, option(f"Sentence encoder: {_MODEL}.")],
    output: Annotated[Path, option("File for the vectors: .npy, .parquet or .jsonl.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts (or --input).")] = None,
    input_: InputFiles = None,
    column: Annotated[str | None, option("Column of the text in tables.")] = None,
    dim: Annotated[int | None, option("Leading dimensions to keep (Matryoshka).")] = None,
    prompt: Annotated[str | None, option("Name of a prompt of the model, or its text.")] = None,
    normalize: Annotated[
        bool, option("Bring vectors to length one, where the model does not.", "--normalize")
    ] = False,
    batch_size: Annotated[int | None, option("Inputs per forward pass.", min=1)] = None,
    overwrite: OverwriteFlag = False,
) -> None:
    """Turn texts into vectors.

    minialbert embed --model minilm-5mb "A text." "Another one." --output vectors.npy
    minialbert embed --model run/model --input texts.txt --output vectors.npy
    minialbert embed --model exported/ --input notes.csv --column note --output vectors.parquet
    """
    check_given(texts, input_)
    from minialbert_runtime.answers import prompt_of

    from minialbert.runs.progress import quiet_transformers
    from minialbert.tasks.embed import check_vectors_file, load_embedder, write_vectors
    from minialbert.tasks.predict import read_inputs

    check_apart(output, input_ or ())
    check_vectors_file(output, overwrite=overwrite)
    with interruptible(), quiet_transformers():
        read = texts or [str(one.text) for one in read_inputs(input_ or [], column=column, documents=None)]
        embedder = load_embedder(model, batch_size=batch_size)
        vectors = embedder.embed(read, dim=dim, prompt=prompt_of(embedder, prompt), normalize=normalize)
    write_vectors(output, read, vectors)
    say(f"{len(vectors):,} vectors of {vectors.shape[1]} dimensions in {output}")


def calibrate(
    model: Annotated[str, option("Directory of a tuned or exported model, which keeps the result.")],
    data: _Data = None,
    format_: _Format = None,
    overlaps: _Overlaps = None,
    task: _TaskOfModel = None,
    max_drop: Annotated[float | None, option("Points that the metric may lose (early exit; 0.5).")] = None,
    min_recall: Annotated[list[str] | None, option("Recall for a label, as in Disease=0.95.")] = None,
    min_precision: Annotated[list[str] | None, option("Precision for a label, as in Disease=0.9.")] = None,
    confidences: Annotated[bool, option("Fit confidences alone, no thresholds.", "--confidences")] = False,
    split: Annotated[
        CalibrationSplit | None, option("Split to draw rows from (early exit: train; else validation).")
    ] = None,
    fraction: Annotated[float, option("Share of the rows to draw.")] = 0.1,
    rows: Annotated[int | None, option("Number of rows to draw, in place of a share.")] = None,
    seed: Annotated[int, option("Random seed for drawing rows.")] = 0,
    output: Annotated[Path | None, option("Folder for the record.")] = None,
    set_: _Set = None,
    batch_size: Rows = 64,
    dry_run: Annotated[bool, option("Leave the model's config as it is.", "--dry-run")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Choose thresholds and confidences, also for early exit.

    minialbert calibrate --model tuned/model --data my-ner/ --min-recall Disease=0.95
    minialbert calibrate --model tuned/model --data my-data/ --max-drop 0.5 --dry-run
    """
    from minialbert.tasks.calibrate import calibrate as run

    with interruptible():
        record = run(
            model, data, task=task, max_drop=max_drop, min_recall=_by_label("--min-recall", min_recall),
            min_precision=_by_label("--min-precision", min_precision), confidences=confidences,
            split=split.value if split else None, fraction=fraction, rows=rows, seed=seed,
            output=output, overwrite=overwrite, dry_run=dry_run, batch_size=batch_size,
            settings=chosen("task", set_, format=format_, overlaps=overlaps), progress=not as_json,
        ).record  # fmt: skip
    if printed_json(record, as_json):
        return
    for note in record["notes"]:
        say(note)
    if "decision" in record:
        said, file = _print_decision(record), "task.json"
    else:
        _print_thresholds(record)
        found, file = record["exit_threshold"], "config.json"
        said = f"exit_threshold {found:g}" if found is not None else "no exit_threshold"
    say(f"{said} in {Path(model) / file}" if record["written"] else f"{said} (nothing is written)")
    if output is not None:
        say(f"record in {output / 'result.json'}")


def _by_label(name: str, given: list[str] | None) -> dict[str, float]:
    """Return what an option says of labels."""
    found = {}
    for entry in given or ():
        label, equals, value = entry.rpartition("=")
        if label in found:
            raise UserError(f"{name}: {quoted(label)} is given twice: give one share for it")
        try:
            found[label] = float(value)
        except ValueError:
            equals = ""
        if not (label and equals):
            raise UserError(
                f"{name}: expected a label and a share, as in Disease=0.95; found {quoted(entry)}"
            )
    return found


def _print_decision(record: dict[str, Any]) -> str:
    """Print what thresholds change; return what is to be kept."""
    thresholds = record["decision"]["thresholds"]
    rows = [
        (label, f"{thresholds[label]:.4g}",
         *(f"{one[when][name]:.4f}" for name in ("precision", "recall") for when in ("before", "after")))
        for label, one in record["labels"].items()
    ]  # fmt: skip
    if rows:
        print_table(("label", "threshold", "precision before", "after", "recall before", "after"), rows)
    error = record["calibration_error"]
    told = f"calibration error (ECE) of {error['answers']:,} answers on {record['split']}"
    say(f"{told}: {error['before']:.4f} before, {error['after']:.4f} after")
    return f"temperature {record['decision']['temperature']:.3g}" + f" and {len(rows)} thresholds" * bool(
        rows
    )


def _print_thresholds(record: dict[str, Any]) -> None:
    """Print some thresholds of all that were tried, the chosen one among them, and the full depth."""
    rows = record["thresholds"]
    chosen = [row["threshold"] for row in rows].index(record["exit_threshold"] or 1.0)
    step = max(1, -(-len(rows) // 12))
    table = Table("threshold", in_words(record["metric"]), "mean iterations", "share of iterations")
    for index, row in enumerate(rows):
        if index % step and index not in (chosen, len(rows) - 1):
            continue
        table.add_row(
            f"{row['threshold']:g}", f"{row['score']:.4f}", f"{row['mean_iterations']:.2f}",
            f"{row['compute_share']:.0%}", style="bold" if row["threshold"] == record["exit_threshold"] else None,
        )  # fmt: skip
    depth = max(map(int, record["score_by_depth"]))
    table.add_row("full depth", f"{record['full_depth_score']:.4f}", f"{depth:.2f}", "100%")
    out.print(table)


def attention(
    model: Annotated[str, option("Directory or hub id of a student.")],
    teacher: Annotated[str, option("Directory or hub id of its teacher.")],
    output: Annotated[Path, option("File for the maps, as in attention.json.")],
    sentence: Annotated[list[str] | None, option("Sentence; may be repeated.")] = None,
    layer_map: Annotated[str | None, option("Teacher layers, as in 2,4,6 (default: evenly spread).")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare where a student and its teacher attend.

    minialbert attention --model run/model --teacher bert-base-uncased --output attention.json
    """
    from minialbert.method import attention_files, attention_maps

    file = local_path(output)
    if file.is_dir():
        raise UserError(f"{output} is a directory: expected a file, as in {output / 'attention.json'}")
    check_file(file, overwrite=overwrite)
    layers = _layers(layer_map)
    with interruptible():
        texts = sentence or attention_maps.SENTENCES
        maps = attention_maps.compare_attention(model, teacher, layers=layers, sentences=texts)
        with writing(file, advice="make room, or give another --output"):
            attention_files.write_attention_maps(file, maps)
    overlap = attention_files.row_overlap(maps)
    if as_json:
        print_json(
            {name: value for name, value in maps.items() if name != "sentences"} | {"row_overlap": overlap}
        )
        return
    figures = enumerate(zip(maps["layer_map"], overlap, strict=True), 1)
    rows = ((str(iteration), str(layer), f"{figure:.3f}") for iteration, (layer, figure) in figures)
    print_table(("student iteration", "teacher layer", "row overlap"), rows)
    if maps["teacher_heads"] != maps["student_heads"]:
        say(
            f"the student has {maps['student_heads']} heads and the teacher {maps['teacher_heads']}: overlap of the "
            "means over heads"
        )
    say(f"attention maps of {len(maps['sentences'])} sentences in {output}")


def _layers(given: str | None) -> tuple[int, ...]:
    """Return the layers that an option names; none when it is absent."""
    if given is None:
        return ()
    parts = given.split(",")
    if not all(part.strip().isdecimal() and len(part.strip()) <= 4 for part in parts):
        raise UserError(f"--layer-map: expected layers divided by commas, as in 2,4,6; found {quoted(given)}")
    layers = tuple(map(int, parts))
    if not all(layers):
        raise UserError(f"--layer-map: layers are counted from 1; found {quoted(given)}")
    return layers
