"""The certificate on disk and the TLS contexts."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import stat

import gevent
import gevent.socket as gsocket
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shadowmesh.base.errors import KeyFileError
from shadowmesh.fast.openssl import TlsError
from shadowmesh.link import tls
from shadowmesh.link.stream import TlsStream
from tests.link import othertls


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "etc" / "cert.pem", tmp_path / "etc" / "key.pem"


def handshake(server, client):
    """Run a TLS handshake between two streams of contexts of ours; return (server's, client's)."""
    raw = [gsocket.socket(fileno=sock.detach()) for sock in socket.socketpair()]
    sides = TlsStream(raw[0], server), TlsStream(raw[1], client)
    serving = gevent.spawn(sides[0].do_handshake)
    try:
        sides[1].do_handshake()
    finally:
        serving.get()
    return sides


def test_first_start_makes_a_key_for_the_owner_alone(paths):
    tls.load_or_create_certificate(*paths)
    assert stat.S_IMODE(paths[1].stat().st_mode) == 0o600
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["cert.pem", "key.pem"]


def test_the_made_certificate_is_neutral_and_lasts(paths):
    tls.load_or_create_certificate(*paths)
    made = x509.load_pem_x509_certificate(paths[0].read_bytes())
    now = datetime.datetime.now(datetime.UTC)
    assert made.not_valid_before_utc < now
    assert made.not_valid_after_utc > now + datetime.timedelta(days=3652)
    assert isinstance(made.public_key().curve, ec.SECP256R1)
    assert made.subject.rfc4514_string() == "CN=localhost"
    assert b"shadowmesh" not in made.public_bytes(serialization.Encoding.DER).lower()


def test_the_second_start_uses_the_same_certificate(paths):
    first = tls.load_or_create_certificate(*paths)
    before = [path.read_bytes() for path in paths]
    assert tls.load_or_create_certificate(*paths) == first
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("lost", [0, 1])
def test_one_file_without_the_other_is_refused_and_not_replaced(paths, lost):
    tls.load_or_create_certificate(*paths)
    paths[lost].unlink()
    with pytest.raises(KeyFileError, match=f"{paths[lost].name}: missing"):
        tls.load_or_create_certificate(*paths)
    assert not paths[lost].exists()


def test_a_dangling_link_counts_as_a_file_that_exists(paths):
    tls.load_or_create_certificate(*paths)
    paths[1].unlink()
    paths[1].symlink_to("nowhere")
    with pytest.raises(KeyFileError, match="symbolic link to nothing"):
        tls.load_or_create_certificate(*paths)


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o644, 0o666])
def test_a_key_that_others_may_read_is_refused_like_every_private_file(paths, mode):
    tls.load_or_create_certificate(*paths)
    paths[1].chmod(mode)
    with pytest.raises(KeyFileError, match=rf"key\.pem: has mode {mode:04o}.*chmod 600"):
        tls.load_or_create_certificate(*paths)


def test_a_pair_behind_links_as_certbot_has_them_is_used(paths, tmp_path):
    made = tls.load_or_create_certificate(*paths)
    live = tmp_path / "live"
    live.mkdir()
    for path in paths:
        (live / path.name).symlink_to(path)
    assert tls.load_or_create_certificate(live / "cert.pem", live / "key.pem").sha256 == made.sha256


def test_a_key_of_root_for_a_group_reaches_a_service_of_that_group(shared_directory, as_user):
    cert, key = shared_directory / "cert.pem", shared_directory / "key.pem"
    made = tls.load_or_create_certificate(cert, key)
    for path in (cert, key):
        os.chown(path, 0, 65534)
        path.chmod(0o640)
    with as_user(4321, 65534):
        assert tls.load_or_create_certificate(cert, key).sha256 == made.sha256
    with as_user(4321, 4321), pytest.raises(KeyFileError, match="SupplementaryGroups="):
        tls.load_or_create_certificate(cert, key)


def test_a_key_of_another_certificate_is_refused(paths, tmp_path):
    tls.load_or_create_certificate(*paths)
    other = tmp_path / "cert.pem", tmp_path / "key.pem"
    tls.load_or_create_certificate(*other)
    paths[1].write_bytes(other[1].read_bytes())
    with pytest.raises(KeyFileError, match="is not the key of"):
        tls.load_or_create_certificate(*paths)


@pytest.mark.parametrize("broken", [0, 1])
@pytest.mark.parametrize("content", [b"", b"not PEM", b"\x00" * 100, "shortened"])
def test_a_damaged_file_is_refused(paths, broken, content):
    tls.load_or_create_certificate(*paths)
    path = paths[broken]
    path.write_bytes(path.read_bytes()[:120] if content == "shortened" else content)
    with pytest.raises(KeyFileError, match=path.name):
        tls.load_or_create_certificate(*paths)


def test_a_key_with_a_password_is_refused_without_asking_on_the_terminal(paths):
    tls.load_or_create_certificate(*paths)
    key = serialization.load_pem_private_key(paths[1].read_bytes(), None)
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(KeyFileError, match="is protected by a password"):
        tls.load_or_create_certificate(*paths)


def test_a_directory_that_cannot_be_made_is_named_with_the_way_out(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(KeyFileError, match=r"file.*websocket\.tls_cert"):
        tls.load_or_create_certificate(
            tmp_path / "file" / "cert.pem", tmp_path / "file" / "key.pem"
        )


def test_the_hash_is_of_the_first_certificate_of_a_chain(paths, tmp_path):
    first = tls.load_or_create_certificate(*paths)
    other = tmp_path / "cert.pem", tmp_path / "key.pem"
    tls.load_or_create_certificate(*other)
    paths[0].write_bytes(paths[0].read_bytes() + other[0].read_bytes())
    assert tls.load_or_create_certificate(*paths).sha256 == first.sha256


def test_both_ends_agree_on_tls_13_alpn_and_the_certificate(paths):
    made = tls.load_or_create_certificate(*paths)
    server, client = handshake(tls.server_context(made), tls.client_context())
    assert client.tls.negotiated() == server.tls.negotiated()
    assert client.tls.negotiated() == ("TLSv1.3", "TLS_AES_128_GCM_SHA256", "http/1.1")
    assert tls.peer_certificate_sha256(client.tls) == made.sha256
    server.close()
    client.close()


@pytest.fixture
def pair():
    """Two connected sockets of gevent's."""
    left, right = (gsocket.socket(fileno=sock.detach()) for sock in socket.socketpair())
    with left, right:
        yield left, right


