"""The command line: parsing and printing. Every verb is one call of the library function of its name."""

from __future__ import annotations

import errno
import io
import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minialbert import __version__
from minialbert.cli import deploy, tasks
from minialbert.cli.experiments import suite_app
from minialbert.cli.shared import (
    JsonFlag,
    OverwriteFlag,
    PrecisionOption,
    ResumeFlag,
    Verb,
    Verbs,
    YesFlag,
    chosen,
    err,
    interruptible,
    leave_page,
    loading,
    option,
    out,
    patience,
    print_json,
    print_table,
    printed_json,
    say,
    way_on,
    with_page,
)
from minialbert.errors import StandardError, UserError, printable, shown
from minialbert.runs import stopping

if TYPE_CHECKING:
    from minialbert.recipes.schema import Recipe

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
recipes_app = typer.Typer(cls=Verbs, help="List, show or copy the shipped recipes.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")
app.add_typer(suite_app, name="suite")


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"minialbert {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, option("Show the version and exit.", "--version", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Distil full-size encoders into small recursive ones.

    minialbert prepare --corpus texts/ --tokenizer bert-base-uncased --output windows/
    minialbert distill --teacher bert-base-uncased --data windows/ --recipe small --output run/
    minialbert finetune --model run/model --task ner --data my-ner/ --output tuned/
    minialbert predict --model tuned/model "Aspirin relieves pain."
    """
    if context.invoked_subcommand not in ("recipes", "report", "suite"):
        context.with_resource(loading())


Documents = StrEnum("Documents", {"blank_line": "blank-line", "line": "line", "file": "file"})


@app.command(cls=Verb)
def prepare(
    corpus: Annotated[list[str] | None, option("Texts: file, directory, glob or hub id; repeatable.")] = None,
    tokenizer: Annotated[str | None, option("Directory or hub id of the teacher's tokenizer.")] = None,
    output: Annotated[Path, option("Folder for the windows.")] = Path("windows"),
    recipe: Annotated[str, option("Recipe whose data settings are the defaults.")] = "default",
    documents: Annotated[Documents | None, option("What separates documents in text files.")] = None,
    text_field: Annotated[str | None, option("Column of the text in tables.", "--column")] = None,
    pair_field: Annotated[str | None, option("Column of a text that belongs to it.", "--pair-column")] = None,
    max_document_mb: Annotated[float, option("Longest document accepted, in megabytes.")] = 16.0,
    window_length: Annotated[int | None, option("Tokens per window.")] = None,
    overlap: Annotated[int | None, option("Tokens that neighbouring windows share.")] = None,
    max_windows_per_document: Annotated[int | None, option("Most windows per document; 0 for all.")] = None,
    truncate: Annotated[bool | None, option("First window of each document only.", "--truncate")] = None,
    held_out_fraction: Annotated[float | None, option("Share of documents held out.")] = None,
    seed: Annotated[int | None, option("Random seed for choosing windows.")] = None,
    workers: Annotated[int | None, option("Processes (default: one per core).")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Cut texts into windows of tokens on disk.

    minialbert prepare --corpus texts/ --tokenizer bert-base-uncased --output windows/
    minialbert prepare --corpus notes.csv --column note --tokenizer bert-base-uncased
    minialbert prepare --corpus qa.csv --column question --pair-column answer --recipe embeddings --tokenizer TEACHER
    """
    from minialbert.data.corpora import find_sources
    from minialbert.data.prepare import prepare as run

    options = {
        "window_length": window_length, "overlap": overlap, "truncate": truncate, "seed": seed,
        "held_out_fraction": held_out_fraction, "separator": documents and documents.value, "text_field": text_field,
        "pair_field": pair_field,
    }  # fmt: skip
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if max_windows_per_document is not None:
        chosen["max_windows_per_document"] = max_windows_per_document or None
    with interruptible(way_on(output, overwrite=overwrite, then="goes on where it stopped")):
        manifest = run(
            find_sources(corpus) if corpus else None, tokenizer, output, recipe=recipe, num_workers=workers,
            max_document_bytes=int(max_document_mb * 1_000_000), overwrite=overwrite, progress=not as_json, **chosen,
        ).manifest  # fmt: skip
    assert manifest is not None
    if printed_json(manifest.to_dict(), as_json):
        return
    rows = (
        (name, *(f"{count:,}" for count in (counts.documents, counts.windows, counts.tokens)))
        for name, counts in manifest.splits.items()
    )
    print_table(("split", "documents", "windows", "tokens stored"), rows)
    out.print(f"{manifest.bytes_per_token:.2f} bytes per token; windows in {output}")


