"""The service behind `minialbert-runtime serve`: JSON over HTTP, with limits on what a client can make it do.

No text is logged, kept, or part of a metric.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import onnxruntime
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from . import __version__
from .answers import Logits, prompt_of
from .errors import UserError, quoted
from .folder import digest
from .limits import Limits
from .model import Model
from .openapi import document
from .windows import Row

_log = logging.getLogger(__name__)
# When the request of this thread has to be done.
_until: ContextVar[float] = ContextVar("until", default=math.inf)
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
# Bodies of the largest size that are in memory together; that a refused client may still send.
_HELD, _DRAINED = 64, 100
# Seconds for which a request waits whose client sends no more: it has left, or has closed its half and still listens.
_PATIENCE = 1.0
_SILENCE = 1.0  # seconds without a byte after which a refused client has sent all that it will
LONGEST_HEAD = 32768  # bytes of a request's line and headers
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_INPUTS = ("texts", "pairs", "documents")


class OutOfTimeError(Exception):
    """The time of a request is over."""


class ModelFailedError(Exception):
    """The model could not be run, whatever the texts."""


class ServedModel(Model):
    """A model with a name and a version, which stops between two runs once the time of a request is over.

    The version is of the folder's files, the options and the runtime; two models of one version give the same answers.
    """

    def __init__(self, name: str, folder: str | Path, **options: Any) -> None:
        super().__init__(folder, **options)
        self.name = name
        self.facts = {
            "files": digest(self.folder.path),
            "labels": list(self.labels),
            "options": {key: options[key] for key in sorted({*options} - {"threads", "engine"})},
            "runtime": __version__,
            "onnxruntime": onnxruntime.__version__,
            "engine": self.engine,
        }
        self.version = sha256(json.dumps(self.facts).encode()).hexdigest()[:16]

    def _run(self, rows: Sequence[Row], session: Any) -> Logits:
        if time.monotonic() > _until.get():
            raise OutOfTimeError
        try:
            return super()._run(rows, session)
        except UserError as error:
            raise ModelFailedError(str(error)) from error


@dataclass(slots=True)
class Counts:
    """What the service has done so far, as Prometheus reads it."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: defaultdict[tuple[str, float], float] = field(default_factory=lambda: defaultdict(float))
    total: Counter[str] = field(default_factory=Counter)
    texts: Counter[str] = field(default_factory=Counter)

    def add(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.requests[path, status] += 1
        self.total[path] += 1
        self.seconds[path, 0] += seconds
        for bucket in _BUCKETS:
            self.seconds[path, bucket] += seconds <= bucket

    def lines(self) -> list[str]:
        """Return them as lines of text."""
        took = "minialbert_request_seconds"
        lines = ["# TYPE minialbert_requests_total counter"]
        lines += [
            f'minialbert_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        lines.append(f"# TYPE {took} histogram")
        for path, count in sorted(self.total.items()):
            lines += [
                f'{took}_bucket{{path="{path}",le="{bucket:g}"}} {self.seconds[path, bucket]:.0f}'
                for bucket in _BUCKETS
            ]
            lines.append(f'{took}_bucket{{path="{path}",le="+Inf"}} {count}')
            lines.append(f'{took}_sum{{path="{path}"}} {self.seconds[path, 0]:.6f}')
            lines.append(f'{took}_count{{path="{path}"}} {count}')
        lines.append("# TYPE minialbert_texts_total counter")
        lines += [
            f'minialbert_texts_total{{model="{name}"}} {count}' for name, count in sorted(self.texts.items())
        ]
        return lines


class Service:
    """An ASGI application that answers with models, the first of them where a request names none."""

    def __init__(self, models: Mapping[str, ServedModel], limits: Limits) -> None:
        self.models, self.limits, self.stopping = dict(models), limits, False
        self._default = next(iter(self.models.values()))
        self._page = (files(__package__) / "page.html").read_text(encoding="utf-8")
        self._counts = Counts()
        self._turns = asyncio.Semaphore(limits.runs)
        self._pool = ThreadPoolExecutor(limits.runs, thread_name_prefix="run")
        self.connections: Collection[object] = ()  # open ones; the server says which
        self._waiting: list[Scope] = []
        self._held = 0
        routes = {
            "/": (self._show, "GET"),
            "/docs": (self._show, "GET"),
            "/predict": (self._predict, "POST"),
            "/embed": (self._embed, "POST"),
            "/models": (self._list, "GET"),
            "/healthz": (self._health, "GET"),
            "/readyz": (self._ready, "GET"),
            "/metrics": (self._measure, "GET"),
            "/openapi.json": (self._describe, "GET"),
        }
        self._known = frozenset(routes)
        self._app = Starlette(
            routes=[Route(path, answer, methods=[method]) for path, (answer, method) in routes.items()],
            exception_handlers={HTTPException: _refused, ClientDisconnect: _nothing, Exception: _failed},
        )
        self._app.router.redirect_slashes = False  # to an address that a proxy may not have

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: number it, log and count it, and hear its body out where nobody has read it."""
        began, headers = time.monotonic(), Headers(scope=scope)
        # A target may have scheme and host (RFC 9112, 3.2.2), which uvicorn leaves in the path.
        scope["path"] = re.sub(r"(?i)^https?://[^/]*", "", scope["path"]) or "/"
        given = headers.get("x-request-id", "")
        state = scope["state"] = {"id": given if _ID.fullmatch(given) else uuid.uuid4().hex}
        unread = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
        status = 499  # until there is an answer: the client has left

        async def listen() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(raw=message["headers"])
                sent["x-request-id"], sent["cache-control"] = state["id"], "no-store"
                sent["x-content-type-options"] = "nosniff"
                if unread:
                    sent["connection"] = "close"
            elif unread and not message.get("more_body") and "expect" not in headers:
                # A client that is still sending would lose the answer, were the connection closed now.
                await send({**message, "more_body": True})
                await self._drain(listen)
                message = {"type": "http.response.body"}
            await send(message)

        head = [scope.get("raw_path") or b"", scope["query_string"], *chain(*scope["headers"])]
        app: Any = self._app
        if sum(map(len, head)) > LONGEST_HEAD:
            told = error_body(f"the headers have over {LONGEST_HEAD:,} bytes", request_id=state["id"])
            app = Response(told, 400, media_type="application/json")
        with suppress(Exception):  # _failed has logged it
            await app(scope, listen, answer)
        path = scope["path"] if scope["path"] in self._known else "other"
        seconds = time.monotonic() - began
        self._counts.add(path, status, seconds)
        texts = f" texts={state['texts']} model={state['model']}" if "texts" in state else ""
        method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
        _log.info("id=%s %s %s %s%s %.1f ms", state["id"], method, path, status, texts, 1000 * seconds)

    async def _drain(self, listen: Receive) -> None:
        """Read what is left of a body until it ends, its client falls silent, or it was enough."""
        left, until = _DRAINED * self.limits.max_bytes, time.monotonic() + self.limits.client_seconds
        with suppress(TimeoutError):
            while left > 0 and time.monotonic() < until:
                message = await asyncio.wait_for(listen(), _SILENCE)
                left -= len(message.get("body", b""))
                if not message.get("more_body"):
                    return

    async def _predict(self, request: Request) -> Response:
        async with self._body(request) as body:
            given = _parsed(body, ("model", *_INPUTS))
            model = self._model(request, given)
            texts, ids = self._texts(request, given)

            def run() -> list[dict[str, Any]]:
                return [{**one, **result} for one, result in zip(ids, model.predict(texts), strict=True)]

            return await self._run(request, model, "results", run)

    async def _embed(self, request: Request) -> Response:
        async with self._body(request) as body:
            given = _parsed(body, ("model", "texts", "prompt", "dim", "normalize"))
            model = self._model(request, given)
            if "texts" not in given:
                raise HTTPException(422, 'expected a JSON object with "texts", a list of texts')
            texts, _ = self._texts(request, given)
            dim, prompt, unit = given.get("dim"), given.get("prompt"), given.get("normalize", False)
            if not isinstance(dim, int | None) or isinstance(dim, bool) or not isinstance(prompt, str | None):
                raise HTTPException(422, "expected dim as a whole number, and prompt as a text")
            if not isinstance(unit, bool):
                raise HTTPException(422, "expected normalize as true or false")

            def run() -> list[list[float]]:
                prefix = prompt_of(model, prompt)
                return model.embed(texts, dim=dim, prompt=prefix, normalize=unit).tolist()

            return await self._run(request, model, "vectors", run)

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a request, which counts as held until its answer is there."""
        most, body = self.limits.max_bytes, bytearray()
        too_large = HTTPException(413, f"the body has over {most:,} bytes: send fewer texts at once")
        if len(self.connections) > self.limits.connections:
            raise _busy(503, "too many connections are open")
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
        try:
            async with asyncio.timeout(self.limits.client_seconds):
                async for part in request.stream():
                    body += part
                    self._held += len(part)
                    if len(body) > most:
                        raise too_large
                    if self._held > _HELD * most:
                        raise _busy(503, "too many requests are being received")
            yield bytes(body)
        except TimeoutError:
            raise HTTPException(408, f"the body took over {self.limits.client_seconds:g} seconds") from None
        finally:
            self._held -= len(body)

    def _model(self, request: Request, given: Mapping[str, Any]) -> ServedModel:
        name = given.get("model", self._default.name)
        model = self.models.get(name) if isinstance(name, str) else None
        if model is None:
            raise HTTPException(404, f"no model {quoted(name)}: expected one of {', '.join(self.models)}")
        request.state.model = model.name
        return model

    def _texts(self, request: Request, given: Mapping[str, Any]) -> tuple[list[Any], list[dict[str, Any]]]:
        """Return the texts or pairs of a request, and what their results repeat: the ids of documents."""
        named = [name for name in _INPUTS if name in given]
        if len(named) != 1 or not isinstance(given[named[0]], list):
            raise HTTPException(422, "expected a JSON object with a list: texts, pairs, or documents")
        texts: list[Any] = given[named[0]]
        if len(texts) > self.limits.max_texts:
            raise HTTPException(
                422, f"{len(texts):,} texts, and the limit is {self.limits.max_texts:,} a request"
            )
        ids: list[dict[str, Any]] = [{} for _ in texts]
        if named[0] == "pairs" and not all(isinstance(one, list) and len(one) == 2 for one in texts):
            raise HTTPException(422, "expected pairs as lists of two texts")
        if named[0] == "documents":
            known = {"id", "text", "pair"}
            if not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in texts) or any(
                one.keys() - known for one in texts
            ):
                told = 'expected documents as objects with a "text", perhaps an "id" or a "pair", and nothing else'
                raise HTTPException(422, told)
            ids = [{"id": one["id"]} if "id" in one else {} for one in texts]
            texts = [[one["text"], one["pair"]] if "pair" in one else one["text"] for one in texts]
        request.state.texts = len(texts)
        return texts, ids

    async def _run(
        self, request: Request, model: ServedModel, name: str, work: Callable[[], list[Any]]
    ) -> Response:
        """Return the answer of a model, whose run gets its turn, and has to end in time."""
        if self._is_full():
            raise _busy(429, f"{self.limits.queue} requests are waiting")
        until = time.monotonic() + self.limits.seconds
        late = _busy(503, f"there was no answer within {self.limits.seconds:g} seconds")

        def run() -> bytes:
            token = _until.set(until)
            try:
                answer = {name: work(), "model": {"name": model.name, "version": model.version}}
                return json.dumps({**answer, "request_id": request.state.id}, ensure_ascii=False).encode()
            finally:
                _until.reset(token)

        self._waiting.append(request.scope)
        try:
            async with asyncio.timeout(self.limits.seconds) as clock:
                request.scope["clock"] = clock
                if left := request.scope.get("left"):
                    self.leaves(request.scope, whole=left == "whole")
                await self._turns.acquire()
            request.scope.pop("clock", None)
            if request.scope.get("left") == "whole":
                self._turns.release()
                raise late  # nobody reads it
            future = asyncio.get_running_loop().run_in_executor(self._pool, run)
            future.add_done_callback(self._over)
            done, _ = await asyncio.wait({future}, timeout=until - time.monotonic())
            if not done:
                raise late
            body = future.result()
        except (TimeoutError, OutOfTimeError):
            raise late from None
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        except ModelFailedError as error:
            raise HTTPException(500, f"the model {model.name} failed: {error}") from None
        except MemoryError:
            raise _busy(503, "there is not enough memory for this request now") from None
        finally:
            self._waiting.remove(request.scope)
        self._counts.texts[model.name] += request.state.texts
        return Response(body, media_type="application/json", headers={"x-model-version": model.version})

    def leaves(self, scope: Any, *, whole: bool) -> None:
        """Take note that a client sends no more: it has left (`whole`), or may still listen and waits for a moment."""
        scope["left"] = "whole" if whole else "half"
        clock: asyncio.Timeout | None = scope.pop("clock", None)
        if clock is not None:
            clock.reschedule(asyncio.get_running_loop().time() + (0 if whole else _PATIENCE))

    def _is_full(self) -> bool:
        """Tell whether all places are taken by clients that are there."""
        return self._pending() >= self.limits.runs + self.limits.queue

    def _pending(self) -> int:
        return sum("left" not in scope for scope in self._waiting)

    def _over(self, future: asyncio.Future[bytes]) -> None:
        """Give the turn to the next, also where nobody waits for this run any more."""
        self._turns.release()
        if not future.cancelled():
            future.exception()  # asyncio would print one that nobody asked for, with what the message quotes

    async def _list(self, request: Request) -> Response:
        models = [
            {"name": one.name, "version": one.version, "problem": one.problem, "pairs": one.folder.pairs, **one.facts}
            | ({"labels": []} if one.problem == "embedding" else {})  # there they number the dimensions
            for one in self.models.values()
        ]  # fmt: skip
        return JSONResponse({"models": models})

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _ready(self, request: Request) -> Response:
        if self.stopping or self._is_full():
            raise _busy(503, "stopping" if self.stopping else "the queue is full")
        return JSONResponse({"status": "ready"})

    async def _measure(self, request: Request) -> Response:
        lines = self._counts.lines()
        lines += ["# TYPE minialbert_pending gauge", f"minialbert_pending {self._pending()}"]
        lines.append("# TYPE minialbert_model_info gauge")
        lines += [
            f'minialbert_model_info{{model="{one.name}",version="{one.version}"}} 1'
            for one in self.models.values()
        ]
        with suppress(OSError):  # Linux has it
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            lines += ["# TYPE process_resident_memory_bytes gauge"]
            lines += [f"process_resident_memory_bytes {pages * 4096}"]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def _describe(self, request: Request) -> Response:
        return JSONResponse(document(self.limits, list(self.models)))

    async def _show(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        page = self._page.replace("{nonce}", nonce)
        return HTMLResponse(page, headers={"content-security-policy": policy})


def error_body(message: str, **more: str) -> bytes:
    """Return the body of an answer that is an error."""
    return json.dumps({"error": message, **more}).encode()


def _parsed(body: bytes, names: Sequence[str]) -> dict[str, Any]:
    """Return the object of a body; a list alone is one of texts or pairs."""
    try:
        text = body.decode("utf-8-sig")
        given = json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_once)
        if b"\\u" in body:  # which can spell half of a surrogate pair, and an answer repeats ids
            json.dumps(given, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else quoted_reason(error)
        raise HTTPException(400, f"the body is not JSON in UTF-8: {reason}") from None
    if isinstance(given, list):
        return {"texts": given}
    if not isinstance(given, dict):
        raise HTTPException(422, f"expected a JSON object with texts, found {type(given).__name__}")
    for name in given:
        if name not in names:
            near = get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]}?" if near else f": expected some of {', '.join(names)}"
            raise HTTPException(422, f"unknown field {quoted(name)}{hint}")
    return given


