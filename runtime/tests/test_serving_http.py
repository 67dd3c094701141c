"""The service over HTTP: answers of the model, limits, faults of clients, what it says of itself, and how it stops."""

import contextlib
import http.client
import json
import logging
import math
import re
import signal
import socket
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from conftest import IDS, VOCABULARY, counting_table
from test_cli import start

from minialbert_runtime import Model, RuntimeUserError, __version__

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

from minialbert_runtime.cli import main
from minialbert_runtime.limits import Limits
from minialbert_runtime.server import Server, serve
from minialbert_runtime.serving import Counts, ServedModel, Service


@contextlib.contextmanager
def serving(models, **limits):
    """A server of folders by name, and ways to ask it."""
    limits = Limits(**limits)
    served = {
        name: ServedModel(name, folder, threads=1, max_characters=limits.max_characters)
        for name, folder in models.items()
    }
    server = Server(Service(served, limits), "127.0.0.1", 0)
    port = int(server.url.rpartition(":")[2])
    thread = threading.Thread(target=server.run)
    thread.start()

    def ask(path, body=None, method=None, **headers):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(
                method or ("GET" if body is None else "POST"),
                path,
                content,
                {name.replace("_", "-"): value for name, value in headers.items()},
            )
            answer = connection.getresponse()
            read = answer.read()
            kind = answer.getheader("content-type", "")
            return SimpleNamespace(
                status=answer.status, headers=answer.headers, said=json.loads(read) if "json" in kind else read.decode()
            )  # fmt: skip

    def raw(*parts, close=False, pause=0.0):
        """Send bytes as they are; returns all that comes until the server closes."""
        with socket.create_connection(("127.0.0.1", port), timeout=20) as link:
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    link.sendall(part)
                    time.sleep(pause)
            if close:
                link.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: link.recv(65536), b""))

    try:
        yield SimpleNamespace(ask=ask, raw=raw, server=server, models=served, port=port)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def folder(exported, tmp_path):
    """Write one more exported folder."""

    def write(name, *arguments, **options):
        return exported(*arguments, **options).rename(tmp_path / name)

    return write


@pytest.fixture
def tagged(folder):
    table = np.zeros((len(VOCABULARY), 4))
    table[:, 0] = 3
    table[IDS["city"], 1] = 9
    return folder("tagger", "token", ("O", "B-City", "I-City", "B-King"), table)


@pytest.fixture
def counted(folder):
    return folder("counter", "single-label", ("a", "b", "c"), counting_table())


@pytest.fixture
def encoder(folder):
    made = folder("encoder", "single-label", ("0", "1", "2"), counting_table())
    head = json.loads((made / "export.json").read_text())
    vectors = {"size": 3, "max_length": 16, "prompts": {"query": "new "}}
    (made / "export.json").write_text(json.dumps(head | {"head": "features", "vectors": vectors}))
    graph = onnx.load(str(made / "model.onnx"))
    graph.graph.output[0].name = graph.graph.node[-1].output[0] = "sentence_embedding"
    onnx.save(graph, str(made / "model.onnx"))
    return made


def test_answers_are_those_of_the_model(tagged, counted):
    with serving({"default": tagged, "count": counted}) as at:
        texts = ["the new city 🏙 city", "", "king" * 40]
        answer = at.ask("/predict", {"texts": texts})
        model = Model(tagged)
        assert answer.status == 200 and answer.said["results"] == [model(text) for text in texts]
        assert answer.said["model"] == {"name": "default", "version": at.models["default"].version}
        assert answer.said["request_id"] == answer.headers["x-request-id"]
        assert answer.headers["x-model-version"] == at.models["default"].version
        other = Model(counted)
        asked = {"model": "count", "pairs": [["king", "river"]]}
        assert at.ask("/predict", asked).said["results"] == [other("king", "river")]
        documents = [{"id": {"note": 7}, "text": "king"}, {"text": "king", "pair": "river"}]
        assert at.ask("/predict", {"model": "count", "documents": documents}).said["results"] == [
            {"id": {"note": 7}, **other("king")},
            other("king", "river"),
        ]
        # A list alone, as earlier examples had it.
        assert at.ask("/predict", ["a city", "b"]).said["results"] == [model("a city"), model("b")]
        assert at.ask("/predict", {"texts": []}).said["results"] == []
        assert at.ask("/predict", b'\xef\xbb\xbf["a city"]').said["results"] == [model("a city")]