@app.command(cls=Verb)
def distill(
    data: Annotated[list[Path], option("Folder of windows from `minialbert prepare`; may be repeated.")],
    output: Annotated[Path, option("Folder for the run.")],
    teacher: Annotated[str | None, option("Directory or hub id (without: masked-LM only).")] = None,
    recipe: Annotated[str | None, option("Name of a recipe, or a YAML file (default: default).")] = None,
    objective: Annotated[
        str | None, option("What to learn: default, paper, as-published, embeddings.")
    ] = None,
    student_arch: Annotated[str | None, option("minialbert (recursive) or bert.")] = None,
    start_only: Annotated[bool, option("Measure without training.", "--start-only")] = False,
    steps: Annotated[int | None, option("Length in optimiser steps.")] = None,
    epochs: Annotated[float | None, option("Length in passes over the windows.")] = None,
    time: Annotated[str | None, option("Length as a time, as in 2h or 1h30m.")] = None,
    batch_size: Annotated[int | None, option("Windows per optimiser step.")] = None,
    lr: Annotated[float | None, option("Highest learning rate.")] = None,
    seed: Annotated[int | None, option("Random seed for weights, order, masks and dropout.")] = None,
    precision: PrecisionOption = None,
    set_: Annotated[list[str] | None, option("Any setting, as in distill.output_weight=4.", "--set")] = None,
    resume: ResumeFlag = False,
    overwrite: OverwriteFlag = False,
    yes: YesFlag = False,
    dry_run: Annotated[bool, option("Show time, memory and changed settings only.", "--dry-run")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Distil a teacher into a small student.

    minialbert distill --teacher bert-base-uncased --data windows/ --recipe small --output run/
    minialbert distill --teacher bert-base-uncased --data windows/ --steps 2000 --dry-run --output run/
    minialbert distill --teacher bert-base-uncased --data windows/ --output run/ --resume
    minialbert distill --objective embeddings --teacher MODEL --data windows/ --output run/
    """
    from minialbert.method.distill import distill as run
    from minialbert.method.distill import distillation_recipe

    settings = chosen(
        "training", set_, steps=steps, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed, precision=precision,
    )  # fmt: skip
    if dry_run:
        if time is not None:
            raise UserError("--dry-run measures no steps: leave out --time")
        resolved = distillation_recipe(
            recipe, settings, teacher=teacher, student_arch=student_arch, objective=objective
        )
        with interruptible():
            named = distillation_recipe(recipe, teacher=teacher, objective=objective)
            _show_plan(resolved, named, data, as_json=as_json)
        return
    with interruptible(way_on(output, overwrite=overwrite)), with_page(output, as_json):
        record = run(
            teacher, data, student_arch=student_arch, recipe=recipe, objective=objective, settings=settings,
            output=output, start_only=start_only, resume=resume, overwrite=overwrite, progress=not as_json,
            max_hours=patience(yes), time=time,
        ).record  # fmt: skip
    if printed_json(record, as_json):
        return
    _print_layer_map(record["layer_map"])
    _print_held_out(record["metrics"])
    say(f"student and tokenizer in {output / 'model'}; record in {output / 'result.json'}")
    embed, tune = (
        "embed --input TEXTS --output vectors.npy",
        "finetune --task TASK --data DATA --output tuned/",
    )
    then = embed if "vector_weight" in record["objective"] else tune
    say(f"next: minialbert {then} --model {output / 'model'}")
    leave_page(output)


_VERBS = (
    tasks.finetune, tasks.evaluate, tasks.predict, tasks.embed, tasks.calibrate, deploy.trim, deploy.export,
    deploy.bench, tasks.report, tasks.attention, tasks.convert_data,
)  # fmt: skip
for _verb in _VERBS:
    app.command(cls=Verb)(_verb)


@app.command(cls=Verb, epilog="minialbert convert nlpie/miniALBERT-128 --output minialbert-128/")
def convert(
    source: Annotated[str, typer.Argument(help="Directory or hub id of a released checkpoint.")],
    output: Annotated[Path, option("Folder for the converted model.")],
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert a checkpoint from the paper's release."""
    from minialbert.method.release import convert as run

    with interruptible():
        report = run(source, output, overwrite=overwrite)
    if as_json:
        keys = ("source", "architecture", "parameters", "renamed", "dropped")
        print_json({key: getattr(report, key) for key in keys})
        return
    for line in report.lines():
        out.print(line, highlight=False)


@app.command(cls=Verb, epilog="minialbert demo --output runs/demo")
def demo(
    output: Annotated[Path, option("Folder for the run.")] = Path("runs/demo"), as_json: JsonFlag = False
) -> None:
    """Distil, tune and export a small student, offline, in minutes."""
    from minialbert.experiments.demo.demo import run_demo

    with interruptible():
        record = run_demo(output, say=None if as_json else out.print)
    if as_json:
        print_json(record)


@recipes_app.command("ls", cls=Verb, epilog="minialbert recipes ls")
def recipes_ls() -> None:
    """List the recipes."""
    from minialbert.recipes.load import list_recipes

    rows = ((summary.name, summary.description, summary.paper or "") for summary in list_recipes())
    print_table(("recipe", "what", "paper"), rows)


@recipes_app.command("show", cls=Verb, epilog="minialbert recipes show small")
def recipes_show(name: str) -> None:
    """Print a recipe with all its values."""
    from minialbert.recipes.load import dump_recipe, find_recipe, load_recipe
    from minialbert.recipes.schema import FinetuneRecipe, Recipe
    from minialbert.recipes.yaml import read_yaml

    if name.endswith((".yaml", ".yml")):
        sections = set(FinetuneRecipe.sections()) - set(Recipe.sections())
        is_tuning = not sections.isdisjoint(read_yaml(Path(name).expanduser())[0])
        recipe = load_recipe(name, FinetuneRecipe if is_tuning else Recipe)
    else:
        recipe = load_recipe(name, find_recipe(name).kind)
    sys.stdout.write(dump_recipe(recipe))


@recipes_app.command("cp", cls=Verb, epilog="minialbert recipes cp small my-recipe.yaml")
def recipes_cp(name: str, destination: Path, overwrite: OverwriteFlag = False) -> None:
    """Copy a recipe to a file that you can change."""
    from minialbert.recipes.load import copy_recipe

    out.print(f"copied to {copy_recipe(name, destination, overwrite=overwrite)}")


def _show_plan(resolved: Recipe, named: Recipe, data: list[Path], *, as_json: bool) -> None:
    from minialbert.method.costs import estimate
    from minialbert.method.plan import plan_distillation
    from minialbert.recipes.schema import flat_settings

    plan = plan_distillation(resolved, data)
    figures = estimate(plan)
    if printed_json({"recipe": plan.recipe.model_dump(), "estimate": figures}, as_json):
        return
    before, after = (flat_settings(one.model_dump()) for one in (named, plan.recipe))
    differ = [(key, before.get(key), value) for key, value in after.items() if value != before.get(key)]
    shown = (tuple("-" if one is None else str(one) for one in row) for row in differ)
    print_table(("setting", "recipe", "here"), shown)
    for note in plan.notes:
        out.print(note, markup=False)
    _print_layer_map(plan.layers)
    rows = (
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else value)
        for name, value in figures.items()
    )
    print_table(("estimate", ""), rows)


def _print_layer_map(layers: tuple[int, ...] | list[int]) -> None:
    if not layers:
        return
    header = ("student iteration", *map(str, range(1, len(layers) + 1)))
    print_table(header, [("teacher layer", *(str(layer) if layer else "-" for layer in layers))])


def _print_held_out(metrics: dict[str, Any]) -> None:
    names = [name for name in ("teacher", "student_start", "student_end") if name in metrics]
    if not names:
        return
    keys = {key: None for name in names for key, value in metrics[name].items() if isinstance(value, float)}
    shown = {
        key: [f"{metrics[name][key]:.4f}" if key in metrics[name] else "" for name in names] for key in keys
    }
    rows = ((key.replace("_", " "), *figures) for key, figures in shown.items())
    print_table(("held-out", *(name.replace("_", " ") for name in names)), rows)


_UsageError: Any = typer.BadParameter.__base__  # typer exports this one alone


def _said_by_typer(error: Any) -> str:
    return error.format_message().rstrip(".").replace("Value error, ", "")


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    # JSON and Markdown are UTF-8 wherever they go: a pipe on Windows or in a POSIX locale would take less.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[StandardError()])
    for noisy in ("httpx", "urllib3", "datasets", "filelock", "accelerate", "onnx_ir", "matplotlib", "torch"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("huggingface_hub").propagate = False  # it writes its lines itself
    try:
        stopping.refuse_several_processes(sys.argv[1:])
        stopping.leave_talking_to_the_first()
        if app(prog_name="minialbert", standalone_mode=False) == 130:
            raise KeyboardInterrupt  # while a verb was still imported
        stopping.end_process_group()
        sys.exit(0)
    except (UserError, _UsageError) as error:
        stopping.let_the_first_fail_first()
        context = getattr(error, "ctx", None)
        more = f" ({context.command_path} --help lists the options)" if context is not None else ""
        message = str(error) if isinstance(error, UserError) else _said_by_typer(error)
        if message:  # else the help was asked for
            say(f"minialbert: {message}{more}", err)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # as of a text in the place of a path
            raise
        say(
            f"minialbert: {shown(error.filename, 120)} is not a path that can be opened ({error.strerror})",
            err,
        )
        sys.exit(2)
    except RuntimeError as error:
        if not stopping.lost_the_others(error):
            raise
        err.print(
            f"minialbert: process {stopping.rank()} stops: another one has gone ({printable(str(error))[:200]})"
        )
        sys.exit(1)


if __name__ == "__main__":
    main()