def test_the_server_sends_no_session_ticket(paths, pair):
    server = TlsStream(pair[0], tls.server_context(tls.load_or_create_certificate(*paths)))
    serving = gevent.spawn(server.do_handshake)
    client = othertls.client_context().wrap_socket(pair[1])
    serving.get()
    server.sendall(b"x")
    assert client.recv(1) == b"x"  # tickets would have come before it
    assert not client.session.has_ticket
    client.close()
    server.close()


def test_a_client_that_knows_another_protocol_only_is_served_without_one(paths, pair):
    server = TlsStream(pair[0], tls.server_context(tls.load_or_create_certificate(*paths)))
    serving = gevent.spawn(server.do_handshake)
    context = othertls.client_context()
    context.set_alpn_protocols(["h2"])
    client = context.wrap_socket(pair[1])
    serving.get()
    assert client.selected_alpn_protocol() is None
    client.close()
    server.close()


def test_an_older_client_is_refused(paths, pair):
    server = TlsStream(pair[0], tls.server_context(tls.load_or_create_certificate(*paths)))
    serving = gevent.spawn(server.do_handshake)
    with pytest.raises(ssl.SSLError):
        othertls.client_context(ssl.TLSVersion.TLSv1_2).wrap_socket(pair[1])
    with pytest.raises(TlsError, match="unsupported protocol"):
        serving.get()
    server.close()


def test_an_older_server_is_refused(paths, pair):
    context = othertls.server_context(
        tls.load_or_create_certificate(*paths), ssl.TLSVersion.TLSv1_2
    )
    serving = gevent.spawn(context.wrap_socket, pair[0], server_side=True)
    client = TlsStream(pair[1], tls.client_context())
    with pytest.raises(TlsError, match="protocol version"):
        client.do_handshake()
    with pytest.raises(ssl.SSLError):
        serving.get()
    client.close()
