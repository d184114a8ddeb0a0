"""A TLS 1.3 client that sends key updates, which no TLS library lets its user do at will.

OpenSSL makes the handshake and writes its secrets to a key log; from then on the records of this
side are sealed here. Source: RFC 8446 sections 4.6.3, 5.2, 5.3 and 7.
"""

from __future__ import annotations

import contextlib
import ssl
import struct

import gevent
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

APPLICATION_DATA, HANDSHAKE = 23, 22
KEY_UPDATE = b"\x18\x00\x00\x01"
ASK, DO_NOT_ASK = b"\x01", b"\x00"


def expand_label(secret, label, length):
    name = b"tls13 " + label
    info = struct.pack("!HB", length, len(name)) + name + b"\x00"
    return HKDFExpand(SHA384(), length, info).derive(secret)


class Sealer:
    """Seals the records of one side, TLS_AES_256_GCM_SHA384."""

    def __init__(self, secret):
        self._secret = secret
        self._key_changed()

    def _key_changed(self):
        self._aead = AESGCM(expand_label(self._secret, b"key", 32))
        self._iv = expand_label(self._secret, b"iv", 12)
        self._count = 0

    def seal(self, kind, data):
        inner = data + bytes([kind])
        header = struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(inner) + 16)
        number = int.from_bytes(self._iv, "big") ^ self._count
        self._count += 1
        return header + self._aead.encrypt(number.to_bytes(12, "big"), inner, header)

    def key_update(self, ask=ASK):
        record = self.seal(HANDSHAKE, KEY_UPDATE + ask)
        self._secret = expand_label(self._secret, b"traffic upd", 48)
        self._key_changed()
        return record


class KeyUpdater:
    """A client over one connected gevent socket; closes with it."""

    def __init__(self, sock):
        self.sock = sock
        self.sealer = None

    def handshake(self, keylog):
        """Do the handshake as a client; `keylog` is a file that nobody else writes."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(keylog)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing)
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            self.sock.sendall(outgoing.read())
            incoming.write(self.sock.recv(65536))
        self.sock.sendall(outgoing.read())
        assert tls.cipher()[0] == "TLS_AES_256_GCM_SHA384"
        self.sealer = Sealer(secret_from(keylog, "CLIENT_TRAFFIC_SECRET_0"))

    def send(self, data):
        self.sock.sendall(self.sealer.seal(APPLICATION_DATA, data))

    def send_key_updates(self, count, ask=ASK):
        """Send so many at once, or what the other side takes before it closes."""
        with contextlib.suppress(OSError):
            self.sock.sendall(b"".join(self.sealer.key_update(ask) for _ in range(count)))

    def await_end(self):
        """Wait until the other side has closed the connection, whatever it said before."""
        with gevent.Timeout(10.0), contextlib.suppress(OSError):
            while self.sock.recv(65536):
                pass


def secret_from(keylog, label):
    """Return the newest secret of that label in a key log."""
    lines = [line.split() for line in keylog.read_text().splitlines()]
    return bytes.fromhex([line[2] for line in lines if line and line[0] == label][-1])
