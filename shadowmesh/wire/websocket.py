"""The WebSocket upgrade of the peer port, and the payload of close frames.

Owns: our request as a client and the check of its answer; the checks of a request as a server.
Does not know: sockets, TLS, frames after the upgrade (the data plane's own capped codec reads
those), or who answers the request (gevent-websocket does).

Source: RFC 6455 sections 4, 5.5.1 and 7.4; protocol sections 5 and 9.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h11

from shadowmesh.base.constants import (
    MAX_HEADER_BYTES,
    MAX_WS_CONTROL_BYTES,
    WS_PROTOCOL,
    WS_SUBPROTOCOL,
)
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

WEBSOCKET_VERSION: Final = "13"
#: bytes of the random Sec-WebSocket-Key, RFC 6455 section 4.1
_NONCE_BYTES: Final = 16
#: what a server appends to the key that it hashes, RFC 6455 section 1.3
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#: a close frame without a code, RFC 6455 section 7.4.1; never on the wire
_NO_STATUS: Final = 1005
_CLOSE_CODE: Final = struct.Struct("!H")


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The server switched protocols; `leftover` are the bytes of frames that came with it."""

    leftover: bytes


class UpgradeRefused(RemoteProtocolError):
    """A request that the peer port does not answer with 101. `status` is the HTTP status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, close_code=WS_PROTOCOL)
        self.status = status


class ClientUpgrade:
    """One opening handshake as a client.

    Args:
        host: value of the Host header: name or address, port if not 443, IPv6 in brackets.
        path: absolute path of the peer port.
        entropy: returns n random bytes; 16 are drawn.
    Raises:
        LocalProtocolError: host or path cannot stand in an HTTP request.
    """

    def __init__(self, host: str, path: str, entropy: Callable[[int], bytes]) -> None:
        key = base64.b64encode(entropy(_NONCE_BYTES))
        self._accept = _accept_token(key)
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._received = 0
        self._finished = False
        if not path.startswith("/"):
            raise LocalProtocolError(f"path {path!r} does not begin with a slash")
        try:
            request = h11.Request(
                method="GET",
                target=path,
                headers=[
                    ("Host", host),
                    ("Upgrade", "websocket"),
                    ("Connection", "Upgrade"),
                    ("Sec-WebSocket-Key", key.decode("ascii")),
                    ("Sec-WebSocket-Version", WEBSOCKET_VERSION),
                    ("Sec-WebSocket-Protocol", WS_SUBPROTOCOL),
                ],
            )
            sent = self._http.send(request)
            end = self._http.send(h11.EndOfMessage())
        except (h11.LocalProtocolError, UnicodeError) as error:
            raise LocalProtocolError(f"cannot ask {host!r} for {path!r}: {error}") from error
        self._request = (sent or b"") + (end or b"")

    def request(self) -> bytes:
        """Return the bytes to send, once."""
        return self._request

    def receive(self, data: bytes) -> Upgraded | None:
        """Take bytes from the server; b"" means that it closed the connection.

        Returns:
            None while the answer is incomplete. After Upgraded the machine is finished.
        Raises:
            RemoteProtocolError: not HTTP, a status other than 101 (named in the text), a wrong
                accept token, another subprotocol, an extension, a header of more than 8 KiB.
            LocalProtocolError: called again after the end.
        """
        if self._finished:
            raise LocalProtocolError("the upgrade is already decided")
        self._received += len(data)
        try:
            answer = self._read_answer(data)
        except BaseException:
            self._finished = True
            raise
        if answer is not None:
            self._finished = True
        return answer

    def _read_answer(self, data: bytes) -> Upgraded | None:
        try:
            self._http.receive_data(data)
            while True:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._check_size(self._received)
                    return None
                if isinstance(event, h11.InformationalResponse) and event.status_code != 101:
                    continue  # 100 and 103 may come before the answer, RFC 9110 section 15.2
                break
        except h11.RemoteProtocolError as error:
            raise RemoteProtocolError(f"answer to the upgrade is not HTTP: {error}") from error
        if not isinstance(event, h11.InformationalResponse | h11.Response):
            raise RemoteProtocolError("connection closed before the upgrade was answered")
        leftover = self._http.trailing_data[0]
        self._check_size(self._received - len(leftover))
        if not isinstance(event, h11.InformationalResponse):
            raise RemoteProtocolError(
                f"upgrade answered with HTTP status {event.status_code}, 101 was wanted"
            )
        self._check_answer(event)
        return Upgraded(leftover)

    def _check_size(self, size: int) -> None:
        # h11 limits one incomplete header; this also holds whole and repeated ones to the limit.
        if size > MAX_HEADER_BYTES:
            raise RemoteProtocolError(f"answer to the upgrade is over {MAX_HEADER_BYTES} bytes")

    def _check_answer(self, answer: h11.InformationalResponse) -> None:
        # h11 has lower-cased the names. RFC 6455 section 4.1 lists the checks.
        fields: dict[bytes, list[str]] = {}
        for name, value in answer.headers:
            fields.setdefault(name, []).append(value.decode("latin-1"))
        if [value.lower() for value in fields.get(b"upgrade", [])] != ["websocket"]:
            raise RemoteProtocolError("HTTP status 101, but not an upgrade to websocket")
        if "upgrade" not in _tokens(fields.get(b"connection", [])):
            raise RemoteProtocolError("HTTP status 101 without Connection: Upgrade")
        if fields.get(b"sec-websocket-accept") != [self._accept.decode("ascii")]:
            raise RemoteProtocolError("HTTP status 101 with a wrong Sec-WebSocket-Accept")
        if fields.get(b"sec-websocket-protocol") != [WS_SUBPROTOCOL]:
            raise RemoteProtocolError(f"HTTP status 101 without subprotocol {WS_SUBPROTOCOL}")
        if b"sec-websocket-extensions" in fields:
            raise RemoteProtocolError("HTTP status 101 with an extension that was not offered")


def check_request(
    method: str,
    path: str,
    version: str,
    headers: Iterable[tuple[str, str]],
    *,
    expected_path: str,
) -> None:
    """Return if a request may be upgraded on the peer port.

    Args:
        method, path, version: the three parts of the request line, as received.
        headers: every header line in order, repeated names included; names in any case.
        expected_path: websocket.path.
    Raises:
        UpgradeRefused: with the HTTP status to answer. A browser's request always has an
            Origin and is refused, so no web page can reach the peer port.
    Source: RFC 6455 section 4.2.1, protocol section 5.
    """
    fields: dict[str, list[str]] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), []).append(value.strip())
    if version != "HTTP/1.1":
        raise UpgradeRefused(f'request is "{version}", HTTP/1.1 was wanted', 505)
    if path != expected_path:
        raise UpgradeRefused(f'request for "{path}", "{expected_path}" was wanted', 404)
    if method != "GET":
        raise UpgradeRefused(f'request method "{method}", GET was wanted', 405)
    if "origin" in fields:
        raise UpgradeRefused("request has an Origin, so it comes from a web page", 403)
    if len(fields.get("host", [])) != 1:
        raise UpgradeRefused("request has not exactly one Host", 400)
    if "transfer-encoding" in fields or fields.get("content-length", ["0"]) != ["0"]:
        raise UpgradeRefused("upgrade request has a body", 400)
    if [value.lower() for value in fields.get("upgrade", [])] != ["websocket"]:
        raise UpgradeRefused("request has not exactly one Upgrade: websocket", 426)
    if "upgrade" not in _tokens(fields.get("connection", [])):
        raise UpgradeRefused("request has no Connection: Upgrade", 426)
    if fields.get("sec-websocket-version") != [WEBSOCKET_VERSION]:
        raise UpgradeRefused("request has not exactly Sec-WebSocket-Version: 13", 426)
    keys = fields.get("sec-websocket-key", [])
    if len(keys) != 1 or not _is_websocket_key(keys[0]):
        raise UpgradeRefused("request has not exactly one valid Sec-WebSocket-Key", 400)
    if WS_SUBPROTOCOL not in _tokens(fields.get("sec-websocket-protocol", []), lower=False):
        raise UpgradeRefused(f"request does not offer subprotocol {WS_SUBPROTOCOL}", 400)


def encode_close(code: int, reason: str = "") -> bytes:
    """Return the payload of a close frame, at most 125 bytes; the reason is cut to fit.

    Raises:
        LocalProtocolError: a code that may not be sent (RFC 6455 section 7.4).
    """
    if not _may_be_sent(code):
        raise LocalProtocolError(f"close code {code} may not be sent")
    room = MAX_WS_CONTROL_BYTES - _CLOSE_CODE.size
    text = reason.encode("utf-8", "replace")[:room].decode("utf-8", "ignore")
    return _CLOSE_CODE.pack(code) + text.encode("utf-8")


def decode_close(payload: bytes) -> tuple[int, str]:
    """Return code and printable reason of a close frame; 1005 when it has no payload.

    Raises:
        RemoteProtocolError: one byte, a code that may not be sent, or a reason not UTF-8.
    Source: RFC 6455 sections 5.5.1 and 7.4.
    """
    if not payload:
        return _NO_STATUS, ""
    if len(payload) < _CLOSE_CODE.size:
        raise RemoteProtocolError("close frame with half a code", WS_PROTOCOL)
    (code,) = _CLOSE_CODE.unpack_from(payload)
    if not _may_be_sent(code):
        raise RemoteProtocolError(f"close frame with code {code}", WS_PROTOCOL)
    try:
        reason = payload[_CLOSE_CODE.size :].decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError("close frame's reason is not UTF-8", WS_PROTOCOL) from None
    return code, "".join(char for char in reason if char.isprintable())


def _may_be_sent(code: int) -> bool:
    # 1004 to 1006 and 1015 have meanings only inside a program, RFC 6455 section 7.4.1.
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


def _accept_token(key: bytes) -> bytes:
    """Return what a server has to answer to a key. Source: RFC 6455, section 4.2.2."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def _is_websocket_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _NONCE_BYTES
    except (binascii.Error, ValueError):
        return False


def _tokens(values: list[str], *, lower: bool = True) -> list[str]:
    """Return the comma-separated tokens of all lines of one header."""
    tokens = [token.strip() for value in values for token in value.split(",")]
    return [token.lower() for token in tokens] if lower else tokens
