"""A STUN server for tests: honest, or not.

Owns: the answers of a binding server (RFC 8489, with RFC 5780 when it has a second address) and
the ways in which a server may misbehave. The core moves bytes only; `main` puts it on sockets::

    python -m tests.lab.stun_server --listen 198.51.100.10:3478 --other 198.51.100.11:3479
    python -m tests.lab.stun_server --listen 198.51.100.10:3478 --behaviour liar --lie 192.0.2.66:9

It runs until it is terminated, and says "ready" on stdout once its sockets are bound.
"""

from __future__ import annotations

import argparse
import selectors
import socket
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address

from shadowmesh.base.errors import RemoteProtocolError
from shadowmesh.wire.control import Endpoint
from shadowmesh.wire.nat import stun
from shadowmesh.wire.nat.stun import Attribute, MessageClass


class Behaviour(StrEnum):
    """What the server does with a well-formed request."""

    HONEST = "honest"
    SILENT = "silent"
    LIAR = "liar"  # names another address than it saw
    GARBAGE = "garbage"  # answers with what is no STUN
    BAD_FINGERPRINT = "bad-fingerprint"
    OTHER_SOURCE = "other-source"  # answers from an address that was not asked
    WRONG_TRANSACTION = "wrong-transaction"
    REFUSING = "refusing"  # 500 Server Error
    UNKNOWN_ATTRIBUTE = "unknown-attribute"  # an answer nobody can understand
    OLD = "old"  # RFC 3489: MAPPED-ADDRESS, no fingerprint
    IGNORES_CHANGE = "ignores-change"  # offers RFC 5780 and does not do it


@dataclass(frozen=True)
class Reply:
    """A datagram to send: from which of the server's addresses, to whom."""

    local: Endpoint
    destination: Endpoint
    data: bytes


@dataclass
class StunServer:
    """The server without its sockets.

    Attributes:
        primary: where clients ask.
        other: the second address and port (RFC 5780 OTHER-ADDRESS); both have to differ from
            the primary. Without it CHANGE-REQUEST is answered with 420.
        behaviour: see `Behaviour`.
        lie: the address that a liar names.
        requests: how many well-formed requests came to each local address.
    """

    primary: Endpoint
    other: Endpoint | None = None
    behaviour: Behaviour = Behaviour.HONEST
    lie: Endpoint = field(default_factory=lambda: Endpoint(ip_address("192.0.2.66"), 6666))
    requests: Counter[Endpoint] = field(default_factory=Counter)

    def endpoints(self) -> list[Endpoint]:
        """Return every address and port that the server answers on, the primary first."""
        if self.other is None:
            return [self.primary]
        return [
            Endpoint(host, port)
            for host in (self.primary.address, self.other.address)
            for port in (self.primary.port, self.other.port)
        ]

    def receive(self, data: bytes, source: Endpoint, local: Endpoint) -> list[Reply]:
        """Return what the server sends when `data` comes from source to its address local."""
        try:
            request = stun.parse(data)
        except RemoteProtocolError:
            return []
        if request.message_class is not MessageClass.REQUEST:
            return []
        self.requests[local] += 1
        return _BEHAVIOURS[self.behaviour](self, request, source, local)

    def answer(
        self, request: stun.Message, source: Endpoint, local: Endpoint, mapped: Endpoint
    ) -> Reply:
        """Return the honest answer, but for the address that it names."""
        reply_from = local
        change = request.attributes.get(Attribute.CHANGE_REQUEST)
        attributes: list[tuple[Attribute, stun.Value]]
        if isinstance(change, stun.ChangeRequest) and self.behaviour != Behaviour.IGNORES_CHANGE:
            if self.other is None:
                attributes = [
                    (Attribute.ERROR_CODE, stun.ErrorCode(420, "Unknown Attribute")),
                    (Attribute.UNKNOWN_ATTRIBUTES, (int(Attribute.CHANGE_REQUEST),)),
                ]
                refusal = stun.build(MessageClass.ERROR, request.transaction_id, attributes)
                return Reply(local, source, refusal)
            reply_from = self._changed(local, change)
        attributes = [
            (Attribute.XOR_MAPPED_ADDRESS, mapped),
            (Attribute.MAPPED_ADDRESS, mapped),
            (Attribute.RESPONSE_ORIGIN, reply_from),
            (Attribute.SOFTWARE, b"test"),
        ]
        if self.other is not None:
            attributes.append((Attribute.OTHER_ADDRESS, self._changed(local, _BOTH)))
        data = stun.build(MessageClass.SUCCESS, request.transaction_id, attributes)
        return Reply(reply_from, source, data)

    def _changed(self, local: Endpoint, change: stun.ChangeRequest) -> Endpoint:
        assert self.other is not None
        hosts = [self.primary.address, self.other.address]
        ports = [self.primary.port, self.other.port]
        host = hosts[(hosts.index(local.address) + change.ip) % 2]
        port = ports[(ports.index(local.port) + change.port) % 2]
        return Endpoint(host, port)