REFUSED = [
    (b"", 400, "Expecting value at character 0"),
    (b"king", 400, "Expecting value"),
    (b"\xff", 400, "byte 0 is not UTF-8"),
    (b"[NaN]", 400, "NaN is not a number"),
    (b"[" * 100_000, 400, "nested too deeply"),
    (b"[" + b"9" * 5000 + b"]", 400, "not JSON in UTF-8"),
    (b'{"texts": ["a"], "texts": ["b"]}', 400, "the field 'texts' is there twice"),
    (b'{"documents": [{"text": "a", "text": "b"}]}', 400, "the field 'text' is there twice"),
    (b'"king"', 422, "found str"),
    (b'{"text": "king"}', 422, "unknown field 'text'; did you mean texts?"),
    (b'{"texts": "king"}', 422, "with a list"),
    (b'{"texts": ["a"], "pairs": []}', 422, "with a list"),
    (b"{}", 422, "with a list"),
    (b'{"texts": [1]}', 422, "found int"),
    (b'{"texts": ["a", ["a", "b", "c"]]}', 422, "text 2: expected a text or a pair"),
    (b'{"pairs": ["a"]}', 422, "lists of two texts"),
    (b'{"documents": ["a"]}', 422, 'objects with a "text"'),
    (b'{"documents": [{"text": "a", "note": 7}]}', 422, 'a "pair", and nothing else'),
    (b'{"texts": ["\\ud800"]}', 400, "half of a surrogate pair"),
    (b'{"documents": [{"id": "\\ud83d", "text": "a"}]}', 400, "half of a surrogate pair"),
    (b'{"documents": [{"id": [-1e400], "text": "a"}]}', 400, "a number is out of range"),
    (b'{"texts": [["a", "b"]]}', 422, "entities are found in single texts"),
    (json.dumps(["a" * 1001]).encode(), 422, "1,001 characters, and the limit is 1,000"),
    (json.dumps([""] * 21).encode(), 422, "21 texts, and the limit is 20"),
    (b'{"texts": [], "model": "other"}', 404, "no model 'other': expected one of default"),
    (b'{"texts": [], "model": [1]}', 404, "no model"),
    (b"[" + b" " * 300_000 + b"]", 413, "over 200,000 bytes"),
]


def test_what_is_refused_has_one_line_and_a_status_and_the_next_request_is_answered(tagged):
    with serving({"default": tagged}, max_bytes=200_000, max_texts=20, max_characters=1000) as at:
        for body, status, message in REFUSED:
            answer = at.ask("/predict", body)
            assert (answer.status, message in answer.said["error"]) == (status, True), (body[:50], answer)
            assert "\n" not in answer.said["error"] and answer.said["request_id"]
        lost = "there is no such path: the page /docs shows all"
        for path, method, status, allowed, message in (
            ("/predict", "GET", 405, "POST", "/predict takes POST: the page /docs shows how"),
            ("/predict", "PUT", 405, "POST", "/predict takes POST: the page /docs shows how"),
            ("/healthz", "POST", 405, "GET HEAD", "/healthz takes GET or HEAD: the page /docs shows how"),
            ("/other?text=secret", "GET", 404, "", lost),
            ("/healthz/", "GET", 404, "", lost),
            ("/healthz?" + "a" * 33_000, "GET", 400, "", "the headers have over 32,768 bytes"),
        ):
            answer = at.ask(path, method=method)
            assert (answer.status, answer.said["error"]) == (status, message) and answer.said["request_id"]
            assert sorted(answer.headers.get("allow", "").split(", ")) == allowed.split(" ")
        assert at.ask(f"HTTP://127.0.0.1:{at.port}/healthz?a=b").said == {"status": "ok"}
        assert at.ask("http://a.example").status == 200 and at.ask("http://a.example/x").said["error"] == lost
        assert at.ask("/http://a.example/healthz").said["error"] == lost
        assert at.ask("/embed", {"texts": ["a"]}).said["error"].startswith("a token model gives no vectors")
        assert at.ask("/predict", ["city"]).status == 200


