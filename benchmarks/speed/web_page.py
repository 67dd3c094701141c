"""What a page with a student costs: bytes that a browser fetches, time to the first answer, and time of an answer.

    npm install --no-save --ignore-scripts onnxruntime-web@VERSION @huggingface/tokenizers@VERSION
    python benchmarks/speed/web_page.py --tokenizer TEACHER --output results/web-page

A tagger of 3.9 M parameters (3 iterations, width 384, rank 64) with random weights, exported with `--to web`. A server
on this machine sends its files as they are, with gzip, or with Brotli, and counts; each load is one of a new browser
with an empty cache. Answers are those of a text of 64 tokens, in turns: Chromium and Node with one thread of
WebAssembly, and the Python runtime with one thread.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from distillation_step import machine
from minialbert_runtime import Model

from minialbert import MiniAlbertConfig, MiniAlbertForTokenClassification, export
from minialbert.data.tokenizers import load_tokenizer
from minialbert.deploy.web import PACKAGES
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result
from minialbert.tasks.models import TaskInputs, save_tuned

TAGS = ("O", "B-Disease", "I-Disease")
TOKENS = 64
ENCODINGS = {"as they are": "", "gzip": "gzip", "Brotli": "br"}
COMPRESS = """
const zlib = require("node:zlib"), fs = require("node:fs");
const [folder, ...names] = process.argv.slice(1);
for (const name of names) {
  const content = fs.readFileSync(`${folder}/${name}`);
  const params = { [zlib.constants.BROTLI_PARAM_QUALITY]: 11, [zlib.constants.BROTLI_PARAM_LGWIN]: 24 };
  fs.writeFileSync(`${folder}/${name}.gzip`, zlib.gzipSync(content, { level: 9 }));
  fs.writeFileSync(`${folder}/${name}.br`, zlib.brotliCompressSync(content, { params }));
}
"""
ANSWER = """
const model = await load();
const times = [];
for (let run = 0; run < count + 5; run++) {
  const started = performance.now();
  await model.predict(text);
  times.push(performance.now() - started);
}
const found = times.slice(5);
"""


def build_site(tokenizer: str, modules: Path, folder: Path) -> dict[str, Any]:
    """Write the tagger and its folder for the web; return the record of the export."""
    config = MiniAlbertConfig(
        vocab_size=30522, embedding_size=64, hidden_size=384, num_hidden_layers=3, num_attention_heads=12,
        intermediate_size=1536, max_position_embeddings=512, id2label=dict(enumerate(TAGS)),
        label2id={tag: index for index, tag in enumerate(TAGS)},
    )  # fmt: skip
    torch.manual_seed(0)
    model = MiniAlbertForTokenClassification(config).eval()
    save_tuned(model, load_tokenizer(tokenizer), TaskInputs("web", "token", "f1", 512, 64), folder / "model")
    record = export(folder / "model", folder / "site", to="web", vendor=modules, progress=False).record
    names = [path.relative_to(folder / "site") for path in (folder / "site").rglob("*") if path.is_file()]
    subprocess.run(["node", "--eval", COMPRESS, str(folder / "site"), *map(str, names)], check=True)
    return record


@contextmanager
def serving(folder: Path, encoding: str) -> Iterator[tuple[str, list[int]]]:
    """Yield the address of a server of the folder, and the bytes of every answer that it sent."""
    sent: list[int] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            path = Path(
                self.translate_path(self.path.removesuffix("/") + "/index.html" * self.path.endswith("/"))
            )
            content = (path.with_name(f"{path.name}.{encoding}") if encoding else path).read_bytes()
            sent.append(len(content))
            self.send_response(200)
            self.send_header("Content-Type", self.guess_type(str(path)))
            self.send_header("Content-Length", str(len(content)))
            if encoding:
                self.send_header("Content-Encoding", encoding)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", sent
    server.shutdown()


@contextmanager
def new_browser() -> Iterator[Any]:
    """Yield a Chromium with an empty profile."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    with tempfile.TemporaryDirectory() as profile:
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"):
            options.add_argument(argument)
        service = webdriver.ChromeService(executable_path=shutil.which("chromedriver"))
        browser = webdriver.Chrome(options=options, service=service)
        browser.set_script_timeout(300)
        yield browser
        browser.quit()


