"""The verb about what models attend to: attention."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from minialbert.cli.shared import (
    JsonFlag,
    OverwriteFlag,
    interruptible,
    out,
    print_json,
    quiet_transformers,
    say,
)
from minialbert.errors import UserError, local_path, quoted


def attention(
    model: Annotated[str, typer.Option(help="Directory or hub id of a student.")],
    teacher: Annotated[str, typer.Option(help="Directory or hub id of its teacher.")],
    output: Annotated[Path, typer.Option(help="File for the maps, as attention.json of a run.")],
    sentence: Annotated[
        list[str] | None, typer.Option(help="Text to read, instead of five of our own; may be repeated.")
    ] = None,
    layer_map: Annotated[
        str | None,
        typer.Option(help="Teacher layer of each iteration, as in 2,4,6; spread evenly without."),
    ] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Record where a student and its teacher attend in a few sentences."""
    quiet_transformers()
    from minialbert.method.attention_maps import (
        SENTENCES,
        compare_attention,
        row_overlap,
        write_attention_maps,
    )
    from minialbert.runs.files import check_file, writing

    file = local_path(output)
    if file.is_dir():
        raise UserError(f"{output} is a directory: expected a file, as in {output / 'attention.json'}")
    check_file(file, overwrite=overwrite)
    layers = _layers(layer_map)
    with interruptible("the same command starts it again"):
        maps = compare_attention(model, teacher, layers=layers, sentences=sentence or SENTENCES)
        with writing(file, advice="make room, or give another --output"):
            write_attention_maps(file, maps)
    overlap = row_overlap(maps)
    if as_json:
        print_json(
            {name: value for name, value in maps.items() if name != "sentences"} | {"row_overlap": overlap}
        )
        return
    table = Table("student iteration", "teacher layer", "row overlap")
    for iteration, (layer, figure) in enumerate(zip(maps["layer_map"], overlap, strict=True), 1):
        table.add_row(str(iteration), str(layer), f"{figure:.3f}")
    out.print(table)
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