def test_vectors_of_a_sentence_encoder(encoder):
    with serving({"default": encoder}) as at:
        model = Model(encoder)
        answer = at.ask("/embed", {"texts": ["king", "new river king"]})
        assert answer.said["vectors"] == model.embed(["king", "new river king"]).tolist()
        assert answer.said["model"]["version"] == at.models["default"].version
        cut = at.ask("/embed", {"texts": ["king"], "prompt": "query", "dim": 2})
        assert cut.said["vectors"] == model.embed(["king"], dim=2, prompt="new ").tolist()
        assert "no prompt 'other'" in at.ask("/embed", {"texts": ["a"], "prompt": "other"}).said["error"]
        unit = at.ask("/embed", {"texts": ["king"], "normalize": True})
        assert math.hypot(*unit.said["vectors"][0]) == pytest.approx(1)
        assert unit.said["vectors"] == model.embed(["king"], normalize=True).tolist()
        for wrong in ({"dim": "3"}, {"dim": True}, {"dim": 4}, {"prompt": 3}, {"normalize": "yes"}):
            assert at.ask("/embed", {"texts": ["a"], **wrong}).status == 422
        assert at.ask("/embed", {"pairs": [["a", "b"]]}).status == 422
        assert "vector" in at.ask("/predict", ["king"]).said["results"][0]
        assert at.ask("/models").said["models"][0]["labels"] == []


def blocked(monkeypatch):
    """Let every run wait for the event that is returned."""
    go, plain = threading.Event(), ServedModel._run

    def run(self, rows, session):
        go.wait(10)
        return plain(self, rows, session)

    monkeypatch.setattr(ServedModel, "_run", run)
    return go


def test_a_full_queue_is_told_and_those_in_it_are_answered(counted, monkeypatch):
    go, answers = blocked(monkeypatch), []
    with serving({"default": counted}, runs=1, queue=2) as at:
        asking = [
            threading.Thread(target=lambda: answers.append(at.ask("/predict", ["king"]).status))
            for _ in range(3)
        ]
        for one in asking:
            one.start()
        while at.server.service._pending() < 3:
            time.sleep(0.01)
        refused = at.ask("/predict", ["king"])
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert at.ask("/readyz").status == 503 and at.ask("/healthz").status == 200
        assert "minialbert_pending 3" in at.ask("/metrics").said
        go.set()
        for one in asking:
            one.join(10)
        assert answers == [200] * 3
        assert at.ask("/readyz").said == {"status": "ready"}


def test_a_request_that_takes_too_long_is_told_and_stops(counted, monkeypatch):
    runs = []

    def run(self, rows, session):
        time.sleep(0.05)
        runs.append(len(rows))
        return np.zeros((len(rows), 3), np.float32)

    monkeypatch.setattr(Model, "_run", run)
    with serving({"default": counted}, seconds=0.3) as at:
        answer = at.ask("/predict", ["king " * 2000])  # hundreds of windows
        assert answer.status == 503 and "within 0.3 seconds" in answer.said["error"]
        time.sleep(0.2)
        ended = len(runs)
        assert 0 < ended < 10
        assert at.ask("/predict", ["king"]).status == 200


