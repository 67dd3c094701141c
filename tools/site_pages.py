"""Hooks of `mkdocs build`: pages that are generated, files from outside docs/, and a look at what was built.

Called as a script, it writes the tables of docs/recipes.md again. Pages of their own: the command line, from its
parsers; CONTRIBUTING.md, CHANGELOG.md and SECURITY.md; and all records below results/ that a page links to, in turn. A
link to any other file of the repository becomes plain text. The build fails if a built page would load anything from
another machine.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the test of links needs no mkdocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
COMMANDS = "reference/cli.md"
# Files beside docs/ that become pages. Below docs/ and results/ a file keeps its place.
PLACES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md", "SECURITY.md": "security.md"}
_LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_CODE = re.compile(r"^( *)(```|~~~).*?^\1\2|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_REFERENCE = (
    "<!-- reference:begin -->\n",
    "<!-- reference:end -->\n",
)  # what stands between is made from the recipes
_REQUESTS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def links(text: str) -> Iterator[re.Match[str]]:
    """Yield the relative links of a Markdown text, none of them in code."""
    code = [found.span() for found in _CODE.finditer(text)]
    for link in _LINK.finditer(text):
        inside = any(begin <= link.start() and link.end() <= end for begin, end in code)
        if not inside and not re.match(r"[a-z]+:", link["target"]):
            yield link


def target_of(target: str, page: str) -> tuple[str, str]:
    """Return the file of the repository that a link on a page means, and the anchor; of a folder, its README."""
    path, _, anchor = target.partition("#")
    file = normpath(f"{dirname(page)}/{path}".lstrip("/")) if path else page
    return (f"{file}/README.md" if (ROOT / file / "README.md").exists() else file), anchor


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leave out pages of the navigation that are not written yet."""
    config.nav = _existing(config.nav, {COMMANDS, *PLACES.values()})
    return config


