"""The definition of a suite: rows, ways of tuning, tasks, seeds, and the claims that their results are held against."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from minialbert.errors import UserError, shown
from minialbert.recipes.schema import Count, Section
from minialbert.recipes.yaml import line_of, read_yaml

SHIPPED = Path(__file__).parent
DISTILL = "distill"

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
# ROW, which stands for ROW/full, or ROW/MODE.
Side = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$")]
Value = str | int | float | bool | list[Any] | None


def split_side(side: str) -> tuple[str, str]:
    """Return row and mode of a ROW or ROW/MODE."""
    row, _, mode = side.partition("/")
    return row, mode or "full"


def _below(place: str) -> str:
    if Path(place).is_absolute() or ".." in Path(place).parts:
        raise ValueError(f"{place!r} leads out of --data: expected a path below it")
    return place


Below = Annotated[str, AfterValidator(_below)]


class SuiteTask(Section):
    """A labelled task."""

    name: str = Field(min_length=1, description="As in task.name of a fine-tuning recipe")
    data: Below | None = Field(None, description="Directory or file below --data (null: the hub)")
    label: str = Field(min_length=1, description="What tables call it")
    chance: float = Field(
        0.0, description="Score, in percent, of an answer that does not depend on the input"
    )
    settings: dict[str, Value] = Field({}, description="Further keys of the section `task`")


class SuiteMode(Section):
    """A way of tuning."""

    recipe: str = Field("default", min_length=1, description="Fine-tuning recipe")
    settings: dict[str, Value] = Field({}, description="What differs from it, as in tuning.epochs: 3")
    tasks: dict[Name, dict[str, Value]] = Field({}, description="What differs further on a task")
    marks: Literal["", "†", "†∗"] = Field("", description="The paper's marks of such rows")
    label: str = Field(min_length=1, description="What tables call it")


class SuiteRow(Section):
    """A model: distilled by a recipe, or (without one) the teacher itself."""

    recipe: str | None = Field(None, min_length=1, description="Distillation recipe")
    settings: dict[str, Value] = Field({}, description="What differs from it")
    distilled: bool = Field(True, description="False: the recipe's student as it starts, not distilled")
    model: str | None = Field(None, min_length=1, description="Hub id, tuned as it is")
    teacher: str | None = Field(None, description="Which of the suite's teachers (null: the recipe's own)")
    corpus: str | None = Field(None, description="Which of the suite's corpora (null: the recipe's own)")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if sum(map(bool, (self.recipe, self.model, self.teacher and not self.recipe))) != 1:
            raise ValueError("a row needs a recipe, or a model, or a teacher that is tuned itself")
        if self.recipe is None and (self.settings or self.corpus or not self.distilled):
            raise ValueError("settings, corpus and distilled belong to a row with a recipe")
        return self


class SuiteProduct(SuiteRow):
    """Rows that differ in several ways: one for every choice of an entry of each part, named after them."""

    parts: list[dict[Name, dict[str, Value]]] = Field(min_length=1, description="Settings by name")

    def rows(self) -> dict[str, SuiteRow]:
        """Return the rows by their names, such as "one-wide" of the entries "one" and "wide"."""
        shared, found = self.model_dump(exclude={"parts", "settings"}), {}
        for chosen in product(*(part.items() for part in self.parts)):
            settings = dict(self.settings)
            for _, own in chosen:
                settings |= own
            found["-".join(name for name, _ in chosen)] = SuiteRow(**shared, settings=settings)
        return found


class SuiteGroup(Section):
    """Cells that are run together; groups come in order, and in each the first seed of all its rows comes first."""

    name: Name
    description: str = ""
    cells: list[Side] = Field(min_length=1, description="ROW, tuned in full, or ROW/MODE")
    tasks: list[Name] = Field(min_length=1)
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(min_length=1)


class TableRow(Section):
    """A row of a table, and what the paper has in its place."""

    of: Side
    paper: str | None = Field(None, description="Row of the paper's Table 1 or 2, without marks")
    printed: str | None = Field(None, description="What else the paper prints for it")


class SuiteTable(Section):
    """A table of the report."""

    name: Name
    title: str
    tasks: list[Name] = Field(min_length=1)
    rows: list[TableRow] = Field(min_length=1)
    paper: Literal["glue", "ner"] | None = Field(None, description="The paper's table that rows are named of")
    reference: Side | None = Field(None, description="The row that others are compared with")
    notes: list[str] = []


class Comparison(Section):
    """The statement that one row is better than another by more than so many points."""

    a: Side
    b: Side
    exceeds: float = Field(0.0, description="a - b is said to be more than this")
    tasks: list[Name] = Field(min_length=1)
    figure: Literal["score", "step-time"] = Field(
        "score", description="Points of the score, or percent of b's time per step that a saves"
    )
    counts: bool = Field(True, description="False: shown beside the others, without a say in the verdict")
    label: str | None = Field(None, description="What the comparison is about")


class Claim(Section):
    """A claim of the paper: held if each of its comparisons is, reversed if one of them is."""

    name: Name
    text: str
    paper: str = Field("", description="The paper's own figures")
    caveat: str = Field("", description="What a reader should know beside the verdict")
    comparisons: list[Comparison] = Field(min_length=1)


class Keep(Section):
    """A share of a reference row's mean that a row should keep."""

    of: Side
    against: Side
    beside: list[Side] = []
    tasks: list[Name] = Field(min_length=1)
    share: float = Field(gt=0, le=100, description="Percent")