def test_a_model_that_cannot_run_and_an_error_of_ours_quote_no_text(counted, monkeypatch, caplog):
    with serving({"default": counted}) as at, caplog.at_level("INFO"):
        monkeypatch.setattr(ServedModel, "predict", lambda self, texts: 1 / 0)
        assert at.ask("/predict", ["secret"]).status == 500
        monkeypatch.undo()
        monkeypatch.setattr(
            Model, "_run", lambda self, rows, session: (_ for _ in ()).throw(RuntimeUserError("no run"))
        )
        answer = at.ask("/predict", ["secret"])
        assert (answer.status, answer.said["error"]) == (500, "the model default failed: no run")
        monkeypatch.undo()
        assert at.ask("/predict", {"texts": ["secret", 1]}).status == 422
        assert (
            at.ask("/predict?q=secret", ["secret"], X_Request_ID="mine-1").headers["x-request-id"] == "mine-1"
        )
        assert at.ask("/secret", x_request_id="not one\tid").headers["x-request-id"] != "not one\tid"
    lines = [one.getMessage() for one in caplog.records if one.name.startswith("minialbert_runtime")]
    assert any(
        re.match(r"id=mine-1 POST /predict 200 texts=1 model=default [\d.]+ ms", line) for line in lines
    )
    assert any("ZeroDivisionError at test_serving_http.py:" in line for line in lines)
    assert "secret" not in caplog.text


# Clients


POST = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
FINE = POST + b'Content-Length: 8\r\n\r\n["king"]'


def test_clients_that_are_not_http_are_answered(counted):
    with serving({"default": counted}) as at:
        for sent in (
            b"\x00\x01\x02\r\n\r\n",
            POST + b"Content-Length: abc\r\n\r\n",
            POST + b"Content-Length: -1\r\n\r\n",
            POST + b"Content-Length: 1" + b"0" * 30 + b"\r\n\r\n",
            POST + b"Connection: close\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
            POST + b"Connection: close\r\nX: " + b"a" * 33_000 + b'\r\nContent-Length: 8\r\n\r\n["king"]',
            POST + b"Connection: close\r\n" + b"X: a\r\n" * 20_000 + b'Content-Length: 8\r\n\r\n["king"]',
            POST + b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
        ):
            answer = at.raw(sent)
            assert answer.startswith(b"HTTP/1.1 400 ") and b'{"error": ' in answer, (sent[:80], answer)
        # A client that closes its half, or sends two requests at once, has its answers.
        assert b'"label": "a"' in at.raw(FINE, close=True)
        assert at.raw(FINE, FINE, close=True).count(b'"label": "a"') == 2
        chunked = POST + b'Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n8\r\n["king"]\r\n0\r\n\r\n'
        assert b'"label": "a"' in at.raw(chunked)


def test_a_client_that_sends_too_much_reads_why(counted):
    with serving({"default": counted}, max_bytes=10_000) as at:
        for path in ("/predict", "/other", "/healthz"):
            answer = at.ask(path, b"[" + b" " * 900_000 + b"]")  # sent to its end before the answer is read
            assert answer.status in (404, 405, 413)
            assert answer.headers["connection"] == "close"
        endless = POST + b"Transfer-Encoding: chunked\r\n\r\n" + (b"ffff\r\n" + b" " * 65535 + b"\r\n") * 5
        assert b" 413 " in at.raw(endless + b"0\r\n\r\n")
        waits = at.raw(POST + b"Content-Length: 99999\r\nExpect: 100-continue\r\n\r\n")
        assert waits.startswith(b"HTTP/1.1 413")


def test_clients_that_left_take_no_place_in_the_queue(counted, monkeypatch):
    go, served = blocked(monkeypatch), []
    plain = Model._run
    monkeypatch.setattr(
        Model, "_run", lambda self, rows, session: served.append(1) or plain(self, rows, session)
    )
    with serving({"default": counted}, runs=1, queue=3) as at:
        monkeypatch.setattr("minialbert_runtime.serving._PATIENCE", 0.05)
        first = threading.Thread(target=at.ask, args=("/predict", ["king"]))
        first.start()
        while not at.server.service._waiting:
            time.sleep(0.01)
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", at.port)) as link:
                link.sendall(FINE)
        until = time.monotonic() + 8
        while at.server.service._counts.requests["/predict", 503] < 3 and time.monotonic() < until:
            time.sleep(0.01)
        assert at.server.service._pending() == len(at.server.service._waiting) == 1
        assert at.ask("/readyz").status == 200
        threading.Timer(0.1, go.set).start()
        assert at.ask("/predict", ["king"]).status == 200
        first.join(10)
        assert len(served) == 2  # not for those that left


