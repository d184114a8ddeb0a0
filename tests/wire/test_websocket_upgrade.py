"""The upgrade: RFC 6455's example, every broken answer, every refused request, close frames."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Request
from wsproto.handshake import H11Handshake

from shadowmesh.base.constants import WS_PROTOCOL
from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire import websocket
from shadowmesh.wire.websocket import ClientUpgrade, Upgraded, UpgradeRefused

# RFC 6455, section 1.3
NONCE = base64.b64decode("dGhlIHNhbXBsZSBub25jZQ==")
ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
    b"Sec-WebSocket-Protocol: shadowmesh.v1\r\n"
    b"\r\n"
)
REQUEST = [
    ("Host", "peer.example:9001"),
    ("Upgrade", "websocket"),
    ("Connection", "keep-alive, Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Protocol", "shadowmesh.v2, shadowmesh.v1"),
]


def client() -> ClientUpgrade:
    return ClientUpgrade("peer.example:9001", "/shadowmesh", lambda n: NONCE[:n])


def check(
    method: str = "GET",
    path: str = "/shadowmesh",
    version: str = "HTTP/1.1",
    headers: list[tuple[str, str]] = REQUEST,
) -> None:
    websocket.check_request(method, path, version, headers, expected_path="/shadowmesh")


def test_the_request_is_what_our_own_server_check_wants() -> None:
    head, end = client().request().split(b"\r\n\r\n")
    assert end == b""
    line, *fields = head.decode("ascii").split("\r\n")
    assert line == "GET /shadowmesh HTTP/1.1"
    headers = [tuple(field.split(": ", 1)) for field in fields]
    check(headers=headers)  # type: ignore[arg-type]
    assert dict(headers)["Sec-WebSocket-Key"] == base64.b64encode(NONCE).decode()  # type: ignore[arg-type]
    assert dict(headers)["Host"] == "peer.example:9001"  # type: ignore[arg-type]


def test_wsproto_as_a_server_accepts_the_request() -> None:
    upgrade = client()
    server = H11Handshake(ConnectionType.SERVER)
    server.receive_data(upgrade.request())
    (event,) = server.events()
    assert isinstance(event, Request)
    assert event.subprotocols == ["shadowmesh.v1"]
    answer = server.send(AcceptConnection(subprotocol="shadowmesh.v1"))
    assert upgrade.receive(answer) == Upgraded(b"")


def test_bytes_after_the_answer_are_handed_over() -> None:
    assert client().receive(ANSWER + b"\x82\x01x") == Upgraded(b"\x82\x01x")


def test_the_answer_may_come_byte_by_byte() -> None:
    upgrade = client()
    for index in range(len(ANSWER) - 1):
        assert upgrade.receive(ANSWER[index : index + 1]) is None
    assert upgrade.receive(ANSWER[-1:] + b"frame") == Upgraded(b"frame")
    with pytest.raises(LocalProtocolError):
        upgrade.receive(b"more")


def test_interim_answers_are_skipped() -> None:
    assert client().receive(b"HTTP/1.1 103 Early Hints\r\n\r\n" + ANSWER) == Upgraded(b"")


@pytest.mark.parametrize("status", [200, 301, 400, 403, 404, 426, 503])
def test_another_status_is_named(status: int) -> None:
    with pytest.raises(RemoteProtocolError, match=str(status)):
        client().receive(b"HTTP/1.1 %d What\x7fever\r\nContent-Length: 0\r\n\r\n" % status)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOO="),
        (b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n", b""),
        (b"Sec-WebSocket-Protocol: shadowmesh.v1\r\n", b""),
        (b"shadowmesh.v1", b"shadowmesh.v2"),
        (b"shadowmesh.v1", b"shadowmesh.v1, shadowmesh.v1"),
        (b"shadowmesh.v1", b"shadowmesh.v1\r\nSec-WebSocket-Extensions: permessage-deflate"),
        (b"Upgrade: websocket\r\n", b""),
        (b"Upgrade: websocket", b"Upgrade: h2c"),
        (b"Connection: Upgrade", b"Connection: close"),
        (b"HTTP/1.1 101", b"HTTP/2 101"),
        (b"HTTP/1.1 101", b"SSH-2.0 101"),
    ],
)
def test_a_wrong_answer_is_refused(old: bytes, new: bytes) -> None:
    assert old in ANSWER
    with pytest.raises(RemoteProtocolError):
        client().receive(ANSWER.replace(old, new))


def test_the_end_of_the_connection_is_not_an_answer() -> None:
    for start in (b"", ANSWER[:40]):
        upgrade = client()
        if start:
            assert upgrade.receive(start) is None
        with pytest.raises(RemoteProtocolError):
            upgrade.receive(b"")


def test_a_header_of_more_than_8_kib_is_refused_however_it_arrives() -> None:
    padding = b"X-Padding: " + b"a" * 8200 + b"\r\n"
    long = ANSWER.replace(b"Upgrade: websocket\r\n", b"Upgrade: websocket\r\n" + padding)
    with pytest.raises(RemoteProtocolError):
        client().receive(long)
    upgrade = client()
    with pytest.raises(RemoteProtocolError):
        for start in range(0, len(long), 1000):
            upgrade.receive(long[start : start + 1000])


def test_endless_interim_answers_are_refused() -> None:
    upgrade = client()
    with pytest.raises(RemoteProtocolError):
        for _ in range(1000):
            assert upgrade.receive(b"HTTP/1.1 103 Early Hints\r\n\r\n") is None


@given(st.binary(max_size=300))
def test_junk_answers_are_refused_or_waited_for(data: bytes) -> None:
    try:
        assert client().receive(data) is None
    except RemoteProtocolError:
        return


@pytest.mark.parametrize(
    ("host", "path"),
    [("peer\r\nX: y", "/a"), ("peer", "/a b"), ("peer", "a"), ("peer", "/a\r\n"), ("peer", "/ä")],
)
def test_a_host_or_path_that_breaks_http_is_our_own_error(host: str, path: str) -> None:
    with pytest.raises(LocalProtocolError):
        ClientUpgrade(host, path, lambda n: NONCE[:n])


def test_a_good_request_passes_with_names_in_any_case() -> None:
    check()
    check(headers=[(name.upper(), value) for name, value in REQUEST])


@pytest.mark.parametrize(
    ("part", "status"),
    [
        ({"method": "POST"}, 405),
        ({"method": "get"}, 405),
        ({"path": "/"}, 404),
        ({"path": "/shadowmesh/"}, 404),
        ({"path": "/shadowmesh?x=1"}, 404),
        ({"version": "HTTP/1.0"}, 505),
        ({"version": "HTTP/2"}, 505),
    ],
)
def test_a_wrong_request_line_is_refused(part: dict[str, str], status: int) -> None:
    with pytest.raises(UpgradeRefused) as caught:
        check(**part)  # type: ignore[arg-type]
    assert caught.value.status == status
    assert caught.value.close_code == WS_PROTOCOL


@pytest.mark.parametrize("name", [name for name, _ in REQUEST])
def test_every_header_of_the_request_is_needed_exactly_once(name: str) -> None:
    with pytest.raises(UpgradeRefused):
        check(headers=[field for field in REQUEST if field[0] != name])
    if name not in {"Connection", "Sec-WebSocket-Protocol"}:  # these two are lists
        with pytest.raises(UpgradeRefused):
            check(headers=REQUEST + [field for field in REQUEST if field[0] == name])


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Origin", "https://peer.example:9001", 403),
        ("origin", "null", 403),
        ("Content-Length", "5", 400),
        ("Content-Length", "00", 400),
        ("Transfer-Encoding", "chunked", 400),
    ],
)
def test_origins_and_bodies_are_refused(name: str, value: str, status: int) -> None:
    with pytest.raises(UpgradeRefused) as caught:
        check(headers=[*REQUEST, (name, value)])
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("Upgrade", "h2c", 426),
        ("Connection", "keep-alive", 426),
        ("Sec-WebSocket-Version", "8", 426),
        ("Sec-WebSocket-Key", "c2hvcnQ=", 400),
        ("Sec-WebSocket-Key", "ä", 400),
        ("Sec-WebSocket-Key", "!!!", 400),
        ("Sec-WebSocket-Protocol", "chat", 400),
        ("Sec-WebSocket-Protocol", "SHADOWMESH.V1", 400),
    ],
)
def test_wrong_header_values_are_refused(name: str, value: str, status: int) -> None:
    headers = [(field, value if field == name else own) for field, own in REQUEST]
    with pytest.raises(UpgradeRefused) as caught:
        check(headers=headers)
    assert caught.value.status == status


@given(
    st.sampled_from([1000, 1001, 1002, 1003, 1008, 1009, 4400]),
    st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), max_size=200),
)
def test_close_frames_survive_the_round_trip_and_fit(code: int, reason: str) -> None:
    payload = websocket.encode_close(code, reason)
    assert len(payload) <= 125
    got, text = websocket.decode_close(payload)
    assert got == code
    assert reason.startswith(text)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000])
def test_close_codes_that_may_not_be_sent_are_refused_both_ways(code: int) -> None:
    with pytest.raises(LocalProtocolError):
        websocket.encode_close(code)
    with pytest.raises(RemoteProtocolError):
        websocket.decode_close(code.to_bytes(2, "big"))


@given(st.binary(max_size=125))
def test_junk_close_frames_are_refused_or_printable(payload: bytes) -> None:
    try:
        _, text = websocket.decode_close(payload)
    except RemoteProtocolError as error:
        assert error.close_code == WS_PROTOCOL
        return
    assert text.isprintable()


def test_a_close_frame_may_be_empty_but_not_half() -> None:
    assert websocket.decode_close(b"") == (1005, "")
    for payload in (b"\x03", b"\x03\xe8\xff"):
        with pytest.raises(RemoteProtocolError):
            websocket.decode_close(payload)