def _existing(nav: Any, made: set[str]) -> Any:
    if isinstance(nav, str):
        return nav if nav in made or (ROOT / "docs" / nav).exists() else None
    if isinstance(nav, dict):
        kept = {title: _existing(entry, made) for title, entry in nav.items()}
        return {title: entry for title, entry in kept.items() if entry} or None
    return [kept for entry in nav if (kept := _existing(entry, made))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated, and what lies outside docs/ and is linked to."""
    from mkdocs.structure.files import File

    found = [*PLACES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    files.append(File.generated(config, COMMANDS, content=command_line()))
    seen = set(found)
    while found:
        page = found.pop()
        if not page.endswith(".md"):
            continue
        text = (ROOT / page).read_text(encoding="utf-8")
        if not page.startswith("docs/"):
            head = "---\nsearch:\n  exclude: true\n---\n" if page.startswith("results/") else ""
            files.append(File.generated(config, PLACES.get(page, page), content=head + text))
        for link in links(text):
            target = _as_page(target_of(link["target"], page)[0])
            if target in seen or not target.startswith("results/") or not (ROOT / target).is_file():
                continue
            seen.add(target)
            found.append(target)
            if not target.endswith(".md"):
                files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files


def _as_page(target: str) -> str:
    """Return what shows a file in the site: of a report that stands there as Markdown and as a page, the page."""
    page = f"{target.removesuffix('.md')}.html"
    return page if target.startswith("results/") and (ROOT / page).exists() else target


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to where files of the repository stand in the site; those that do not stand there become text."""
    here = page.file.src_uri
    beside = {place: path for path, place in PLACES.items()}
    source = beside.get(here, here if here.startswith("results/") else f"docs/{here}")
    markdown = re.sub(r"<!-- README: (.*) -->", lambda found: _section(found[1]), markdown)
    for link in reversed(list(links(markdown))):
        target, anchor = target_of(link["target"], source)
        place = PLACES.get(target, _as_page(target).removeprefix("docs/"))
        if files.get_file_from_path(place) is not None:
            path = "" if target == source else relpath(place, dirname(here) or ".")
            new = f"{link['image']}[{link['text']}]({path}{'#' + anchor if anchor else ''})"
        elif (ROOT / target).exists() and not target.startswith("docs/"):
            new = link["text"]
        else:
            continue  # a dead link, which the build reports
        markdown = markdown[: link.start()] + new + markdown[link.end() :]
    return markdown


def _section(heading: str) -> str:
    """Return a section of the README as a page of docs/ would have it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^## .*\n", text.partition(f"\n## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    for link in reversed(list(links(section))):
        target = relpath(link["target"], "docs")
        section = f"{section[: link.start('target')]}{target}{section[link.end('target') :]}"
    return section.strip()


def command_line() -> str:
    """Return the page of both commands, made from their parsers."""
    import typer
    from minialbert_runtime.cli import _parser, _serve_parser

    from minialbert.cli.main import app

    top = typer.main.get_command(app)
    lines = ["# Command line", "", *_verb("minialbert", top)]
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        for words, verb in _verbs(f"minialbert {name}", command):
            lines += [f"## {words}", "", *_verb(words, verb)]
    for parser in (_parser(), _serve_parser()):
        lines += [
            f"## {parser.prog}",
            "",
            parser.description or "",
            "",
            "| option | what it does |",
            "| --- | --- |",
        ]
        shown = (action for action in parser._actions if action.help != argparse.SUPPRESS)
        lines += [*(_row(_names(action), action.help or "") for action in shown), ""]
    return "\n".join(lines) + "\n"


def _verbs(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "commands"):
        yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _verbs(f"{words} {name}", inner)


def _verb(words: str, command: Any) -> Iterator[str]:
    import typer

    context = typer.Context(command, info_name=words)
    yield from (_paragraphs(command.help or ""), "")
    if (usage := command.collect_usage_pieces(context)) != ["[OPTIONS]"]:
        yield from ("```text", f"{words} {' '.join(usage)}", "```", "")
    if command.epilog:
        yield from (_paragraphs(command.epilog), "")
    panels: dict[str, list[str]] = {}
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and parameter.name != "help":
            panel = getattr(parameter, "rich_help_panel", None) or ""
            panels.setdefault(panel, []).append(_row(*record))
    for panel, rows in panels.items():
        yield from (f"| {panel or 'option'} | what it does |", "| --- | --- |", *rows, "")


def _paragraphs(text: str) -> str:
    """Return help text as Markdown; a paragraph that click leaves as it is (after a backspace) holds commands."""
    parts = []
    for part in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in part.replace("\b", "").strip().splitlines()]
        commands = "\b" in part or all(line.lstrip("$ ").startswith("minialbert ") for line in lines)
        parts.append("\n".join(["```bash", *lines, "```"] if commands else lines))
    return "\n\n".join(parts)


def _names(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar)
    values = "|".join(map(str, action.choices)) if action.choices else action.dest.upper()
    takes = "" if action.nargs == 0 else f" {action.metavar or values}"
    return ", ".join(action.option_strings) + takes


def _row(names: str, help: str) -> str:
    said = help.replace("|", "&#124;").replace("\n", " ").replace("<", "&lt;")
    return f"| `{names}` | {said} |"


def with_reference(markdown: str) -> str:
    """Return `docs/recipes.md` with what stands between its markers, tables of recipes and keys, made anew."""
    from yaml import safe_dump

    from minialbert.recipes.load import list_recipes
    from minialbert.recipes.schema import FinetuneRecipe, Recipe

    lines = ["", "## The shipped recipes", "", "| name | what | paper |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.description} | {row.paper or '-'} |" for row in list_recipes()]
    for title, kind in (("distillation", Recipe), ("fine-tuning", FinetuneRecipe)):
        lines += ["", f"## Every key of a {title} recipe"]
        for name, section in kind.sections().items():
            lines += ["", f"### `{name}`", "", section.__doc__ or "", ""]
            lines += ["| key | default | what |", "|---|---|---|"]
            for key, field in section.model_fields.items():
                what = (field.description or "").replace("|", "&#124;")
                lines.append(f"| `{key}` | `{safe_dump(field.default).splitlines()[0]}` | {what} |")
    begin, end = _REFERENCE
    before, _, rest = markdown.partition(begin)
    return before + begin + "\n".join(lines) + "\n\n" + end + rest.partition(end)[2]


class _Requests(HTMLParser):
    """Collects what a page loads from elsewhere while it is read: no links that a reader follows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the address that a tag loads from, if that is another machine's."""
        address = dict(attrs).get(_REQUESTS.get(tag, "")) or ""
        if re.match(r"(https?:)?//", address) and dict(attrs).get("rel") != "canonical":
            self.found.append(address)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail if a page that was built loads anything from another machine."""
    from mkdocs.exceptions import PluginError

    for file in Path(config.site_dir).rglob("*.html"):
        page = _Requests()
        page.feed(file.read_text(encoding="utf-8"))
        if page.found:
            raise PluginError(
                f"{file.name} would load {', '.join(sorted(set(page.found)))}: a page asks for nothing"
            )


if __name__ == "__main__":
    _PAGE = ROOT / "docs" / "recipes.md"
    _PAGE.write_text(with_reference(_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
