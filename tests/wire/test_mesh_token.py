"""The text of an invitation: there and back, and every way in which people get it wrong."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base.errors import BadToken, LocalProtocolError
from shadowmesh.wire.mesh import token as wire_token
from shadowmesh.wire.mesh.token import Relay, Token

ONE = Token(
    relays=(Relay("vpn.example.com:443", bytes(range(32))),),
    network_id=bytes(range(16)),
    authority_fingerprint=bytes(range(16, 32)),
    invitation_id=b"invited!",
    secret=b"sixteen secrets!",
    expires_at=1_800_000_000,
)
LINE = ONE.text()

hosts = st.one_of(
    st.from_regex(r"[a-z0-9.-]{1,60}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
)
relays = st.builds(
    lambda host, port, key: Relay(f"{host}:{port}", key),
    hosts,
    st.integers(1, 65535),
    st.binary(min_size=32, max_size=32),
)
tokens = st.builds(
    Token,
    relays=st.lists(relays, min_size=1, max_size=3).map(tuple),
    network_id=st.binary(min_size=16, max_size=16),
    authority_fingerprint=st.binary(min_size=16, max_size=16),
    invitation_id=st.binary(min_size=8, max_size=8),
    secret=st.binary(min_size=16, max_size=16),
    expires_at=st.integers(0, (1 << 40) - 1),
)


def refused(text: str, reason: str) -> str:
    with pytest.raises(BadToken, match=reason) as caught:
        Token.parse(text)
    said = str(caught.value)
    assert said.count("\n") == 0
    assert ";" in said, "what to do next"
    return said


def with_checksum(data: bytes) -> str:
    return "sm1-" + wire_token._encode(data + wire_token._checksum(data))


def data_of(token: Token) -> bytes:
    return wire_token._decode(token.text()[4:].replace("-", ""))[:-4]


def test_an_invitation_is_one_line_of_groups_of_five():
    prefix, *groups = LINE.split("-")
    assert prefix == "sm1"
    assert all(len(group) == 5 for group in groups[:-1])
    assert 1 <= len(groups[-1]) <= 5
    assert len(LINE) == 233
    assert LINE.lower() == LINE


@given(tokens)
def test_what_was_written_is_read(token: Token):
    assert Token.parse(token.text()) == token


@given(tokens, st.randoms(use_true_random=False))
def test_case_spaces_dashes_and_look_alikes_do_not_matter(token: Token, random):
    typed = []
    for character in token.text():
        if character == "-":
            typed.append(random.choice(["", "-", " ", "\n", "--", "\u00a0"]))
        elif character in "01":
            typed.append(random.choice({"0": "0oO", "1": "1iIlL"}[character]))
        else:
            typed.append(random.choice([character, character.upper()]))
    assert Token.parse(f"  {''.join(typed)}\r\n") == token


def test_each_character_altered_into_each_other_is_refused():
    for place, right in enumerate(LINE):
        if right == "-":
            continue
        for wrong in set(wire_token._ALPHABET) - {right}:
            refused(LINE[:place] + wrong + LINE[place + 1 :], "invitation")


def test_characters_left_out_doubled_or_swapped_are_refused():
    line = LINE.replace("-", "")
    for place in range(3, len(line)):
        refused(line[:place] + line[place + 1 :], "mistyped|cut")
        refused(line[:place] + line[place] + line[place:], "mistyped|cut")
        if place + 1 < len(line) and line[place] != line[place + 1]:
            swapped = line[:place] + line[place + 1] + line[place] + line[place + 2 :]
            refused(swapped, "mistyped|cut")


def test_a_cut_line_is_called_cut_wherever_whole_bytes_are_left():
    line = LINE.replace("-", "")[3:]
    for size in range(0, len(line) - 7, 8):
        assert "cut" in refused(f"sm1-{line[:size]}", "missing")


@given(st.text(max_size=60))
def test_no_text_makes_it_raise_anything_else(text: str):
    for line in (text, f"sm1-{text}", LINE[: len(text)] + text, LINE + text):
        with suppress(BadToken):
            Token.parse(line)


@given(st.binary(max_size=400))
def test_no_bytes_with_a_right_checksum_make_it_raise_anything_else(data: bytes):
    for line in (with_checksum(data), with_checksum(data_of(ONE)[:2] + data)):
        with suppress(BadToken):
            Token.parse(line)


@pytest.mark.parametrize("text", ["", "sm", "hello", "https://example.com/", "smx-aaaaa", "ms1-"])
def test_what_is_no_invitation_is_called_so(text: str):
    refused(text, "does not begin with sm1-")


def test_a_book_is_no_invitation():
    refused("sm1-" + "0" * 5000, "characters and not about 200")


@pytest.mark.parametrize("prefix", ["sm2", "SM9", "sm0"])
def test_an_invitation_of_another_version_asks_for_an_update(prefix: str):
    refused(prefix + LINE[3:], "newer version")


def test_the_version_inside_counts_too():
    refused(with_checksum(b"\x02" + data_of(ONE)[1:]), "newer version")


def test_a_letter_that_does_not_belong_there_is_named_by_its_place():
    refused(LINE[:8] + "u" + LINE[9:], "character 5 behind")
    refused(LINE[:10] + "ß" + LINE[11:], "character 6 behind")  # the dashes do not count


def test_an_address_that_is_none_is_refused_although_the_checksum_fits():
    for address in (
        b"a b.example:443",
        b"\x1b[2Jevil.exa:443",
        b"vpn.example.com:0  ",
        b"\xff" * 19,
    ):
        data = data_of(ONE).replace(b"vpn.example.com:443", address[:19].ljust(19, b" "))
        refused(with_checksum(data), "where to go")


def test_the_secret_is_not_shown():
    assert "sixteen secrets!" not in repr(ONE)
    damaged = LINE[:-1] + ("0" if LINE[-1] != "0" else "1")
    said = refused(damaged, "invitation")
    assert not any(group in said for group in LINE.split("-")[1:])


@pytest.mark.parametrize(
    "change",
    [
        {"relays": ()},
        {"relays": ONE.relays * 4},
        {"network_id": bytes(32)},
        {"authority_fingerprint": bytes(15)},
        {"invitation_id": b""},
        {"secret": bytes(17)},
        {"expires_at": -1},
        {"expires_at": 1 << 40},
        {"version": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_cannot_be_written_is_our_own_error(change):
    values = {name: getattr(ONE, name) for name in ONE.__slots__}
    with pytest.raises(LocalProtocolError):
        Token(**{**values, **change})


@pytest.mark.parametrize(
    "address",
    ["", "vpn", "vpn:", ":443", "vpn:0", "vpn:65536", "v pn:443", "vpn:443\n", "vpn:٤", "[::1:4"],
)
def test_a_relay_has_an_address(address: str):
    with pytest.raises(LocalProtocolError, match="host:port"):
        Relay(address, bytes(32))


def test_a_relay_has_a_key_of_32_bytes_and_an_address_of_at_most_255():
    with pytest.raises(LocalProtocolError, match="32 bytes"):
        Relay("vpn:443", bytes(31))
    with pytest.raises(LocalProtocolError, match="255"):
        Relay("v" * 252 + ":443", bytes(32))