class Suite(Section):
    """Everything that a suite is made of."""

    name: Name
    description: str = ""
    teachers: list[Name] = Field([], description="Names for --teacher NAME=DIR; the first may be left out")
    corpora: dict[Name, Below] = Field({}, description="Corpora below --data")
    tasks: dict[Name, SuiteTask]
    sets: dict[Name, list[Name]] = Field({}, description="Tasks that are named together, by a name for them")
    modes: dict[Name, SuiteMode]
    rows: dict[Name, SuiteRow]
    products: list[SuiteProduct] = Field([], description="Further rows, all of a kind")
    groups: list[SuiteGroup] = Field(min_length=1)
    tables: list[SuiteTable] = []
    claims: list[Claim] = []
    reach: Keep | None = None
    chance_margin: float = Field(
        2.0, ge=0, description="A mean less than so many points above chance is marked"
    )
    confidence: float = Field(0.95, gt=0, lt=1)
    min_pairs: Count = Field(3, description="With fewer pairs nothing is decided")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for several in self.products:
            self.rows.update(several.rows() | self.rows)
        for name, row in self.rows.items():
            _known(row.teacher, self.teachers, f"rows.{name}.teacher")
            _known(row.corpus, self.corpora, f"rows.{name}.corpus")
        for name, mode in self.modes.items():
            for task in mode.tasks:
                _known(task, self.tasks, f"modes.{name}.tasks")
        planned: set[tuple[str, str, str]] = set()
        for group in self.groups:
            self._check_sides(group.cells, group.tasks, f"groups.{group.name}")
            planned |= {(*split_side(side), task) for side in group.cells for task in group.tasks}
        for table in self.tables:
            sides = [row.of for row in table.rows] + ([table.reference] if table.reference else [])
            self._check_sides(sides, table.tasks, f"tables.{table.name}")
        for claim in self.claims:
            for one in claim.comparisons:
                self._check_sides([one.a, one.b], one.tasks, f"claims.{claim.name}", planned)
        if self.reach is not None:
            sides = [self.reach.of, self.reach.against, *self.reach.beside]
            self._check_sides(sides, self.reach.tasks, "reach", planned)
        return self

    def _check_sides(
        self, sides: list[str], tasks: list[str], where: str, planned: set[tuple[str, str, str]] | None = None
    ) -> None:
        """Put tasks in the place of their sets; refuse unknown rows, modes and tasks, and what no group runs."""
        tasks[:] = [task for name in tasks for task in self.sets.get(name, [name])]
        for side in sides:
            row, mode = split_side(side)
            _known(row, self.rows, where)
            _known(mode, self.modes, where)
        for task in tasks:
            _known(task, self.tasks, where)
        for side, task in product(sides, tasks):
            if planned is not None and (*split_side(side), task) not in planned:
                raise ValueError(f"{where}: no group runs {side} on {task}")


def list_suites() -> list[str]:
    """Return the names of the suites that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load_suite(name_or_path: str) -> Suite:
    """Return a suite that comes with the package, by its name, or one read from a YAML file.

    Recipes that the file names by a path are looked for beside it. A `UserError` tells all faults of a file.
    """
    if name_or_path in list_suites():
        path = SHIPPED / f"{name_or_path}.yaml"
    elif name_or_path.endswith((".yaml", ".yml")):
        path = Path(name_or_path).expanduser()
    else:
        known = ", ".join(list_suites())
        raise UserError(f"no suite is called {name_or_path!r}; there are: {known}; or name a YAML file")
    values, node = read_yaml(path)
    sections = (found for name in ("rows", "modes") if isinstance(found := values.get(name), dict))
    for entry in (entry for section in sections for entry in section.values() if isinstance(entry, dict)):
        recipe = entry.get("recipe")
        if isinstance(recipe, str) and (path.parent / recipe).is_file():
            entry["recipe"] = str((path.parent / recipe).resolve())
    try:
        return Suite.model_validate({"name": path.stem, **values})
    except ValidationError as error:
        faults = []
        for detail in error.errors(include_url=False):
            line = line_of(node, detail["loc"])
            where = ".".join(map(shown, detail["loc"])) + (f" (line {line})" if line else "")
            message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
            faults.append(f"{where}: {message}" if where else message)
        raise UserError(f"{path}: {'; '.join(faults)}") from None


def _known(name: str | None, names: list[str] | dict[str, Any], where: str) -> None:
    if name is not None and name not in names:
        raise ValueError(f"{where}: there is no {name!r}; known are {', '.join(names) or 'none'}")
