"""Mesh messages: there and back, every limit, random bytes, and parts in every order."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.base.errors import LocalProtocolError, RemoteProtocolError
from shadowmesh.wire.mesh import chunks, messages
from shadowmesh.wire.mesh.chunks import Gathering
from shadowmesh.wire.mesh.messages import decode, encode

SECRET = b"a secret of thirty-two bytes ..."
CERTIFICATE = b"a certificate " * 25
VERSION = messages.Version(relay=bytes(32), boot_id=bytes(16), number=7)
JOINED: dict[str, Any] = {
    "certificate": CERTIFICATE,
    "authorities": (CERTIFICATE,),
    "trust_list": b"trust",
    "revocation_lists": (b"list 0",),
    "network_secret": SECRET,
    "secret_epoch": 1,
}
EVERY: dict[str, messages.Message] = {
    "join": messages.Join(invitation_id=b"12345678", name="laptop", proof=bytes(32)),
    "renew": messages.Renew(certificate=CERTIFICATE),
    "joined": messages.Joined(
        **JOINED,
        relays=(messages.RelayInfo(certificate=CERTIFICATE, addresses=("[2001:db8::1]:443",)),),
        members=(CERTIFICATE, CERTIFICATE),
        subnets=("10.77.0.0/24", "fd01:203:405::/64"),
    ),
    "refused": messages.Refused(reason="expired", detail="at noon, by the issuer's clock"),
    "hello": messages.Hello(
        software="shadowmesh 0.2",
        roles=("role:relay", "tag:factory"),
        boot_id=bytes(16),
        lists=(messages.ListNumber(key_id=bytes(32), number=3),),
        directory=VERSION,
        relayed="only",
    ),
    "attach": messages.Attach(kind="home", addresses=("a.example:9001",), wants=("broadcasts",)),
    "members": messages.Members(
        version=VERSION,
        snapshot=True,
        entries=(
            messages.Member(node_id=bytes(8), certificate=CERTIFICATE, online=True),
            messages.Member(node_id=bytes(8), relays=(bytes(8),), addresses=("10.0.0.1:1",)),
        ),
    ),
    "trust": messages.Trust(trust_list=b"trust", certificate=CERTIFICATE),
    "lists": messages.Lists(lists=(b"one", b"two")),
    "renewed": messages.Renewed(certificate=CERTIFICATE, network_secret=SECRET, secret_epoch=2),
    "where": messages.Where(ip=bytes(16)),
    "here": messages.Here(asked=messages.Where(mac=bytes(6))),
    "gone": messages.Gone(node_id=bytes(8), reason="left"),
    "busy": messages.Busy(retry_after=30),
    "error": messages.Error(reason="unknown_member", detail="nobody has that address"),
    "part": messages.Part(size=10, offset=5, data=b"12345"),
}


def pack(**fields: Any) -> bytes:
    return msgspec.msgpack.encode(fields)


def refused(data: bytes, reason: str | None = None) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        decode(data)


@pytest.mark.parametrize("tag", EVERY)
def test_what_was_encoded_is_decoded(tag: str):
    data = encode(EVERY[tag])
    assert decode(data) == EVERY[tag]
    assert msgspec.msgpack.decode(data)["t"] == tag


def test_there_is_no_message_without_a_test():
    assert {type(message) for message in EVERY.values()} == set(messages.Message.__args__)


@pytest.mark.parametrize("tag", EVERY)
def test_fields_that_are_not_known_are_ignored(tag: str):
    fields = msgspec.msgpack.decode(encode(EVERY[tag]))
    later = msgspec.msgpack.encode({"new": [{"deep": [1, None]}], **fields, "newer": b"x"})
    assert decode(later) == EVERY[tag]


@pytest.mark.parametrize("tag", EVERY)
def test_a_field_of_another_type_is_refused(tag: str):
    fields = msgspec.msgpack.decode(encode(EVERY[tag]))
    for name in fields.keys() - {"t"}:
        refused(msgspec.msgpack.encode({**fields, name: 1.5}), "mesh message refused")
        refused(msgspec.msgpack.encode({**fields, name: {"x": 1}}), "mesh message refused")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc0",
        b"\xc1",
        pack(),
        pack(t="unheard"),
        pack(t=1),
        pack(t="busy"),
        pack(t="busy", retry_after=1) + b"\0",
        pack(t="busy", retry_after=1)[:-1],
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa1t\xa5lists\xa5lists\xdd\xff\xff\xff\xff",
        b"\x82\xa1t\xa4busy\xa1x" + b"\x91" * 60_000,
        b"\x82\xa1t\xa4busy\xa1\xff\x01",
        b"\x82\xa1t\xa2\xff\xff\xa1a\x01",
    ],
    ids=range(14),
)
def test_what_is_no_message_is_refused(data: bytes):
    refused(data, "mesh message refused")


@settings(max_examples=400)
@given(st.binary(max_size=300), st.sampled_from(sorted(EVERY)), st.data())
def test_no_bytes_make_it_raise_anything_else(junk: bytes, tag: str, data: st.DataObject):
    good = encode(EVERY[tag])
    place = data.draw(st.integers(0, len(good) - 1))
    for body in (junk, good[:place] + junk, good[:place] + junk[:3] + good[place + 3 :]):
        with suppress(RemoteProtocolError):
            decode(body)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.binary(max_size=40)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(("node_id", "x")) | st.text(max_size=4), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=400)
@given(st.sampled_from(sorted(EVERY)), st.data())
def test_no_values_make_it_raise_anything_else(tag: str, data: st.DataObject):
    fields = msgspec.msgpack.decode(encode(EVERY[tag]))
    names = data.draw(st.lists(st.sampled_from(sorted(fields)), max_size=3))
    for name in names:
        fields[name] = data.draw(values)
    with suppress(RemoteProtocolError):
        decode(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    ("tag", "name", "value"),
    [
        ("join", "invitation_id", bytes(7)),
        ("join", "proof", bytes(33)),
        ("join", "name", "x" * 64),
        ("join", "name", "Laptop"),
        ("join", "name", "-laptop"),
        ("join", "name", "laptop\n"),
        ("join", "name", "läptop"),
        ("renew", "certificate", b""),
        ("renew", "certificate", bytes(2046)),
        ("joined", "authorities", []),
        ("joined", "authorities", [b"a"] * 9),
        ("joined", "revocation_lists", [b"x"] * 17),
        ("joined", "revocation_lists", [b""]),
        ("joined", "network_secret", bytes(31)),
        ("joined", "secret_epoch", -1),
        ("joined", "secret_epoch", 1 << 63),
        ("joined", "members", [b"x"] * 1025),
        ("joined", "relays", [{"certificate": b"x"}] * 65),
        ("joined", "relays", [{"certificate": b"x", "addresses": ["nowhere"]}]),
        ("joined", "subnets", ["10.77.0.0/24"] * 3),
        ("joined", "subnets", ["10.77.0.0"]),
        ("joined", "subnets", ["10.77.0.0/24\n"]),
        ("refused", "reason", "\x1b[2J"),
        ("refused", "reason", ""),
        ("refused", "retry_after", 86_401),
        ("refused", "detail", "x" * 201),
        ("refused", "detail", "one\ntwo"),
        ("refused", "detail", "\u202ereversed"),
        ("hello", "software", "\x07"),
        ("hello", "roles", ["r"] * 33),
        ("hello", "lists", [{"key_id": bytes(31), "number": 1}]),
        ("hello", "relayed", "sometimes"),
        ("attach", "kind", "third"),
        ("attach", "addresses", ["a:1"] * 9),
        ("attach", "addresses", ["a:1\n"]),
        ("members", "entries", [{"node_id": bytes(7)}]),
        ("members", "entries", [{"node_id": bytes(8)}] * 1025),
        ("where", "mac", bytes(6)),  # beside the address: two questions
        ("where", "ip", None),
        ("where", "ip", bytes(5)),
        ("here", "asked", {"t": "busy"}),
        ("gone", "node_id", bytes(9)),
        ("busy", "retry_after", -1),
        ("part", "size", 384 * 1024 + 1),
        ("part", "data", b""),
        ("part", "data", bytes(1985)),
    ],
)
def test_every_limit_holds(tag: str, name: str, value: Any):
    fields = msgspec.msgpack.decode(encode(EVERY[tag]))
    assert fields.get(name, 0) != value
    refused(msgspec.msgpack.encode({**fields, name: value}), "mesh message refused")


def test_what_the_other_side_would_refuse_is_not_sent():
    for message in (
        messages.Refused(reason="no such", detail=""),
        messages.Join(invitation_id=b"", proof=bytes(32)),
        messages.Members(
            version=VERSION,
            entries=(messages.Member(node_id=bytes(8), certificate=bytes(2045)),) * 40,
        ),
    ):
        with pytest.raises(LocalProtocolError, match="cannot be sent"):
            encode(message)


def test_a_message_of_more_than_64_kib_is_refused():
    lists = messages.Lists(lists=(bytes(70_000),))
    data = encode(lists)
    refused(data, "at most 65536")
    assert decode(data, 100_000) == lists
    padded = msgspec.msgpack.encode({"t": "busy", "retry_after": 1, "x": bytes(70_000)})
    with pytest.raises(RemoteProtocolError, match="Busy of"):
        decode(padded, 100_000)


def test_secrets_are_not_shown():
    for tag in ("joined", "renewed"):
        assert "thirty-two" not in repr(EVERY[tag])
        assert "thirty-two" not in f"{EVERY[tag]}"
    fields = msgspec.msgpack.decode(encode(EVERY["joined"]))
    with pytest.raises(RemoteProtocolError) as caught:
        decode(msgspec.msgpack.encode({**fields, "network_secret": SECRET + b"x"}))
    assert "thirty-two" not in str(caught.value)


# --- Parts ------------------------------------------------------------------------------------

LARGE = messages.Joined(**{**JOINED, "revocation_lists": (bytes(range(256)) * 1024,)})


def test_a_message_that_fits_travels_whole():
    (body,) = chunks.cut(EVERY["hello"])
    assert Gathering().receive(body) == EVERY["hello"]


def test_a_full_list_travels_in_parts_that_fit_a_record():
    bodies = chunks.cut(LARGE)
    assert len(bodies) == 133
    assert max(len(body) for body in bodies) <= 2048
    gathering = Gathering()
    for body in bodies[:-1]:
        assert gathering.receive(body) is None
        assert gathering.receive(encode(EVERY["busy"])) == EVERY["busy"]
    assert gathering.receive(bodies[-1]) == LARGE
    assert not gathering._held


def test_one_large_message_may_follow_another():
    gathering = Gathering()
    for _ in range(2):
        *first, last = (gathering.receive(body) for body in chunks.cut(LARGE))
        assert set(first) == {None}
        assert last == LARGE


def test_parts_in_another_order_or_twice_are_refused_and_let_go():
    bodies = chunks.cut(LARGE)
    for wrong in (bodies[1:], bodies[:1] + bodies[2:], bodies[:1] * 2, bodies[:2] + bodies[1:]):
        gathering = Gathering()
        with pytest.raises(RemoteProtocolError, match="wanted"):
            for body in wrong:
                gathering.receive(body)
        assert not gathering._held
        assert [gathering.receive(body) for body in bodies][-1] == LARGE


def test_no_more_is_held_than_was_allowed():
    with pytest.raises(RemoteProtocolError, match="at most 1000"):
        Gathering(1000).receive(chunks.cut(LARGE)[0])
    with pytest.raises(RemoteProtocolError, match="at most 0"):
        Gathering(0).receive(encode(messages.Part(size=1, offset=0, data=b"x")))
    gathering = Gathering()
    gathering.receive(encode(messages.Part(size=10, offset=0, data=b"123456")))
    with pytest.raises(RemoteProtocolError, match="beyond the end"):
        gathering.receive(encode(messages.Part(size=10, offset=6, data=b"12345")))


def test_parts_do_not_hide_what_may_not_be_large():
    padded = msgspec.msgpack.encode({"t": "busy", "retry_after": 1, "x": bytes(70_000)})
    gathering = Gathering()
    with pytest.raises(RemoteProtocolError, match="Busy of"):
        for at in range(0, len(padded), 1900):
            part = messages.Part(size=len(padded), offset=at, data=padded[at : at + 1900])
            gathering.receive(encode(part))
    inner = encode(messages.Part(size=5, offset=0, data=b"1234"))
    with pytest.raises(RemoteProtocolError, match="inside of parts"):
        gathering.receive(encode(messages.Part(size=len(inner), offset=0, data=inner)))


@given(
    st.lists(
        st.builds(
            messages.Part,
            size=st.integers(1, 40),
            offset=st.integers(0, 40),
            data=st.binary(min_size=1, max_size=40),
        ).map(encode)
        | st.binary(max_size=30),
        max_size=12,
    )
)
def test_no_records_make_a_gathering_raise_anything_else_or_hold_more(bodies: list[bytes]):
    gathering = Gathering(32)
    for body in bodies:
        with suppress(RemoteProtocolError):
            gathering.receive(body)
        assert len(gathering._held) <= 32