def first_answer(browser: Any, address: str) -> float:
    """Return the seconds from the address to a page that answers."""
    browser.get(address)
    while not (loaded := browser.execute_script("return document.documentElement.dataset.loaded")):
        time.sleep(0.02)
    return int(loaded) / 1000


def in_browser(browser: Any, text: str, count: int) -> list[float]:
    """Return milliseconds of answers in the page's browser, on one thread."""
    script = f"""
    const [text, count, done] = arguments;
    (async () => {{
      const {{ load }} = await import(location.origin + "/minialbert.js");
      {ANSWER}
      return found;
    }})().then(done, (error) => done(String(error)));
    """
    return browser.execute_async_script(script, text, count)


def in_node(site: Path, text: str, count: int) -> list[float]:
    """Return milliseconds of answers in Node, on one thread."""
    head = f"const text = {json.dumps(text)}, count = {count};"
    program = f'import {{ load }} from "{(site / "minialbert.js").as_uri()}"; {head} {ANSWER}'
    command = ["node", "--input-type=module", "--eval", f"{program} console.log(JSON.stringify(found));"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def in_python(site: Path, text: str, count: int) -> list[float]:
    """Return milliseconds of answers of the Python runtime, on one thread."""
    model, times = Model(site, threads=1), []
    for _ in range(count + 5):
        started = time.perf_counter()
        model(text)
        times.append(1000 * (time.perf_counter() - started))
    return times[5:]


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    seconds = record["first_answer_seconds"]
    lines = [
        "| the server sends | MB fetched, all files | seconds to the first answer, new browser |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {size / 1e6:.2f} | {seconds[name]:.2f} |" for name, size in record["fetched"].items()
    ]
    head = f"a text of {record['tokens']} tokens, int8, one thread"
    lines += ["", f"| {head} | ms, median | 95 of 100 within |", "|---|---|---|"]
    lines += [
        f"| {name} | {one['p50']:.1f} | {one['p95']:.1f} |" for name, one in record["answers_ms"].items()
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizer", required=True, help="directory or hub id, of at most 30,522 entries")
    parser.add_argument("--vendor", type=Path, default=Path("node_modules"))
    parser.add_argument("--count", type=int, default=50, help="answers of each engine in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    given = parser.parse_args()
    text = " ".join(["fever"] * (TOKENS - 2))
    milliseconds: dict[str, list[float]] = {"Chromium": [], "Node": [], "Python runtime": []}
    fetched, seconds = {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        record = build_site(given.tokenizer, given.vendor, Path(scratch))
        site = Path(scratch) / "site"
        for name, encoding in ENCODINGS.items():
            loads = []
            for _ in range(given.turns):
                with serving(site, encoding) as (address, sent), new_browser() as browser:
                    loads.append(first_answer(browser, address))
                    fetched[name] = sum(sent)
                    if not encoding:
                        again = first_answer(browser, address)
                        milliseconds["Chromium"] += in_browser(browser, text, given.count)
                if not encoding:
                    milliseconds["Node"] += in_node(site, text, given.count)
                    milliseconds["Python runtime"] += in_python(site, text, given.count)
            seconds[name] = statistics.median(loads)
        files = {path.name: path.stat().st_size for path in (site, *site.rglob("*.br")) if path.is_file()}
    answers = {
        name: {"p50": statistics.median(times), "p95": statistics.quantiles(times, n=20)[-1]}
        for name, times in milliseconds.items()
    }
    browser_line = subprocess.run(
        ["chromium", "--version"], capture_output=True, text=True, check=True
    ).stdout
    result = {
        "kind": "web-page", "parameters": record["model"]["parameters"], "bytes": record["bytes"], "tokens": TOKENS,
        "fetched": fetched, "first_answer_seconds": seconds, "later_visit_seconds": again, "answers_ms": answers,
        "brotli_bytes": files, "packages": PACKAGES, "browser": browser_line.strip(), "machine": machine(),
    }  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    write_result(given.output / "result.json", result)
    write_atomically(given.output / "table.md", table(result))
    print(table(result))


if __name__ == "__main__":
    main()
