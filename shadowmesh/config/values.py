"""From text to values: one function per kind of value.

Owns: what a duration, a host and port, an interface address and so on look like.
Does not know: keys, defaults, sources. Every function takes the text of one value and raises
ValueError with a message that fits behind the key's name and says what was wanted.
No message repeats a text that could be a secret (`show`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from pathlib import Path
from typing import Literal

from shadowmesh.base.constants import DEFAULT_PEER_PORT, MAX_MACS_PER_PEER
from shadowmesh.config.model import REDACTED, Addresses, HostPort, Secret
from shadowmesh.keys import identity, psk

_SHOWN_CHARS = 60
_LOOKS_SECRET = re.compile(r"[0-9A-Fa-f]{32,}|[0-9A-Za-z+/]{43}=")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,11})")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h)")
_SECONDS_PER = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_BOOLEANS = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
#: of a host name, in lower case
_PEER_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_MAC = re.compile(r"[0-9a-fA-F]{2}([:-])(?:[0-9a-fA-F]{2}\1){4}[0-9a-fA-F]{2}")
_URL_PATH = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*")

#: IFNAMSIZ - 1, linux/if.h
INTERFACE_NAME_MAX_BYTES = 15
MAX_STUN_SERVERS = 8
#: as many as one message of the network has room for
MAX_ANNOUNCED = 8
#: one of each family is what most want; each is one more request when the device is made
MAX_TUNNEL_ADDRESSES = 8
_MAX_URL_PATH = 256
_URL_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_MAX_PATH_BYTES = 4096
#: sockaddr_un has room for 107; a few are for the name that it has while it is made
_MAX_SOCKET_PATH_BYTES = 100


def cut(text: str) -> str:
    """Return text for an error message: shortened when long, hidden when it may be a key."""
    if _LOOKS_SECRET.search(text):
        return REDACTED
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."


def show(text: str) -> str:
    """Return `cut` text in quotes."""
    return f'"{cut(text)}"'


def boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(f"must be true or false, got {show(text)}") from None


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of decimal whole numbers from low to high."""

    def parse(text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise ValueError(f"must be a whole number from {low} to {high}, got {show(text)}")
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}, got {value}")
        return value

    return parse


def whole_or_auto(low: int, high: int) -> Callable[[str], int | Literal["auto"]]:
    """Return a parser of `auto` and of whole numbers from low to high."""

    def parse(text: str) -> int | Literal["auto"]:
        if text == "auto":
            return "auto"
        if not _INTEGER.fullmatch(text) or not low <= int(text) <= high:
            raise ValueError(
                f"must be auto or a whole number from {low} to {high}, got {show(text)}"
            )
        return int(text)

    return parse


def one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}, got {show(text)}")
        return text

    return parse


def format_duration(seconds: float) -> str:
    """Return seconds as this module reads them: `500ms`, `5s`, `120s`."""
    if seconds < 1 and round(seconds * 1000, 9) == round(seconds * 1000):
        return f"{round(seconds * 1000)}ms"
    return f"{seconds:.6f}".rstrip("0").rstrip(".") + "s"