def quoted_reason(error: ValueError) -> str:
    """Return what is wrong with JSON, without a part of it."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair, which is not a character"
    return str(error).partition(";")[0]


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; the last of two fields of one name would be all that json keeps of them."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the field {quoted(name)} is there twice")
        found[name] = value
    return found


def _finite(spelled: str) -> float:
    if math.isinf(number := float(spelled)):
        raise ValueError("a number is out of range")
    return number


def _busy(status: int, message: str) -> HTTPException:
    return HTTPException(status, f"{message}: try again later", {"Retry-After": "1"})


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = " or ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
    told = {
        "Not Found": "there is no such path: the page /docs shows all",
        "Method Not Allowed": f"{request.scope['path']} takes {allowed}: the page /docs shows how",
    }.get(error.detail, error.detail)
    body = error_body(told, request_id=request.state.id)
    return Response(body, error.status_code, error.headers, "application/json")


async def _nothing(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _failed(request: Request, error: Exception) -> Response:
    """Answer an error of ours; its message may quote a text, so that the log has its kind and place alone."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    place = f"{Path(at.tb_frame.f_code.co_filename).name}:{at.tb_lineno}" if at is not None else "?"
    _log.error("id=%s %s at %s", request.state.id, type(error).__name__, place)
    return await _refused(request, HTTPException(500, "an error of the service; its log has the place"))