def test_at_the_limit_of_connections_requests_are_told_and_the_probe_is_answered(counted):
    with (
        serving({"default": counted}, connections=2) as at,
        socket.create_connection(("127.0.0.1", at.port)),
        socket.create_connection(("127.0.0.1", at.port)),
    ):
        while len(at.server.server_state.connections) < 2:
            time.sleep(0.01)
        answer = at.ask("/predict", ["king"])
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "too many connections are open" in answer.said["error"]
        assert at.ask("/healthz").status == 200


def test_slow_clients_are_ended_and_hold_nobody_up(counted):
    with serving({"default": counted}, client_seconds=0.4) as at:
        found = {}

        def client(name, *parts, pause=0.0):
            began = time.monotonic()
            found[name] = at.raw(*parts, pause=pause), time.monotonic() - began

        slow = {
            "says nothing": (),
            "half of the headers": (POST,),
            "a byte at a time": tuple(
                b"GET /healthz HTTP/1.1\r\nX: aaaaaaaa".partition(b"X")[0][i : i + 1] for i in range(23)
            ),
            "half of the body": (POST + b"Content-Length: 100\r\n\r\n[",),
            "more for ever": (POST.replace(b"/predict", b"/other") + b"Content-Length: 100\r\n\r\n[",),
        }
        clients = [
            threading.Thread(target=client, args=(name, *parts), kwargs={"pause": 0.05 * (len(parts) > 1)})
            for name, parts in slow.items()
        ]
        for one in clients:
            one.start()
        assert at.ask("/predict", ["king"]).status == 200
        for one in clients:
            one.join(10)
        said = {name: answer[:12] for name, (answer, _) in found.items()}
        assert said == dict.fromkeys(slow, b"HTTP/1.1 408") | {"more for ever": b"HTTP/1.1 404"}
        assert max(seconds for _, seconds in found.values()) < 2


@pytest.mark.parametrize("size", [40_000, 1_000_000])  # under and over what asyncio keeps before it pauses
def test_a_client_that_does_not_take_its_answer_is_ended(counted, monkeypatch, size):
    monkeypatch.setattr(ServedModel, "predict", lambda self, texts: [{"text": "a" * size}])
    with serving({"default": counted}, client_seconds=0.3) as at:
        at.server._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            link.connect(("127.0.0.1", at.port))
            link.sendall(FINE.replace(b"Host: x", b"Host: x\r\nConnection: close"))
            until = time.monotonic() + 10
            while not at.server.service._counts.total and time.monotonic() < until:
                time.sleep(0.01)
            while at.server.server_state.connections and time.monotonic() < until:
                time.sleep(0.01)
            assert time.monotonic() < until
        assert at.ask("/healthz").status == 200


# What the service says of itself