def duration(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of `500ms`, `5s`, `2m`, `1h` that gives seconds from low to high."""
    limits = f"from {format_duration(low)} to {format_duration(high)}"

    def parse(text: str) -> float:
        match = _DURATION.fullmatch(text)
        if match is None:
            raise ValueError(f"must be a number and a unit (ms, s, m, h), got {show(text)}")
        value = float(match[1]) * _SECONDS_PER[match[2]]
        if not low <= value <= high:
            raise ValueError(f"must be {limits}, got {text}")
        return value

    return parse


def _host(text: str) -> str:
    """Return the host of host:port, an IP address in its shortest form or a DNS name."""
    try:
        return str(ip_address(text))
    except ValueError:
        pass  # not an address: perhaps a name
    if not text.isascii():
        raise ValueError(f"host {show(text)} is not ASCII; write its xn-- form")
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"host {show(text)} is neither a name nor an IP address")
    # "10.0.0.256" and "127.1" are not names; resolvers would guess
    if labels[-1].isdigit():
        raise ValueError(f"host {show(text)} is not a complete IPv4 address")
    return text


def _host_port(text: str, lowest_port: int) -> HostPort:
    _refuse_url(text)
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]:")
        if not bracket:
            raise ValueError(f"must be host:port with IPv6 in brackets, got {show(text)}")
        try:
            host = str(IPv6Address(host))
        except ValueError:
            raise ValueError(f"{show(host)} in brackets is not an IPv6 address") from None
    else:
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise ValueError(f"must be host:port, got {show(text)}")
        if ":" in host:
            raise ValueError(
                f"write an IPv6 address in brackets, like [::1]:9001, got {show(text)}"
            )
        host = _host(host)
    if not _INTEGER.fullmatch(port) or not lowest_port <= int(port) <= 65535:
        raise ValueError(f"port must be from {lowest_port} to 65535, got {show(port)}")
    return HostPort(host, int(port))


def _refuse_url(text: str) -> None:
    """Raise ValueError for a URL or a path, with what to write instead of it."""
    if "/" not in text:
        return
    scheme, separator, rest = text.partition("://")
    place = (rest if separator else text).partition("/")[0].rpartition("@")[2]
    advice = "write only its host and port"
    if place and separator:
        port = "" if re.search(r":[0-9]+$", place) else f":{_URL_PORTS.get(scheme.lower(), 9001)}"
        advice = f"write {show(place + port)}"
    raise ValueError(
        f"{show(text)} is a URL, host:port is wanted; {advice} (the path is websocket.path)"
    )


def listen(text: str) -> HostPort:
    """An address to listen on, with a known port."""
    return _host_port(text, 1)


def optional_listen(text: str) -> HostPort | None:
    """An address to listen on, port 0 for any; empty for none."""
    return _host_port(text, 0) if text else None


def remote(text: str) -> HostPort:
    """An address to send to: not multicast and not "any"."""
    return _one_host(_host_port(text, 1))


def peer(text: str) -> HostPort:
    """The address of a peer; without a port the default one, unless it can be read in two ways."""
    _refuse_url(text)
    if text.startswith("[") and text.endswith("]"):
        return _one_host(_host_port(f"{text}:{DEFAULT_PEER_PORT}", 1))
    if text and ":" not in text:
        return _one_host(HostPort(_host(text), DEFAULT_PEER_PORT))
    if not _is_ipv6(text):
        return remote(text)
    shorter, _, port = text.rpartition(":")
    if _is_ipv6(shorter) and _INTEGER.fullmatch(port):
        raise ValueError(
            f"{show(text)} can be read with and without a port; write"
            f" [{text}]:{DEFAULT_PEER_PORT} or [{shorter}]:{port}"
        )
    return _one_host(HostPort(str(IPv6Address(text)), DEFAULT_PEER_PORT))


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _one_host(value: HostPort) -> HostPort:
    try:
        address = ip_address(value.host)
    except ValueError:
        return value
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        raise ValueError(f"{value.host} is not the address of one host")
    return value


def optional_peer(text: str) -> HostPort | None:
    return peer(text) if text else None


def remotes(text: str) -> tuple[HostPort, ...]:
    """Addresses separated by commas; empty for none."""
    values = tuple(remote(part.strip()) for part in text.split(",")) if text.strip() else ()
    if len(values) > MAX_STUN_SERVERS:
        raise ValueError(f"at most {MAX_STUN_SERVERS} servers, got {len(values)}")
    return values


def announced(text: str) -> tuple[HostPort, ...]:
    """Addresses that others can dial, separated by commas; empty for none."""
    found = tuple(peer(part.strip()) for part in text.split(",")) if text.strip() else ()
    if len(found) > MAX_ANNOUNCED:
        raise ValueError(f"at most {MAX_ANNOUNCED} addresses, got {len(found)}")
    return found


def interface_addresses(text: str) -> Addresses:
    """Addresses with their prefix lengths, separated by commas; empty for none."""
    parts = text.split(",") if text.strip() else []
    if len(parts) > MAX_TUNNEL_ADDRESSES:
        raise ValueError(f"at most {MAX_TUNNEL_ADDRESSES} addresses, got {len(parts)}")
    values = Addresses(interface_address(part.strip()) for part in parts)
    for index, value in enumerate(values):
        if value.ip in {other.ip for other in values[:index]}:
            raise ValueError(f"{value.ip} stands there twice")
    return values


def interface_address(text: str) -> IPv4Interface | IPv6Interface:
    """An address with its prefix length that a host can have on a LAN."""
    wanted = "must be an address with prefix length like 10.0.0.1/24 or fd00::1/64"
    address, slash, prefix = text.partition("/")
    if not slash or not _INTEGER.fullmatch(prefix) or "%" in address:
        raise ValueError(f"{wanted}, got {show(text)}")
    try:
        value = ip_interface(text)
    except ValueError:
        raise ValueError(f"{wanted}, got {show(text)}") from None
    if value.is_loopback or value.ip in IPv4Network("127.0.0.0/8"):
        raise ValueError(f"{text} is a loopback address")
    if value.is_multicast:
        raise ValueError(f"{text} is a multicast address")
    if value.is_unspecified or value.network.prefixlen == 0:
        raise ValueError(f"{text} stands for every address; {wanted}")
    if value.version == 4 and (value.is_reserved or value.ip in IPv4Network("0.0.0.0/8")):
        raise ValueError(f"{text} is in a reserved range")
    if isinstance(value, IPv6Interface) and value.ip.ipv4_mapped is not None:
        raise ValueError(f"{text} is an IPv4-mapped address; write the IPv4 address")
    # the last two prefix lengths have no network or broadcast address (RFC 3021, RFC 6164)
    if value.network.prefixlen < value.max_prefixlen - 1:
        if value.ip == value.network.network_address:
            raise ValueError(f"{text} is the network's own address, not a host's")
        if value.version == 4 and value.ip == value.network.broadcast_address:
            raise ValueError(f"{text} is the broadcast address of its network")
    return value


def tunnel_addresses(text: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """Addresses that a peer has in the tunnel, separated by commas; empty for none."""
    parts = text.split(",") if text.strip() else []
    if len(parts) > MAX_TUNNEL_ADDRESSES:
        raise ValueError(f"at most {MAX_TUNNEL_ADDRESSES} addresses, got {len(parts)}")
    values = tuple(_tunnel_address(part.strip()) for part in parts)
    for index, value in enumerate(values):
        if value in values[:index]:
            raise ValueError(f"{value} stands there twice")
    return values


def _tunnel_address(text: str) -> IPv4Address | IPv6Address:
    try:
        value = ip_address(text)
    except ValueError:
        bare, slash, _ = text.partition("/")
        hint = f"; write {bare}, without prefix length" if slash and _is_ip(bare) else ""
        raise ValueError(
            f"must be an address like 10.0.0.3 or fd00::3, got {show(text)}{hint}"
        ) from None
    try:
        return interface_address(f"{text}/{value.max_prefixlen}").ip
    except ValueError:
        raise ValueError(f"{text} is not an address that a host can have in the tunnel") from None


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def peer_name(text: str) -> str:
    """A name that commands and people call a peer by: a DNS label in lower case. RFC 1123, 2.1."""
    if _PEER_NAME.fullmatch(text):
        return text
    lower = text.lower()
    hint = f"; write {show(lower)}" if _PEER_NAME.fullmatch(lower) else ""
    raise ValueError(
        "must be a DNS label, 1 to 63 lower-case letters, digits and hyphens inside, got"
        f" {show(text)}{hint}"
    )


def allowed_macs(text: str) -> Literal["any", "own"] | tuple[bytes, ...]:
    """`any`, `own`, or MAC addresses of hosts separated by commas."""
    if text == "any":
        return "any"
    if text == "own":
        return "own"
    parts = text.split(",")
    if len(parts) > MAX_MACS_PER_PEER:
        raise ValueError(f"at most {MAX_MACS_PER_PEER} MAC addresses, got {len(parts)}")
    values: dict[bytes, None] = {}
    for part in parts:
        value = _mac(part.strip())
        if value in values:
            raise ValueError(f"{value.hex(':')} stands there twice")
        values[value] = None
    return tuple(values)


def _mac(text: str) -> bytes:
    """The MAC address of one host."""
    if not _MAC.fullmatch(text):
        raise ValueError(
            f"must be any, own or MAC addresses like 52:54:00:12:34:56, got {show(text)}"
        )
    value = bytes.fromhex(text.replace(text[2], ""))
    if value[0] & 1 or not any(value):
        raise ValueError(f"{text} is not the MAC address of one host")
    return value


def optional_interface_name(text: str) -> str:
    """A name that Linux takes for an interface as it is; empty for none."""
    if not text:
        return text
    if len(text.encode()) > INTERFACE_NAME_MAX_BYTES:
        raise ValueError(f"is longer than {INTERFACE_NAME_MAX_BYTES} bytes: {show(text)}")
    # '%' would make the kernel choose a number; the others it refuses, or tools misread
    if not text.isascii() or not text.isprintable() or re.search(r"[\s/:%]", text):
        raise ValueError(f"must be ASCII without spaces, '/', ':' and '%', got {show(text)}")
    if text in {".", "..", "all", "default"} or text.startswith("-"):
        raise ValueError(f"{show(text)} is not a usable interface name")
    return text


def url_path(text: str) -> str:
    """The path of a request: absolute, unescaped, without query."""
    if not _URL_PATH.fullmatch(text) or len(text) > _MAX_URL_PATH:
        raise ValueError(
            f"must begin with / and hold at most {_MAX_URL_PATH} letters, digits and URL "
            f"punctuation, without ?, # and %, got {show(text)}"
        )
    # proxies rewrite these, and the two ends would no longer agree
    if "//" in text or {".", ".."} & set(text.split("/")):
        raise ValueError(f"must not hold //, /./ or /../, got {show(text)}")
    return text


def file_path(text: str) -> Path:
    """An absolute path; a daemon's working directory means nothing to its operator."""
    if not text.startswith("/"):
        raise ValueError(f"must be an absolute path, got {show(text)}")
    if not text.isprintable() or len(text.encode()) > _MAX_PATH_BYTES:
        raise ValueError("is not a usable path: unprintable characters or too long")
    return Path(text)


def optional_file_path(text: str) -> Path | None:
    return file_path(text) if text else None


def optional_socket_path(text: str) -> Path | None:
    """An absolute path that fits into the address of a Unix socket."""
    path = optional_file_path(text)
    if path is not None and len(text.encode()) > _MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"must be at most {_MAX_SOCKET_PATH_BYTES} bytes long, as of a socket")
    return path


def public_key(text: str) -> bytes | None:
    """An Ed25519 key in base64; empty for none. Source: protocol section 2."""
    return identity.parse_public_key(text) if text else None


def secret_key(text: str) -> Secret | None:
    """A pre-shared key in hex; empty for none. Source: protocol section 2."""
    return Secret(psk.parse_psk(text)) if text else None
