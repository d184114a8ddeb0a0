"""A small client of the control API, for the command-line program.

Owns: what the daemon is asked, with one exchange or with one that goes on, and what its answers and
failures mean. Does not know: how an answer looks as HTTP (`http10`), where the URL and the token
come from, how answers are shown.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from shadowmesh.base.errors import (
    AlreadyConnected,
    AlreadyConnecting,
    AlreadyInNetwork,
    BadRequest,
    CaptureRunning,
    ConfigurationWrong,
    ConnectTimeout,
    ControlError,
    DaemonStopping,
    DeviceUnavailable,
    FileNotSent,
    FileRefused,
    IssuerRefused,
    NoSuchPeer,
    NotConfigured,
    NotConnected,
    NotInNetwork,
    NotPermitted,
    PeerRefused,
    PeerUnreachable,
    ShadowMeshError,
)
from shadowmesh.cli.endpoint import Endpoint, parse
from shadowmesh.cli.failures import (
    REQUEST_TIMEOUT_S,
    DaemonNotRunning,
    ForeignAnswer,
    NoAnswer,
)
from shadowmesh.cli.http10 import MAX_ANSWER_BYTES, parse_answer, read_all, read_head
from shadowmesh.cli.stream import Stream

#: POST /connect and what is asked of a relay wait for the outcome: name look-up, TCP, TLS, upgrade
#: and handshake, each with a deadline of its own in the daemon; this one only ends what hangs in
#: spite of them
CONNECT_TIMEOUT_S: Final = 90.0

#: how often a daemon that connects already is asked whether it is done
CONNECTING_PAUSE_S: Final = 0.2

#: types of what must be in an answer; an object or a list where nothing else is said
_KINDS: Final[dict[str, type | tuple[type, ...]]] = {
    "state": str, "recovery_key": str, "token": str, "cancelled": int, "bytes": int, "key": str,
    "request": str, "bundle": str, "renewed": bool, "epoch": int, "issued": int,
    "network": (dict, type(None)), "certificate": (dict, type(None)),
}  # fmt: skip

_CONTROL_ERRORS: Final[dict[str, type[ControlError]]] = {
    kind.code: kind
    for kind in (
        AlreadyConnected, AlreadyConnecting, NotConnected, NotConfigured, BadRequest,
        PeerUnreachable, PeerRefused, ConnectTimeout, DeviceUnavailable, CaptureRunning,
        ConfigurationWrong, NoSuchPeer, NotInNetwork, FileNotSent, FileRefused, AlreadyInNetwork, IssuerRefused,
    )
}  # fmt: skip


class ApiClient:
    """Asks one daemon. Every call opens one connection and closes it.

    All methods raise the `ControlError` that the daemon answered with, `NotPermitted` when it
    refused us or is not to know the token, `DaemonNotRunning`, `NoAnswer` or `ForeignAnswer`.
    """

    def __init__(
        self,
        where: Endpoint | str,
        token: str | None,
        *,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        """Args:
        where: the API, or its URL, ``http://host:port`` or ``unix:/path``.
        token: None: over TCP only health() works.

        Raises:
            BadAddress: the URL is not of this form.
        """
        self._where = parse(where) if isinstance(where, str) else where
        self._token = token
        self._request_timeout_s = request_timeout_s
        self._connect_timeout_s = connect_timeout_s

    @property
    def url(self) -> str:
        return self._where.url

    @property
    def page_url(self) -> str:
        """Link to the dashboard, with the token: a secret."""
        return f"{self.url}/#token={self._token}"

    def connect(self, peer: str | None, name: str | None = None) -> dict[str, Any]:
        """Connect, wait for the outcome and return the snapshot.

        Args:
            peer: ``host:port`` to dial; None: the configured one.
            name: of the peer; None: all that can be dialled, or the only one.

        The daemon may be dialling by itself or for somebody else: then that outcome is waited
        for, and only if it is a failure an attempt of our own follows.
        """
        body = {} if peer is None else {"peer": peer}
        body |= _named(name)
        deadline = time.monotonic() + self._connect_timeout_s
        waited = False
        while True:
            try:
                return self._ask("POST", "/connect", body, self._connect_timeout_s)
            except AlreadyConnecting:
                if time.monotonic() >= deadline:
                    raise
            except AlreadyConnected:
                snapshot = self.status()
                if not waited or not self._is_connected(snapshot, peer, name):
                    raise
                return snapshot
            waited = True
            time.sleep(CONNECTING_PAUSE_S)

    def _is_connected(self, snapshot: dict[str, Any], peer: str | None, name: str | None) -> bool:
        """Whether the session that there is has been asked for."""
        if name is None:
            one, address = snapshot, (snapshot.get("peer") or {}).get("address")
        else:
            one = self.peer(name)["peer"]
            address = one.get("address")
        return one.get("state") == "connected" and peer in (None, address)

    def disconnect(self, name: str | None = None) -> dict[str, Any]:
        """End the session of one peer, or of all, and return the snapshot."""
        return self._ask("POST", "/disconnect", _named(name), self._request_timeout_s)

    def reload(self) -> dict[str, Any]:
        """Let the daemon read its configuration again; return its `pid`, `applied`, `restart`."""
        return self._ask("POST", "/reload", {}, self._request_timeout_s, "applied")

    def status(self) -> dict[str, Any]:
        """Return the snapshot."""
        return self._ask("GET", "/status", None, self._request_timeout_s)

    def peers(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Return how each peer is: `now` and `peers`."""
        return self._ask("GET", "/peers", None, timeout_s or self._request_timeout_s, "peers")

    def peer(self, name: str) -> dict[str, Any]:
        """Return all about one peer: `now` and `peer`."""
        path = f"/peers/{quote(name, safe='')}"
        return self._ask("GET", path, None, self._request_timeout_s, "peer")

    def table(self) -> list[Any]:
        """Return the addresses that the switch knows."""
        entries: list[Any] = self._ask("GET", "/fdb", None, self._request_timeout_s, "entries")[
            "entries"
        ]
        return entries

    def network(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the network that the daemon is in, None when it is in none."""
        answer = self._ask("GET", "/network", None, timeout_s or self._request_timeout_s, "network")
        found: dict[str, Any] | None = answer["network"]
        return found

    def create_network(
        self, name: str, own_name: str | None, subnets: Sequence[str], address: str | None
    ) -> dict[str, Any]:
        """Make a network; return the `network` and its `recovery_key`, a secret told once.

        Args:
            own_name: of this machine in it; None: its host name.
            subnets: of the tunnel; empty: they are chosen.
            address: ``host:port`` at which others reach this machine.
        """
        body = {"name": name, "own_name": own_name, "subnets": list(subnets), "address": address}
        return self._ask("POST", "/network", body, self._connect_timeout_s, "recovery_key")

    def invite(self, **wanted: Any) -> dict[str, Any]:
        """Return an `invitation` and its text, the `token`, which is a secret told once.

        Args:
            wanted: `name`, `expires_s`, `uses`, `roles`, `tags`, `addresses`, as far as they matter.
        """
        return self._ask("POST", "/invitations", wanted, self._request_timeout_s, "token")

    def invitations(self) -> dict[str, Any]:
        """Return the `invitations` that were made."""
        return self._ask("GET", "/invitations", None, self._request_timeout_s, "invitations")

    def cancel_invitation(self, id_: str | None) -> dict[str, Any]:
        """Cancel one invitation, or all; `cancelled` is how many were open."""
        path = "/invitations" if id_ is None else f"/invitations/{quote(id_, safe='')}"
        return self._ask("DELETE", path, None, self._request_timeout_s, "cancelled")

    def join(
        self, token: str, name: str | None, announce: Sequence[str] = (), *, accept: bool
    ) -> dict[str, Any]:
        """Return what an invitation says, and take it when that is wanted.

        Args:
            announce: where other members may dial this machine, ``host:port``.
        """
        body = {"token": token, "name": name, "announce": list(announce), "accept": accept}
        return self._ask("POST", "/join", body, self._connect_timeout_s, "doubts")

    def relays(self) -> dict[str, Any]:
        """Return the other `relays` of the network, and the `reason` why one is home."""
        return self._ask("GET", "/relays", None, self._request_timeout_s, "relays")

    def leave(self) -> None:
        """Leave the network."""
        self._ask("POST", "/leave", {}, self._connect_timeout_s, "network")

    def remove_peer(self, name: str) -> dict[str, Any]:
        """Put a member out of the network; `removed` names those that are out."""
        path = f"/peers/{quote(name, safe='')}"
        return self._ask("DELETE", path, None, self._request_timeout_s, "removed")

    def get(self, path: str, member: str) -> dict[str, Any]:
        """Return what the daemon knows of something, an answer with this member."""
        return self._ask("GET", path, None, self._request_timeout_s, member)

    def post(
        self, path: str, body: dict[str, Any], member: str, room: int = MAX_ANSWER_BYTES
    ) -> dict[str, Any]:
        """Ask for a change that may take a while, and return the answer.

        Args:
            member: must be in it, and of the type that it has in `_KINDS`.
            room: bytes that it may have.
        """
        return self._ask("POST", path, body, self._connect_timeout_s, member, room=room)

    def configuration(self) -> dict[str, Any]:
        """Return what the daemon goes by: `pid`, `file`, `values`, and all of it as `text`."""
        return self._ask("GET", "/configuration", None, self._request_timeout_s, "values")

    def explain(self, target: str | None, peer: str | None = None) -> dict[str, Any]:
        """Return what would happen to a frame for a MAC or IP address, or a peer; None: any."""
        asked = {"target": target, "peer": peer}
        query = urlencode({name: value for name, value in asked.items() if value is not None})
        path = f"/explain?{query}" if query else "/explain"
        return self._ask("GET", path, None, self._request_timeout_s, "steps")

    def ping(self, name: str | None = None) -> dict[str, Any]:
        """Measure one round trip to a peer; `rtt_ms` is None when no answer came."""
        body = {"count": 1, **_named(name)}
        answer = self._ask("POST", "/ping", body, self._request_timeout_s, "answers")
        if len(answer["answers"]) != 1 or not isinstance(answer["answers"][0], dict):
            raise self._foreign("an answer that is no ping")
        pong: dict[str, Any] = answer["answers"][0]
        return pong

    def health(self) -> dict[str, Any]:
        """Return the health report, also when checks fail."""
        return self._ask("GET", "/health", None, self._request_timeout_s, "checks", (200, 503))

    def metrics(self) -> str:
        """Return the metrics in the text format of Prometheus."""
        status, payload = self._exchange("GET", "/metrics", None, self._request_timeout_s)
        if status != 200:
            raise self._refusal(status, self._object(status, payload))
        return payload.decode("utf-8", "replace")

    def recent_events(self, limit: int, *, after: int = 0) -> list[Any]:
        """Return the last events, the oldest first; only those with a number greater than after."""
        path = f"/events/recent?limit={limit}&after={after}"
        events: list[Any] = self._ask("GET", path, None, self._request_timeout_s, "events")[
            "events"
        ]
        return events

    def capture(
        self,
        *,
        snap_bytes: int,
        count: int | None,
        duration_s: float | None,
        peer: str | None = None,
    ) -> Stream:
        """Start a capture and return its pcapng bytes; the caller closes the stream.

        Args:
            snap_bytes: how much of each frame.
            count, duration_s: when the daemon is to end it; None: not by itself.
            peer: name of the one whose frames are wanted; None: all.
        """
        query = f"snaplen={snap_bytes}"
        if count is not None:
            query += f"&count={count}"
        if duration_s is not None:
            query += f"&duration_ms={max(1, round(duration_s * 1000))}"
        if peer is not None:
            query += f"&{urlencode({'peer': peer})}"
        request = self._request("GET", f"/capture?{query}", None)
        deadline = time.monotonic() + self._request_timeout_s
        connection: socket.socket | None = None
        try:
            connection = self._where.connect(
                self._request_timeout_s, secret=self._token is not None
            )
            connection.sendall(request)
            head = read_head(connection, deadline)
            if head[9:12] == b"200":
                opened, connection = connection, None
                return Stream(opened, head.partition(b"\r\n\r\n")[2], self.url)
            answer = head + read_all(connection, deadline)
        except TimeoutError:
            raise NoAnswer(
                f"the daemon at {self.url} did not begin a capture within"
                f" {self._request_timeout_s:g} s; see its log"
            ) from None
        except OSError as error:
            raise self._not_running(error.strerror or str(error)) from None
        finally:
            if connection is not None:
                connection.close()
        raise self._refused(answer)

    def _refused(self, answer: bytes) -> ShadowMeshError:
        """Return what a whole answer says that is no success."""
        if not answer:
            return self._not_running("the connection was closed without an answer")
        try:
            status, payload = parse_answer(answer)
            error = json.loads(payload)
        except (ValueError, RecursionError):
            return self._foreign("no capture and no JSON object")
        return (
            self._refusal(status, error)
            if isinstance(error, dict)
            else self._foreign(f"HTTP status {status} without a JSON object")
        )

    def is_running(self) -> bool:
        """Tell whether something answers at the address; needs no token."""
        try:
            self._exchange("GET", "/health", None, self._request_timeout_s)
        except DaemonNotRunning:
            return False
        return True

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        timeout_s: float,
        member: str = "state",
        good: tuple[int, ...] = (200,),
        room: int = MAX_ANSWER_BYTES,
    ) -> dict[str, Any]:
        """Return the object that a route answers with.

        Args:
            member: must be in it, and of the type that it has in `_KINDS`.
            good: the HTTP statuses that are no refusal.
            room: bytes that the answer may have.
        """
        status, payload = self._exchange(method, path, body, timeout_s, room)
        answer = self._object(status, payload)
        if status not in good:
            raise self._refusal(status, answer)
        kinds = _KINDS.get(member, (dict, list))
        if not isinstance(answer.get("schema"), int) or not isinstance(
            answer.get(member, ...), kinds
        ):
            raise self._foreign(f"an answer without {member}")
        return answer

    def _object(self, status: int, payload: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(payload)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise self._foreign(f"HTTP status {status} without a JSON object")
        return answer

    def _refusal(self, status: int, answer: dict[str, Any]) -> ShadowMeshError:
        error = answer.get("error")
        if not isinstance(error, dict):
            return self._foreign(f"HTTP status {status} without an error")
        code, message = str(error.get("code")), str(error.get("message"))
        if code == "unauthorized":
            return NotPermitted(
                f"the daemon at {self.url} refused the token; use the api.token of its"
                " daemon.state_dir with --token-file, or run as its user"
            )
        if code == DaemonStopping.code:
            return DaemonNotRunning(message)
        if code == "not_permitted":
            return NotPermitted(message)
        if status == 403:
            return NotPermitted(f"the daemon at {self.url} refused the request: {message}")
        return _CONTROL_ERRORS.get(code, ControlError)(message)

    def _foreign(self, got: str) -> ForeignAnswer:
        return ForeignAnswer(
            f"what answers at {self.url} is not a ShadowMesh daemon ({got}); check --api and"
            " daemon.listen_address"
        )

    def _exchange(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        timeout_s: float,
        room: int = MAX_ANSWER_BYTES,
    ) -> tuple[int, bytes]:
        """Return status and body of one request."""
        request = self._request(method, path, body)
        deadline = time.monotonic() + timeout_s
        try:
            secret = self._token is not None
            with self._where.connect(timeout_s, secret=secret) as connection:
                connection.sendall(request)
                answer = read_all(connection, deadline, room)
        except TimeoutError:
            raise NoAnswer(
                f"the daemon at {self.url} did not answer {method} {path} within {timeout_s:g} s;"
                " see its log, and `shadowmesh status` for what it is doing"
            ) from None
        except OSError as error:
            raise self._not_running(error.strerror or str(error)) from None
        if not answer:
            raise self._not_running("the connection was closed without an answer")
        try:
            return parse_answer(answer)
        except ValueError as error:
            raise self._foreign(str(error)) from None

    def _not_running(self, why: str) -> DaemonNotRunning:
        return DaemonNotRunning(
            f"no daemon answers at {self.url}: {why.lower()}; start it with"
            " `systemctl start shadowmesh`, or name its address with --api"
        )

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> bytes:
        lines = [f"{method} {path} HTTP/1.0", f"Host: {self._where.name}"]
        if self._token is not None:
            lines.append(f"Authorization: Bearer {self._token}")
        data = b""
        if body is not None:
            data = json.dumps(body).encode("ascii")
            lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
        return "\r\n".join([*lines, "", ""]).encode("ascii") + data


def _named(name: str | None) -> dict[str, Any]:
    """Return the part of a body that says which peer is meant; an older daemon knows only one."""
    return {} if name is None else {"name": name}
