"""Whether `minialbert-runtime serve` answers everybody right under load and beside hostile clients, in flat memory.

    make demo
    python benchmarks/speed/serve_load.py --model runs/demo/packages/int8 --data runs/demo/packages/data \
        --output results/serving

Clients send one to eight texts of the data's test split, one request after the other; each answer is compared with
that of the model in this process. Then fewer of them ask beside clients that send headers or bodies slowly, send huge
bodies, garbage or nested lists, or leave before their answer. Server and clients share the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distillation_step import machine
from minialbert_runtime import Model
from minialbert_runtime.native import has_native

from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
STATUS = re.compile(rb"HTTP/1.1 (\d+)")


class Clients:
    """Clients of one server, and what became of their requests.

    Args:
        port: of the server.
        answers: texts and what the model says of each.
    """

    def __init__(self, port: int, answers: list[dict[str, object]]) -> None:
        self.port, self.answers = port, answers
        self.seconds: list[float] = []
        self.failed: list[str] = []
        self.hostile: Counter[str] = Counter()

    def ask(self, until: float, seed: int) -> None:
        """Ask again and again, over connections that are kept for a while."""
        draw = random.Random(seed)
        while time.monotonic() < until:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as link:
                for _ in range(draw.randint(1, 20)):
                    if time.monotonic() > until:
                        break
                    wanted = draw.choices(self.answers, k=draw.randint(1, 8))
                    began = time.monotonic()
                    try:
                        link.request(
                            "POST", "/predict", json.dumps({"texts": [one["text"] for one in wanted]})
                        )
                        answer = link.getresponse()
                        said = json.loads(answer.read())
                    except (OSError, ValueError, http.client.HTTPException) as error:
                        self.failed.append(f"{type(error).__name__}: {error}")
                        break
                    self.seconds.append(time.monotonic() - began)
                    if answer.status != 200:
                        self.failed.append(f"{answer.status}: {said.get('error')}")
                    elif said["results"] != wanted:
                        self.failed.append("another answer")

    def attack(self, until: float, kind: str) -> None:
        """Be a hostile client again and again; notes what came back."""
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 30) as link:
                link.settimeout(60)
                with contextlib.suppress(OSError):
                    HOSTILE[kind](link)
                    if kind == "leaves":
                        self.hostile[f"{kind}: left"] += 1
                        time.sleep(0.02)
                        continue
                found = None
                with contextlib.suppress(OSError):
                    found = STATUS.match(link.recv(64))
                self.hostile[f"{kind}: {found[1].decode() if found else 'closed'}"] += 1


def slowly(link: socket.socket, content: bytes) -> None:
    """Send a byte a quarter of a second, until the other side has had enough."""
    for byte in content:
        link.sendall(bytes([byte]))
        time.sleep(0.25)


def large(link: socket.socket) -> None:
    """Send 40 MB that are announced."""
    link.sendall(POST + b"Content-Length: 40000002\r\n\r\n[")
    for _ in range(40):
        link.sendall(b" " * 1_000_000)
    link.sendall(b"]")


HOSTILE: dict[str, Callable[[socket.socket], None]] = {
    "slow headers": lambda link: slowly(link, POST + b"X-Header: " + b"a" * 1000),
    "slow body": lambda link: link.sendall(POST + b"Content-Length: 900000\r\n\r\n[" + b" " * 500_000),
    "silent": lambda link: None,
    "huge body": large,
    "garbage": lambda link: link.sendall(random.randbytes(2000) + b"\r\n\r\n"),
    "nested lists": lambda link: link.sendall(POST + b"Content-Length: 200000\r\n\r\n" + b"[" * 200_000),
    "leaves": lambda link: link.sendall(POST + b"Content-Length: 10002\r\n\r\n[\"" + b"word " * 1999 + b"wor\"]"),
}  # fmt: skip


def together(work: list[Callable[[], None]]) -> None:
    """Run functions in threads of their own."""
    threads = [threading.Thread(target=one) for one in work]
    for one in threads:
        one.start()
    for one in threads:
        one.join()


def memory(process: int) -> float:
    """Return the resident memory of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


