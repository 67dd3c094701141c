"""Starts and stops the service on uvicorn, and ends connections whose clients are too slow."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import UserError, one_line, quoted
from .limits import Limits
from .serving import LONGEST_HEAD, ServedModel, Service, error_body


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with an end to waiting: for the headers of a request, and for a client to take its answer.

    uvicorn waits for both as long as the connection lasts. The service itself limits the time of a body.
    """

    service: Service
    seconds = 10.0
    _ended = False  # the client sends no more
    _head: asyncio.TimerHandle | None = None
    _taking: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Wait for the rest of the headers, unless they are complete."""
        super().data_received(data)
        self._watch()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a client that has sent its whole request and still waits for the answer."""
        self._ended = True
        waits = self.cycle is not None and not (self.cycle.response_complete or self.cycle.more_body)
        if waits:
            self.service.leaves(self.cycle.scope, whole=False)
        return waits

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        for timer in (self._head, self._taking):
            if timer is not None:
                timer.cancel()
        if self.cycle is not None:
            self.service.leaves(self.cycle.scope, whole=True)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Give the client time to take what waits for it."""
        super().pause_writing()
        self._taking = self.loop.call_later(self.seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that clock."""
        if self._taking is not None:
            self._taking.cancel()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Bound the time that a closed connection keeps what its client has not taken."""
        super().on_response_complete()  # may begin a request that was sent with this one
        if self._ended and self.cycle.response_complete:
            self.transport.close()
        self._end_if_closing()

    def timeout_keep_alive_handler(self) -> None:
        """Do the same after an idle connection was closed."""
        super().timeout_keep_alive_handler()
        self._end_if_closing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP as every other error is answered; behind an answer that has begun, only close."""
        self._refuse(400, msg)

    def _watch(self) -> None:
        between = self.cycle is None or self.cycle.response_complete
        if between and self._head is None:
            self._head = self.loop.call_later(self.seconds, self._too_late)
        elif not between and self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_late(self) -> None:
        self._refuse(408, f"the headers of the request took over {self.seconds:g} seconds")

    def _refuse(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = error_body(message)
            head = f"HTTP/1.1 {status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._end_if_closing()

    def _end_if_closing(self) -> None:
        if self.transport.is_closing():
            self.loop.call_later(self.seconds, self.transport.abort)


class Server(uvicorn.Server):
    """A server of a service; `run` returns after SIGTERM, when running requests have their answers.

    It listens at an address and a port (0: a free one); where these cannot be had it is a UserError.
    """

    def __init__(self, service: Service, host: str, port: int) -> None:
        limits = service.limits
        protocol = type(
            "Protocol", (BoundedProtocol,), {"service": service, "seconds": limits.client_seconds}
        )
        config = uvicorn.Config(
            service,
            http=protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            loop="asyncio",
            log_config=None,
            log_level="error",
            access_log=False,  # its lines have the query
            proxy_headers=False,
            server_header=False,
            h11_max_incomplete_event_size=LONGEST_HEAD,  # of heads that come in pieces
            timeout_graceful_shutdown=int(limits.seconds + 2 * limits.client_seconds) + 1,
        )
        super().__init__(config)
        self.service = service
        service.connections = self.server_state.connections
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise UserError(
                f"cannot listen at {host}, port {port} ({one_line(error)}): give another --port, or --host"
            ) from error
        port = self._socket.getsockname()[1]
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes, and then finish what is running."""
        super().run(sockets or [self._socket])
        self.service.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Say that the service is stopping, then stop."""
        self.service.stopping = True
        await super().shutdown(sockets)


def serve(folders: Sequence[str], host: str, port: int, limits: Limits, **options: Any) -> None:
    """Serve models until SIGTERM or Ctrl-C; what is running then is finished.

    They are exported folders as NAME=FOLDER, of which the first is used where a request names none.
    """
    models: dict[str, ServedModel] = {}
    for one in folders:
        name, _, folder = one.partition("=")
        if not folder or not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
            raise UserError(f"expected NAME=FOLDER with letters, digits and ._- in NAME, found {quoted(one)}")
        if name in models:
            raise UserError(f"two models have the name {name}: give NAME=FOLDER")
        models[name] = ServedModel(name, folder, max_characters=limits.max_characters, **options)
    with suppress(AttributeError, OSError, TypeError):  # of C libraries that have no such function
        ctypes.CDLL(None).malloc_trim(0)  # glibc would keep what graphs took while they were opened
    server = Server(Service(models, limits), host, port)
    log = logging.getLogger(__package__)
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)sZ %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.Formatter.converter = time.gmtime
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    for model in models.values():
        task = model.folder.task or model.problem
        log.info("model %s: %s, version %s, engine %s", model.name, task, model.version, model.engine)
    log.info("listening at %s", server.url)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # also after uvicorn, which raises the signal again
    server.run()
