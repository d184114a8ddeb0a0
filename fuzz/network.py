"""What comes from outside of a network, or from a member of it: invitations, messages, certificates.

The library that reads certificates is not instrumented: of those the fuzzer sees only our rules.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from pathlib import Path

from shadowmesh.base.errors import BadCertificate, BadList, BadToken, RemoteProtocolError
from shadowmesh.keys import sodium
from shadowmesh.keys.identity import Identity
from shadowmesh.network import certificate as certificates
from shadowmesh.network import registrar, revocation, trust
from shadowmesh.network.authority import AuthorityKey, make_authority
from shadowmesh.network.certificate import Profile, Usage
from shadowmesh.network.meeting import Meeting
from shadowmesh.network.membership import Membership
from shadowmesh.network.revocation import Reason
from shadowmesh.network.store import Store
from shadowmesh.wire.mesh import chunks, messages
from shadowmesh.wire.mesh import token as tokens
from shadowmesh.wire.mesh.token import Relay, Token

NOW = datetime(2026, 12, 1, tzinfo=UTC)
END = NOW + timedelta(days=365)
SEED = bytes(range(32))
KEY = sodium.public_key(SEED)


def try_token(data: bytes) -> None:
    """Pasted text, or (first byte 0) bytes under a checksum that fits: what is read is written."""
    if data[:1] == b"\0":
        whole = data[1:] + zlib.crc32(data[1:]).to_bytes(4, "little")
        text = "sm1-" + _base32(whole)
    else:
        text = data.decode("utf-8", "replace")
    try:
        found = Token.parse(text)
    except BadToken:
        return
    assert Token.parse(found.text()) == found


def _base32(data: bytes) -> str:
    """The alphabet of the tokens by the shortest way: a twin of the parser's other half."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
    return "".join(alphabet[int(bits[at : at + 5], 2)] for at in range(0, len(bits), 5))


def token_seeds() -> Iterable[bytes]:
    relays = (Relay("relay.example.org:443", KEY), Relay("[2001:db8::1]:9001", KEY))
    for count in (1, 2):
        made = Token(relays[:count], bytes(16), bytes(16), bytes(8), bytes(16), 1_800_000_000)
        yield made.text().encode()
        body = b"".join(
            bytes([len(one.address)]) + one.address.encode() + one.public_key
            for one in relays[:count]
        )
        yield bytes([0, tokens.VERSION, count]) + body + bytes(16 + 16 + 8 + 16 + 5)


def try_mesh(data: bytes) -> None:
    """Records of type 11 of one session, each behind two bytes of length."""
    gathering = chunks.Gathering()
    while len(data) > 2:
        end = 2 + int.from_bytes(data[:2])
        record, data = data[2:end], data[end:]
        with suppress(RemoteProtocolError):
            message = gathering.receive(record)
            if message is not None:
                assert messages.decode(messages.encode(message), len(record) + 65536) == message
                repr(message)


def try_meeting(data: bytes) -> None:
    """What a relay says to a member, each record behind two bytes of length.

    Whatever it is, it makes no member of anybody, and leads to no more than is kept for a session.
    """
    meeting = Meeting(
        _membership(), software="x", boot_id=bytes(16), now=lambda: NOW, seconds=lambda: 0.0
    )
    heard = meeting.meet(_membership().certificate.der, lambda _body: False)
    assert heard is not None
    while len(data) > 2:
        end = 2 + int.from_bytes(data[:2])
        record, data = data[2:end], data[end:]
        with suppress(RemoteProtocolError):
            heard.receive(record)
        meeting.tick()
    assert [one.name for one in _membership().members] == ["hub"]
    assert len(heard._queue) < 1000  # noqa: SLF001
    heard.left()


@cache
def _membership() -> Membership:
    """A network of one, whose files nobody needs again."""
    folder = Path(tempfile.mkdtemp(prefix="shadowmesh-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made, _ = registrar.found(Store(folder), "home", "hub", (), None, NOW)
    return made


def mesh_seeds() -> Iterable[bytes]:
    certificate = bytes(1500)
    some: tuple[messages.Message, ...] = (
        messages.Where(ip=bytes(4)),
        messages.Gone(node_id=bytes(8), reason="offline"),
        messages.Busy(retry_after=30),
        messages.Error(reason="unknown", detail="nobody has this address"),
        messages.Attach(kind="home", addresses=("a.example:443",), wants=("relay",)),
        messages.Renewed(certificate=certificate, network_secret=bytes(32), secret_epoch=2),
        messages.Lists(lists=(bytes(5000),)),
    )
    for message in some:
        yield b"".join(len(one).to_bytes(2) + one for one in chunks.cut(message))


def meeting_seeds() -> Iterable[bytes]:
    own = _membership().certificate
    node = own.node_id
    version = messages.Version(relay=KEY, boot_id=bytes(16), number=1)
    members = (
        messages.Member(node_id=node, certificate=own.der, online=True, addresses=("a.example:1",)),
    )
    some: tuple[messages.Message, ...] = (
        messages.Hello(software="x", boot_id=bytes(range(16))),
        messages.Members(version=version, entries=members),
        messages.Trust(trust_list=_membership().trust_list.data),
        messages.Lists(lists=tuple(one.data for one in _membership().revocations.lists)),
        messages.Attach(kind="home", addresses=("a.example:443",)),
        messages.Renewed(certificate=own.der),
    )
    for message in some:
        yield b"".join(len(one).to_bytes(2) + one for one in chunks.cut(message))


@cache
def _authority() -> AuthorityKey:
    return make_authority("home", NOW)


def try_certificate(data: bytes) -> None:
    """Bytes as the certificate of a member, a revoker, an authority, and as a request for one."""
    home = _authority().authority
    for usage in Usage:
        with suppress(BadCertificate):
            read = certificates.parse(data, usage)
            certificates.verify(read, [home], NOW)
    with suppress(BadCertificate):
        certificates.parse_authority(data)
    with suppress(BadCertificate):
        certificates.requested_key(data)


def certificate_seeds() -> Iterable[bytes]:
    addresses = (ip_address("10.77.0.2"), ip_address("fd00::2"))
    profile = Profile("laptop", "home", ("relay",), ("factory",), addresses)
    yield _authority().issue(profile, KEY, NOW, END).der
    yield _authority().make_revoker("home", NOW).certificate.der
    yield _authority().authority.der
    yield certificates.request(SEED, "laptop")


def try_lists(data: bytes) -> None:
    """Bytes as a revocation list and as a trust list."""
    with suppress(BadList):
        revocation.read(data, [_authority().authority])
    with suppress(BadList):
        trust.read(data)


def lists_seeds() -> Iterable[bytes]:
    home = _authority()
    entries = {5: Reason.REMOVED, 6: Reason.SUPERSEDED}
    yield revocation.make(home, 7, NOW, entries)
    yield revocation.make(home.make_revoker("home", NOW), 8, NOW, entries)
    recovery = Identity.from_seed(SEED)
    yield trust.make(recovery, home.authority.key_id, 1, (home.authority,), home).data
