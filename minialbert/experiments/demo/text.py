"""The demo's text: what every Python carries, its help topics and the docstrings of its standard library."""

from __future__ import annotations

import ast
import hashlib
import sysconfig
import warnings
from collections import defaultdict
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

# Parts of the standard library without documentation of their own, or that are tests.
_SKIPPED = {
    "test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "__pycache__", "turtledemo", "_vendor",
}  # fmt: skip
_HELD_OUT_SHARE = 8  # one module in eight
_SHORTEST_DOCUMENT = 200  # characters; below that a docstring says too little to compare
_COMPARED_DOCUMENTS = 200

_CLASSES = 8
_FEWEST_MODULES = 8  # of a package, so that its docstrings can be parted by module
_SHORTEST_EXAMPLE = 60  # characters
_TEST_SHARE = 0.25


@dataclass(frozen=True)
class NamedText:
    """A docstring or help topic, and where it stands ("textwrap.dedent")."""

    name: str
    text: str


def python_texts() -> tuple[list[NamedText], list[NamedText]]:
    """Return the demo's text: per module for training, and single docstrings of other modules for comparison.

    Documents to train on are all docstrings of a module, or a help topic. A module is on one side only, decided by a
    hash of its name, so that no text is on both.
    """
    from pydoc_data.topics import topics

    training = [NamedText(f"help({name})", _squeeze(text)) for name, text in sorted(topics.items())]
    held_out: list[NamedText] = []
    seen: set[str] = set()
    for module, path in _modules():
        found = [document for document in _docstrings(path, module) if document.text not in seen]
        seen.update(document.text for document in found)
        if not found:
            continue
        if int(_hashed(module), 16) % _HELD_OUT_SHARE == 0:
            held_out += [document for document in found if len(document.text) >= _SHORTEST_DOCUMENT]
        else:
            training.append(NamedText(module, "\n".join(document.text for document in found)))
    held_out.sort(key=lambda document: _hashed(document.name))
    return training, held_out[:_COMPARED_DOCUMENTS]


def package_texts() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return a small real classification task: from which package of the standard library a docstring comes.

    It is training and test examples, as pairs of docstring and package, in an order that does not depend on the
    machine. The classes are the packages with most docstrings among those of at least eight modules. All docstrings of
    a module are on one side, so that nothing about a module seen in training helps on the other.
    """
    modules: dict[str, dict[str, list[str]]] = defaultdict(dict)
    for module, path in _modules():
        package = module.partition(".")[0]
        texts = [document.text for document in _docstrings(path, module)]
        modules[package][module] = [text for text in texts if len(text) >= _SHORTEST_EXAMPLE]
    counts = {
        package: sum(map(len, parts.values()))
        for package, parts in modules.items()
        if sum(bool(texts) for texts in parts.values()) >= _FEWEST_MODULES
    }
    training: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    seen: set[str] = set()
    for package in sorted(sorted(counts), key=lambda name: -counts[name])[:_CLASSES]:
        wanted, taken = _TEST_SHARE * counts[package], 0
        for module in sorted(modules[package], key=_hashed):
            texts = [text for text in modules[package][module] if text not in seen]
            seen.update(texts)
            # A module that alone would be most of a package's test part stays in training.
            is_test = taken + len(texts) <= 1.2 * wanted
            taken += len(texts) if is_test else 0
            (test if is_test else training).extend((text, package) for text in texts)
    shuffled = partial(sorted, key=lambda example: _hashed(example[0]))
    return shuffled(training), shuffled(test)


@cache  # the demo's two tasks both read the whole library
def _modules() -> list[tuple[str, Path]]:
    modules = []
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if _SKIPPED & set(parts) or any(part.startswith("config-") for part in parts):
            continue
        modules.append((".".join(part for part in parts if part != "__init__"), path))
    return modules


def _hashed(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _docstrings(path: Path, module: str) -> list[NamedText]:
    """Return the docstrings of a source file, which is parsed and never imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return []
    found = []

    def visit(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> None:
        if text := ast.get_docstring(node):
            found.append(NamedText(name, _squeeze(text)))
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{name}.{child.name}")

    visit(tree, module)
    return found


def _squeeze(text: str) -> str:
    """Return a text without blank lines, which separate documents in a corpus file."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())
