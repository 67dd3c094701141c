"""Every `bash` and `python` block of README.md and docs/ runs as written, page by page, in one folder per page."""

from __future__ import annotations

import socket
import time

import pytest
from blocks import EXECUTED, ROOT, SHOWN, Block, blocks_of, pages, parsed
from warm import Page
from world import a_world

# Of all blocks that could be run, those that are not: each says why in its page, and `make test-docs` prints the list.
MOST_NOT_RUN = 18

# Pages that begin with what others leave: "Each step starts from the files of the one before".
BEGIN_WITH = {
    "docs/air-gapped.md": ["tuned"],
    "docs/annotations.md": ["run"],
    "docs/certificate.md": ["tuned"],
    "docs/deployment.md": ["windows", "run", "tuned"],
    "docs/method.md": ["windows", "run"],
    "docs/python.md": ["windows", "tuned"],
    "docs/recipes.md": ["windows"],
    "docs/serving.md": ["tuned"],
    "docs/tasks.md": ["run"],
}

# Names that pages take for granted, and say so.
NAMES = """
from pathlib import Path
teacher, folder = "bert-base-uncased", Path("mine")
folder.mkdir()
texts = [f"{text}." for text in open("notes.txt").read().split(".") if text.strip()]
rows = [(f"this is a {word} film", label) for word, label in (("great", "good"), ("poor", "bad")) * 20]
"""


@pytest.mark.parametrize("page", pages())
def test_every_block_says_what_it_is(page):
    for block in blocks_of(page):
        known = block.language in (*EXECUTED, *SHOWN)
        assert known, f"{block.place}: a fence names its language, one of {EXECUTED} or {SHOWN}"
        assert block.reason is None or block.language in EXECUTED, f"{block.place}: would not run anyway"


def test_a_page_is_read_as_a_reader_meets_it():
    text = "a\n```bash\none\n```\n<!-- not run: no hub -->\n```bash\ntwo\n```\n"
    text += '- b\n  ```python title="s.py"\n  x\n  ```\n'
    found = [
        (block.line, block.language, block.title, block.reason, block.code) for block in parsed("p", text)
    ]
    assert found == [
        (2, "bash", None, None, "one\n"),
        (6, "bash", None, "no hub", "two\n"),
        (10, "python", "s.py", None, "x\n"),
    ]
    assert [block.runs for block in parsed("p", text)] == [True, False, False]


def test_few_blocks_are_not_run():
    left_out = [block for page in pages() for block in blocks_of(page) if block.reason is not None]
    assert len(left_out) <= MOST_NOT_RUN, [block.place for block in left_out]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    with a_world(tmp_path_factory.mktemp("w")) as made:
        yield made


def run(block: Block, world, folder, page: Page) -> None:
    """Run a block, or save it as the file that it is."""
    if block.title is not None:
        (folder / block.title).write_text(block.code, encoding="utf-8")
    elif block.language == "bash":
        world.bash(block.code, folder)
    else:
        # Errors tell lines of the page itself.
        page.run("\n" * block.line + block.code, str(ROOT / block.page))


@pytest.mark.docs
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in pages() if any(block.runs for block in blocks_of(page))])
def test_the_blocks_of_a_page_run(page, world):
    if "8080" in (ROOT / page).read_text(encoding="utf-8"):
        _wait_for_port(8080)
    folder = world.page_folder(page.replace("/", "-"), BEGIN_WITH.get(page, ()))
    printed = folder / ".printed-by-python"
    failures = []
    with Page(world.socket, folder, world.environment, NAMES, printed) as python:
        for block in blocks_of(page):
            if block.reason is not None:
                print(f"{block.place} not run: {block.reason}")  # noqa: T201
            if not (block.runs or block.title):
                continue
            began = time.monotonic()
            try:
                run(block, world, folder, python)
            except Exception as error:
                failures.append(f"{block.place}: {error}")
            print(f"{block.place} {time.monotonic() - began:.1f} s")  # noqa: T201
    world.end_blocks()
    assert not failures, "\n\n".join(failures)


def _wait_for_port(number: int) -> None:
    """Wait until nobody else on this machine listens at a port that a page names."""
    for _ in range(60):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", number)):
                return
        time.sleep(1)
    pytest.skip(f"port {number} is taken on this machine")