def watched(process: int, work: list[Callable[[], None]], clients: Clients, seconds: float) -> dict[str, Any]:
    """Return what a phase did; memory is read once a second."""
    clients.seconds, clients.failed, clients.hostile = [], [], Counter()
    used: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(1):
            used.append(memory(process))

    watcher = threading.Thread(target=watch)
    watcher.start()
    together(work)
    over.set()
    watcher.join()
    took = sorted(clients.seconds)
    quarter = max(1, len(used) // 4)
    return {
        "seconds": seconds,
        "requests": len(took),
        "failed": len(clients.failed),
        "failures": dict(Counter(clients.failed).most_common(5)),
        "requests_per_second": len(took) / seconds,
        "median_ms": 1000 * statistics.median(took),
        "p99_ms": 1000 * took[int(0.99 * len(took))],
        "memory_mb": {
            "first_quarter": statistics.mean(used[:quarter]), "last_quarter": statistics.mean(used[-quarter:]),
            "most": max(used),
        },
        "hostile": dict(sorted(clients.hostile.items())),
    }  # fmt: skip


def table(record: dict[str, Any]) -> str:
    """Return what failed, and the memory, as tables; times are in the record alone, since the machine is shared."""
    lines = ["| | requests | failed | memory, first quarter | last quarter |", "|---|---:|---:|---:|---:|"]
    for title, phase in record["phases"].items():
        used = phase["memory_mb"]
        cells = (
            f"{title}, {phase['seconds']:.0f} s", f"{phase['requests']:,}", phase["failed"],
            f"{used['first_quarter']:.0f} MB", f"{used['last_quarter']:.0f} MB",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    by_engine = record["memory_mb_by_models"]
    head = f"times the same model of {record['model_mb']:.1f} MB in one server"
    lines += ["", f"| {head} | {' | '.join(f'memory, {engine}' for engine in by_engine)} |"]
    lines += ["|---" + "|---:" * len(by_engine) + "|"]
    for count in by_engine["onnx"]:
        lines.append(f"| {count} | {' | '.join(f'{used[count]:.0f} MB' for used in by_engine.values())} |")
    return "\n".join(lines) + "\n"


def started(*command: str) -> tuple[subprocess.Popen[str], int]:
    """Return a server that listens, and its port."""
    server = subprocess.Popen(
        [sys.executable, "-m", "minialbert_runtime", *command], stderr=subprocess.PIPE, text=True
    )
    assert server.stderr is not None
    return server, int(next(line for line in server.stderr if "listening" in line).rpartition(":")[2])


def memory_of(model: Path, count: int, engine: str, answers: list[dict[str, object]]) -> float:
    """Return the memory of a server of so many models of the same weights, after a text for each, in MB."""
    models = (f"m{number}={model}" for number in range(count))
    server, port = started("serve", *models, "--engine", engine, "--port", "0")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as link:
        for number in range(count):
            link.request(
                "POST", "/predict", json.dumps({"model": f"m{number}", "texts": [answers[0]["text"]]})
            )
            link.getresponse().read()
        link.request("GET", "/metrics")
        found = re.search(r"process_resident_memory_bytes (\d+)", link.getresponse().read().decode())
    server.terminate()
    server.wait(60)
    assert found
    return int(found[1]) / 1e6


def main() -> None:
    """Serve, ask, attack, stop; write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description="A server under load.")
    parser.add_argument("--model", type=Path, required=True, help="an exported folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.jsonl, rows with a text")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--hostile", type=float, default=60, help="seconds beside hostile clients")
    parser.add_argument("--of-each", type=int, default=15, help="hostile clients of each kind")
    parser.add_argument("--runs", type=int, default=2, help="of the server: requests that run at a time")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    given = parser.parse_args()
    lines = (given.data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    answers = list(Model(given.model).predict(json.loads(line)["text"] for line in lines))
    command = ["serve", str(given.model), "--port", "0", "--runs", str(given.runs), "--client-seconds", "5"]
    size = (given.model / "model.onnx").stat().st_size
    engines = ["onnx", *(["native"] if has_native() else [])]
    models = {
        engine: {count: memory_of(given.model, count, engine, answers) for count in (1, 2, 4)}
        for engine in engines
    }
    server, port = started(*command)
    log: list[str] = []
    threading.Thread(target=lambda: log.extend(server.stderr or []), daemon=True).start()
    clients = Clients(port, answers)

    def well_behaved(count: int, seconds: float) -> list[Callable[[], None]]:
        until = time.monotonic() + seconds
        return [lambda seed=seed: clients.ask(until, seed) for seed in range(count)]  # type: ignore[misc]

    load = os.getloadavg()[0]  # of what else the machine does
    together(well_behaved(given.clients, 5))
    calm = well_behaved(given.clients, given.seconds)
    phases = {f"{given.clients} clients": watched(server.pid, calm, clients, given.seconds)}
    until = time.monotonic() + given.hostile
    attacks: list[Callable[[], None]] = [
        lambda kind=kind: clients.attack(until, kind)  # type: ignore[misc]
        for kind in HOSTILE
        for _ in range(given.of_each if kind not in ("huge body", "leaves") else 2)
    ]
    few = max(1, given.clients // 10)
    name = f"{few} clients beside {len(attacks)} hostile ones"
    phases[name] = watched(server.pid, well_behaved(few, given.hostile) + attacks, clients, given.hostile)
    server.send_signal(signal.SIGTERM)
    status = server.wait(120)
    record = {
        "kind": "serve-load", "command": f"minialbert-runtime {' '.join(command)}".replace(str(given.model), "MODEL"),
        "texts_per_request": "1 to 8", "model_mb": size / 1e6, "memory_mb_by_models": models,
        "phases": phases, "exit_status": status,
        "tracebacks": sum("Traceback" in line for line in log), "log_lines": len(log),
        "load_average": load, "machine": machine(),
    }  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    write_result(given.output / "result.json", record)
    write_atomically(given.output / "table.md", table(record))
    print(table(record), record["phases"], sep="\n")


if __name__ == "__main__":
    main()
