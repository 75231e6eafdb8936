"""The page of a reader study, on this machine only."""

from __future__ import annotations

import json
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ...types import DiffAugError
from .study import Study

__all__ = ["serve", "server"]

OWN = ("127.0.0.1", "localhost")
PAGE = Path(__file__).with_name("page.html")
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'",
    "Referrer-Policy": "no-referrer",
}


class _Handler(BaseHTTPRequestHandler):
    study: Study

    def _local(self) -> bool:
        """Whether the page itself was asked for by this machine's name: a foreign page could point its own here."""
        host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
        origin = self.headers.get("Origin")
        return host in OWN and (origin is None or urlsplit(origin).hostname in OWN)

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _json(self, data: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, "application/json", json.dumps(data).encode())

    def _answered(self, do: Callable[[], Any]) -> None:
        try:
            if not self._local():
                raise DiffAugError("this page is for this machine only: open it as http://127.0.0.1")
            self._json(do())
        except DiffAugError as error:
            self._json({"error": str(error)}, HTTPStatus.BAD_REQUEST)

    def do_GET(self) -> None:  # the library calls it so
        place = urlsplit(self.path)
        if place.path == "/":
            self._send(HTTPStatus.OK, "text/html; charset=utf-8", PAGE.read_bytes())
        elif place.path == "/study":
            self._answered(lambda: {"title": self.study.title, "questions": [vars(q) for q in self.study.questions]})
        elif place.path == "/showings":
            self._answered(lambda: self._showings(parse_qs(place.query).get("reader", [""])[0]))
        else:
            self._picture(place.path.removeprefix("/picture/"))

    def _picture(self, token: str) -> None:
        png = self.study.picture(token) if self._local() else None
        if png is None:
            self._json({"error": "there is nothing here"}, HTTPStatus.NOT_FOUND)
        else:
            self._send(HTTPStatus.OK, "image/png", png)

    def _showings(self, reader: str) -> list[dict[str, Any]]:
        shown = self.study.showings(reader)
        return [vars(s) for s in shown]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answered(lambda: self._keep(body))

    def _keep(self, body: bytes) -> dict[str, bool]:
        try:
            said = json.loads(body)
            given = (str(said["reader"]), int(said["position"]), str(said["question"]), int(said["value"]))
            seconds = float(said.get("seconds", 0.0))
        except (ValueError, KeyError, TypeError):
            raise DiffAugError("an answer needs reader, position, question and value: reload the page") from None
        self.study.answer(*given, seconds=seconds)
        return {"kept": True}

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Nothing: a log of who was shown what is not wanted."""


def server(study: Study, port: int = 0) -> ThreadingHTTPServer:
    """A server on the loopback interface; port 0 takes a free one (``server_address[1]``).

    Raises:
        DiffAugError: the port is taken.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"study": study}))
    except OSError as error:
        raise DiffAugError(f"port {port} cannot be used ({error.strerror}): give another --port") from None


def serve(study: Study, port: int = 8765) -> None:
    """Serve until stopped."""
    with server(study, port) as running:
        running.serve_forever()
