"""What the source itself may not hold: readers that run what they read, downloads of our own, code from models."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    [*(ROOT / "minialbert").rglob("*.py"), *(ROOT / "runtime" / "minialbert_runtime").rglob("*.py")]
)
# Downloads go through huggingface_hub; archives are never unpacked; these readers run what they read.
MODULES = {
    "urllib", "urllib3", "http", "requests", "httpx", "aiohttp", "ftplib", "socket", "smtplib", "telnetlib", "xmlrpc",
    "tarfile", "zipfile", "dill", "cloudpickle", "joblib", "marshal", "shelve", "runpy", "code", "pty", "imp",
}  # fmt: skip
# Between a process and the one that it started, over pipes that nobody else holds.
PIPES = {"minialbert/data/tokenizers.py", "runtime/minialbert_runtime/encoding.py"}
# What listens where it is told to, and what watches that nothing asks a network.
SOCKETS = {f"{number}: socket" for number in range(1, 20)}
LISTENERS = {"runtime/minialbert_runtime/server.py", "runtime/minialbert_runtime/offline.py"}
# Named by their own class, which reads no code; everything else says so.
OWN = ("MiniAlbert", "Bert", "super")


def breaches(source: str, name: str = "minialbert/x.py") -> list[str]:
    """Return what a file may not hold, with line numbers."""
    tree = ast.parse(source)
    return sorted({f"{node.lineno}: {told}" for node in ast.walk(tree) for told in _told(node, name)})


def _told(node: ast.AST, name: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        module = node.module or ""
        if module.partition(".")[0] in MODULES or (
            module == "pickle" and {alias.name for alias in node.names} - {"UnpicklingError"}
        ):
            yield module
    elif isinstance(node, ast.Call):
        yield from _told_of_call(node, ast.unparse(node.func), name)


def _told_of_call(node: ast.Call, called: str, name: str) -> Iterator[str]:
    keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    owner, _, method = called.rpartition(".")
    if called in (
        "eval",
        "exec",
        "compile",
        "__import__",
        "input",
        "os.system",
        "os.popen",
        "torch.hub.load",
    ):
        yield called
    if owner == "pickle" and method in ("load", "loads", "Unpickler") and name not in PIPES:
        yield called
    if owner == "yaml" and method.endswith("load") and method != "safe_load":
        yield called
    if owner in ("np", "numpy") and method == "load" and keywords.get("allow_pickle") != "False":
        yield f"{called} without allow_pickle=False"
    if owner in ("torch", "torch.jit") and method == "load" and keywords.get("weights_only") != "True":
        yield f"{called} without weights_only=True"
    if keywords.get("shell", "False") != "False":
        yield "shell"
    if keywords.get("allow_pickle", "False") != "False" or keywords.get("weights_only", "True") != "True":
        yield "a pickle"
    loads = method in ("from_pretrained", "from_config") and not owner.startswith(OWN)
    if keywords.get("trust_remote_code", None if loads else "False") != "False":
        yield f"{called} without trust_remote_code=False"
    for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
        if isinstance(argument, ast.Constant) and str(argument.value).startswith(
            ("http://", "https://", "ftp://")
        ):
            yield f"{called} of an address"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_holds_nothing_that_runs_data_or_downloads_by_itself(file):
    name = file.relative_to(ROOT).as_posix()
    allowed = SOCKETS if name in LISTENERS else set()
    assert not set(breaches(file.read_text(encoding="utf-8"), name)) - allowed


@pytest.mark.parametrize(
    "source",
    [
        "import urllib.request", "from http import client", "import requests as r", "import tarfile",
        "from pickle import loads", "pickle.load(file)", "pickle.loads(b'')", "eval('1')", "exec('1')",
        "yaml.load(t, L)",
        "yaml.unsafe_load(t)", "np.load(f)", "np.load(f, allow_pickle=True)", "torch.load(f)",
        "torch.load(f, weights_only=False)", "subprocess.run('ls', shell=True)", "os.system('ls')",
        "AutoConfig.from_pretrained(name)", "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "Auto.from_config(config)", "load_dataset(n, trust_remote_code=True)", "open_it('https://example.org/x')",
        "input('y?')",
    ],
)  # fmt: skip
def test_what_is_looked_for_is_found(source):
    assert len(breaches(source)) >= 1


def test_what_is_allowed_is_not_found():
    allowed = """
import pickle
from pickle import UnpicklingError
model.eval()
torch.compile(model)
torch.load(f, map_location="cpu", weights_only=True)
yaml.safe_load(text)
AutoModel.from_pretrained(name, trust_remote_code=False)
MiniAlbertConfig.from_pretrained(folder)
super().from_pretrained(folder)
URL = "https://example.org"
"""
    assert breaches(allowed) == []


def test_the_pipes_of_child_processes_are_the_only_pickles():
    found = {
        file.relative_to(ROOT).as_posix()
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("pickle.load", "pickle.loads")
    }
    assert found == PIPES
    for name in PIPES:
        calls = [
            ast.unparse(node)
            for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pickle.load"
        ]
        assert set(calls) <= {"pickle.load(answers)", "pickle.load(sys.stdin.buffer)"}
