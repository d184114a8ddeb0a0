"""TLS by Python's ssl module: somebody else's client and server, for sockets of gevent's."""

from __future__ import annotations

import ssl

from gevent.ssl import SSLContext

from shadowmesh.base.constants import TLS_ALPN


def client_context(version=ssl.TLSVersion.TLSv1_3):
    """A client that takes any certificate."""
    context = SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return _of_version(context, version)


def server_context(certificate, version=ssl.TLSVersion.TLSv1_3):
    context = SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.cert_path, certificate.key_path)
    return _of_version(context, version)


def _of_version(context, version):
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols([TLS_ALPN])
    return context
