"""The verb about running models less deep than they are: calibrate."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .cli_shared import JsonFlag, OverwriteFlag, interruptible, out, print_json, quiet_transformers, say
from .cli_tasks import TASK_HELP, as_given, finetune_recipe

_SHOWN = 12


class CalibrationSplit(StrEnum):
    """Which rows choose the threshold."""

    train = "train"
    validation = "validation"


def calibrate(
    model: Annotated[str, typer.Option(help="Directory of a tuned MiniALBERT; its config is changed.")],
    data: Annotated[
        str | None, typer.Option(help="Directory, file or hub:OWNER/NAME; GLUE comes from the hub without.")
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"{TASK_HELP} Default: what it was tuned for.")] = None,
    max_drop: Annotated[float, typer.Option(help="How far the metric may fall, in points.")] = 0.5,
    split: Annotated[CalibrationSplit, typer.Option(help="Whose rows choose.")] = CalibrationSplit.train,
    fraction: Annotated[float, typer.Option(help="Share of the training rows that is drawn.")] = 0.1,
    rows: Annotated[int | None, typer.Option(help="Draw that many rows instead.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Directory for the record.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, as in task.text=sentence.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per forward pass.")] = 64,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the model's config as it is.")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the confidence at which inputs may leave a tuned model early."""
    quiet_transformers()
    from .early_exit import calibrate_exit

    recipe = finetune_recipe(None, False, set_, task=task, data=data)
    with interruptible("the same command starts it again"):
        record = calibrate_exit(
            model,
            as_given(recipe.task, set_, "name", "data"),
            max_drop=max_drop,
            split=split.value,
            fraction=fraction,
            rows=rows,
            seed=seed,
            output=output,
            overwrite=overwrite,
            dry_run=dry_run,
            batch_size=batch_size,
            precision=recipe.tuning.precision,
            progress=not as_json,
        )
    if as_json:
        print_json(record)
        return
    for note in record["notes"]:
        say(note)
    _print_thresholds(record)
    chosen = record["exit_threshold"]
    said = f"exit_threshold {chosen:g}" if chosen is not None else "no exit_threshold"
    say(f"{said} in {Path(model) / 'config.json'}" if record["written"] else f"{said} (nothing is written)")
    if output is not None:
        say(f"record in {output / 'result.json'}")


def _print_thresholds(record: dict[str, Any]) -> None:
    """Print some thresholds of all that were tried, the chosen one among them, and the full depth."""
    rows = record["thresholds"]
    chosen = [row["threshold"] for row in rows].index(record["exit_threshold"] or 1.0)
    step = max(1, -(-len(rows) // _SHOWN))
    table = Table("threshold", record["metric"].replace("_", " "), "mean iterations", "share of iterations")
    for index, row in enumerate(rows):
        if index % step and index not in (chosen, len(rows) - 1):
            continue
        style = "bold" if row["threshold"] == record["exit_threshold"] else None
        table.add_row(
            f"{row['threshold']:g}",
            f"{row['score']:.4f}",
            f"{row['mean_iterations']:.2f}",
            f"{row['compute_share']:.0%}",
            style=style,
        )
    depth = max(map(int, record["score_by_depth"]))
    table.add_row("full depth", f"{record['full_depth_score']:.4f}", f"{depth:.2f}", "100%")
    out.print(table)
