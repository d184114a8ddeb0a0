"""Reverse proxies on a host of their own, in front of another host's peer port.

nginx and haproxy end TLS with a certificate of their own; haproxy can also pass TCP through.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shadowmesh.netlab import PEER_PORT, wait_until

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from shadowmesh.netlab import Host, Net


class Kind(StrEnum):
    NGINX = "nginx"
    HAPROXY = "haproxy"
    HAPROXY_TCP = "haproxy-tcp"


# Without proxy_ssl_protocols nginx 1.22 stops at TLS 1.2 and answers 502.
NGINX = """
daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/nginx.err info;
events {{ worker_connections 64; }}
http {{
  access_log off;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{
    listen {listen} ssl; ssl_protocols TLSv1.3;
    ssl_certificate {pem}; ssl_certificate_key {pem};
    location / {{
      proxy_pass https://{backend};
      proxy_ssl_protocols TLSv1.3;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_read_timeout 65s;
    }}
  }}
}}
"""
HAPROXY = """
global
  log stdout format raw local0
defaults
  timeout connect 5s
  timeout client 75s
  timeout server 75s
  timeout tunnel 75s
frontend front
  mode {mode}
  bind {listen}{bind_options}
  default_backend back
backend back
  mode {mode}
  server peer {backend}{server_options}
"""


def installed(kind: Kind) -> bool:
    return shutil.which("nginx" if kind is Kind.NGINX else "haproxy") is not None


def self_signed(path: Path, name: str) -> Path:
    """Write a throw-away certificate and its key into one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


class Proxy:
    """A proxy that runs while the block does, in front of `backend`'s peer port."""

    def __init__(self, net: Net, kind: Kind, backend: Host, directory: Path) -> None:
        self.kind = kind
        self.host = net.host(kind.value)
        self._backend = backend
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return self.host.peer_endpoint

    def start(self) -> None:
        pem = self_signed(self._directory / "proxy.pem", self.kind.value)
        listen, backend = self.host.peer_endpoint, self._backend.peer_endpoint
        config = self._directory / f"{self.kind.value}.conf"
        if self.kind is Kind.NGINX:
            config.write_text(
                NGINX.format(directory=self._directory, listen=listen, backend=backend, pem=pem)
            )
            command = ["nginx", "-c", str(config), "-g", "user root;"]
        else:
            ends_tls = self.kind is Kind.HAPROXY
            config.write_text(
                HAPROXY.format(
                    mode="http" if ends_tls else "tcp",
                    listen=listen,
                    backend=backend,
                    bind_options=f" ssl crt {pem} ssl-min-ver TLSv1.3" if ends_tls else "",
                    server_options=" ssl verify none" if ends_tls else "",
                )
            )
            command = ["haproxy", "-db", "-f", str(config)]
        self._process = self.host.popen(*command, log=self._directory / f"{self.kind.value}.log")
        wait_until(self._accepts, 10, f"{self.kind.value} listens")

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError):
            self.host.connect((self.host.ipv4, PEER_PORT)).close()
            return True
        return False

    def stop(self) -> None:
        """Kill it; connections through it are reset."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