def test_the_document_names_every_path_and_the_page_asks_nobody_else(counted):
    with serving({"default": counted}, max_texts=7) as at:
        api = at.ask("/openapi.json").said
        assert set(api["paths"]) == at.server.service._known
        asked = api["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]
        assert asked["schema"]["properties"]["texts"]["maxItems"] == 7
        assert at.ask("/predict", asked["example"]).status == 200
        for path in ("/", "/docs"):
            page = at.ask(path)
            policy = page.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert re.findall(r"script-src 'nonce-(\S+)'", policy)[0] in page.said
            assert "://" not in page.said.replace("`hsl", "") and "{nonce}" not in page.said
        (model,) = at.ask("/models").said["models"]
        assert (model["labels"], model["runtime"]) == (["a", "b", "c"], __version__)
        metrics = at.ask("/metrics").said
        assert 'minialbert_requests_total{path="/predict",status="200"} 1' in metrics
        assert 'minialbert_texts_total{model="default"} 1' in metrics
        assert re.search(r'seconds_bucket{path="/predict",le="\+Inf"} 1\n', metrics)
        assert f'version="{model["version"]}"' in metrics


def test_the_histogram_counts_on_after_a_million():
    counts = Counts()
    counts.add("/predict", 200, 0.02)
    counts.seconds["/predict", 0.05] = counts.total["/predict"] = 1_234_567
    lines = [line for line in counts.lines() if 'le="0.05"' in line or 'le="+Inf"' in line]
    assert [line.split()[-1] for line in lines] == ["1234567", "1234567"]


def test_the_version_changes_with_the_graph_the_labels_and_the_options(counted, monkeypatch):
    version = ServedModel("a", counted).version
    assert ServedModel("b", counted).version == version == ServedModel("a", counted, threads=1).version
    assert ServedModel("a", counted, threshold=0.5).version != version
    (counted / "result.json").write_text("{}")
    assert ServedModel("a", counted).version == version
    config = (counted / "config.json").read_text()
    (counted / "config.json").write_text(config.replace('"a"', '"z"'))
    assert ServedModel("a", counted).version != version


# The command


def test_sigterm_finishes_what_runs_and_ends_with_zero(counted):
    program = (
        "-c",
        "import time\nfrom minialbert_runtime import serving\nplain = serving.Model._run\n"
        "serving.Model._run = lambda self, rows, session: time.sleep(0.7) or plain(self, rows, session)\n"
        "from minialbert_runtime.cli import main\nmain()",
    )
    server = start("serve", f"one={counted}", f"two={counted}", "--port", 0, program=program)
    try:
        lines = iter(server.stderr.readline, b"")
        port = int(next(found[1] for line in lines if (found := re.search(rb"listening at \S+:(\d+)", line))))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
            connection.request("POST", "/predict", json.dumps({"model": "two", "texts": ["king"]}))
            time.sleep(0.3)
            server.send_signal(signal.SIGTERM)
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["results"][0]["label"]) == (200, "a")
        said = server.communicate(timeout=20)[1]
        assert (server.returncode, b"Traceback" in said) == (0, False)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        server.kill()


def test_the_command_names_what_is_wrong(counted, tmp_path, monkeypatch, capsys):
    def refused(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["serve", *map(str, arguments)])
        said = capsys.readouterr().err
        assert end.value.code == 2 and said.startswith("minialbert-runtime: ") and said.count("\n") == 1
        return said

    assert "give a folder" in refused()
    assert "expected NAME=FOLDER" in refused("--model", counted)
    assert "two models have the name default: give NAME=FOLDER" in refused(counted, counted)
    assert "two models have the name one" in refused(f"one={counted}", "--model", f"one={counted}")
    assert "no such folder" in refused(tmp_path / "none")
    assert "expected --max-bytes over 0" in refused(counted, "--max-bytes", 0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refusal = refused(counted, "--port", taken.getsockname()[1])
        assert "cannot listen at 127.0.0.1" in refusal and "give another --port" in refusal
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "minialbert_runtime.server")
    assert "pip install './runtime[serve]' in the checkout" in refused(counted)


@pytest.mark.parametrize("library", ["glibc", "another"])
def test_what_opening_took_is_given_back_before_the_first_request(library, counted, monkeypatch):
    done = []

    def run(server):
        done.append(list(server.service.models))
        server.service.close()
        server._socket.close()

    functions = {"malloc_trim": done.append} if library == "glibc" else {}
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(**functions))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(logging.Formatter, "converter", time.localtime)
    monkeypatch.setattr(logging.getLogger("minialbert_runtime"), "handlers", [])
    monkeypatch.setattr(Server, "run", run)
    serve([f"one={counted}"], "127.0.0.1", 0, Limits())
    assert done == ([0, ["one"]] if library == "glibc" else [["one"]])