_BOTH = stun.ChangeRequest(ip=True, port=True)


def _honest(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    return [server.answer(request, source, local, source)]


def _silent(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    return []


def _liar(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    return [server.answer(request, source, local, server.lie)]


def _garbage(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    honest = server.answer(request, source, local, source).data
    junk = [b"", b"\0", bytes(20), honest[:19], honest[:-4], honest + b"\0\0\0\0", b"\xff" * 64]
    return [Reply(local, source, data) for data in junk]


def _bad_fingerprint(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    honest = server.answer(request, source, local, source).data
    return [Reply(local, source, honest[:-1] + bytes([honest[-1] ^ 1]))]


def _other_source(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    stranger = server.other or Endpoint(local.address, local.port ^ 1)
    return [Reply(stranger, source, server.answer(request, source, local, source).data)]


def _wrong_transaction(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    wrong = stun.Message(request.message_class, bytes(12), request.attributes)
    return [server.answer(wrong, source, local, server.lie)]


def _refusing(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    error = [(Attribute.ERROR_CODE, stun.ErrorCode(500, "Server Error"))]
    return [Reply(local, source, stun.build(MessageClass.ERROR, request.transaction_id, error))]


def _unknown_attribute(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    body = bytes.fromhex("7fff 0004 00000000")
    head = stun.build(MessageClass.SUCCESS, request.transaction_id, (), fingerprint=False)
    return [Reply(local, source, head[:2] + len(body).to_bytes(2, "big") + head[4:] + body)]


def _old(
    server: StunServer, request: stun.Message, source: Endpoint, local: Endpoint
) -> list[Reply]:
    attributes = [(Attribute.MAPPED_ADDRESS, source), (Attribute.SOURCE_ADDRESS, local)]
    data = stun.build(MessageClass.SUCCESS, request.transaction_id, attributes, fingerprint=False)
    return [Reply(local, source, data)]


_BEHAVIOURS: dict[
    Behaviour, Callable[[StunServer, stun.Message, Endpoint, Endpoint], list[Reply]]
] = {
    Behaviour.HONEST: _honest,
    Behaviour.SILENT: _silent,
    Behaviour.LIAR: _liar,
    Behaviour.GARBAGE: _garbage,
    Behaviour.BAD_FINGERPRINT: _bad_fingerprint,
    Behaviour.OTHER_SOURCE: _other_source,
    Behaviour.WRONG_TRANSACTION: _wrong_transaction,
    Behaviour.REFUSING: _refusing,
    Behaviour.UNKNOWN_ATTRIBUTE: _unknown_attribute,
    Behaviour.OLD: _old,
    Behaviour.IGNORES_CHANGE: _honest,
}


def serve(server: StunServer) -> None:
    """Answer on real sockets until the process is terminated."""
    selector = selectors.DefaultSelector()
    sockets: dict[Endpoint, socket.socket] = {}
    wanted = server.endpoints()
    if server.behaviour is Behaviour.OTHER_SOURCE and server.other is None:
        wanted.append(Endpoint(server.primary.address, server.primary.port ^ 1))
    for local in wanted:
        family = socket.AF_INET if local.address.version == 4 else socket.AF_INET6
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((str(local.address), local.port))
        sockets[local] = sock
        selector.register(sock, selectors.EVENT_READ, local)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            data, (host, port, *_rest) = sockets[key.data].recvfrom(2048)
            for reply in server.receive(data, Endpoint(ip_address(host), port), key.data):
                to = (str(reply.destination.address), reply.destination.port)
                sockets[reply.local].sendto(reply.data, to)


def _endpoint(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    return Endpoint(ip_address(host.strip("[]")), int(port))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--listen", type=_endpoint, required=True)
    parser.add_argument("--other", type=_endpoint)
    parser.add_argument("--behaviour", type=Behaviour, default=Behaviour.HONEST)
    parser.add_argument("--lie", type=_endpoint)
    options = parser.parse_args(argv)
    server = StunServer(options.listen, options.other, options.behaviour)
    if options.lie is not None:
        server.lie = options.lie
    serve(server)


if __name__ == "__main__":
    main(sys.argv[1:])
