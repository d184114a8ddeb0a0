"""Putting the configuration together: flags over environment over file over defaults.

Owns: precedence, defaults that depend on the machine, rules between keys, and that all
problems come out at once. Does not know: the form of the file (`yamlfile`) or of a value
(`values`).
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from shadowmesh.base.constants import (
    API_SOCKET_FILE,
    MODE_PSK,
    SYSTEM_API_SOCKET,
    SYSTEM_CONFIG_FILE,
    SYSTEM_STATE_DIR,
    USER_CONFIG_FILE,
    USER_STATE_DIR,
)
from shadowmesh.base.errors import ConfigError, Problem
from shadowmesh.base.units import listed as joined_by_commas
from shadowmesh.base.words import nearest
from shadowmesh.config import peerlist, yamlfile
from shadowmesh.config.model import Addresses, Config, HostPort, LoadedConfig
from shadowmesh.config.peerlist import PeerList
from shadowmesh.config.schema import ENVIRONMENT_PREFIX, KEYS, PEERS, SECTIONS, Key
from shadowmesh.config.values import format_duration, show
from shadowmesh.config.yamlfile import FileContent, Raw
from shadowmesh.keys.private_file import closing_command

DEFAULT_SOURCE = "default"
#: the warnings about who can be a peer, which a network takes back: nobody, anybody
NOBODY = (
    "neither peer.public_key nor encryption.key is set: no peer is accepted and connect "
    "is refused; `shadowmesh join` a network, or exchange keys with `shadowmesh pubkey` and set"
    " peer.public_key"
)
ANYBODY = (
    "peer.public_key is not set: whoever holds encryption.key can pose as anybody; set "
    "peer.public_key to pin the peer"
)

#: what is of the TAP alone: what holds without one. Without `offload` no peer would have it either:
#: its kernel does not know for whom a frame is
_WITHOUT_TAP: dict[str, Any] = {
    "network.local_ip": Addresses(),
    "network.persist_tap": False,
    "network.offload": True,
    "network.queues": "auto",
}

#: which nobody reads, and somebody may hope for
_PEERS_VARIABLE = ENVIRONMENT_PREFIX + PEERS.upper()


@dataclass(frozen=True, slots=True)
class _Setting:
    """A value for a key from one source."""

    raw: Raw
    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


def load(
    path: Path | None,
    flags: Mapping[str, str],
    environ: Mapping[str, str],
    *,
    is_root: bool | None = None,
) -> LoadedConfig:
    """Return the checked configuration.

    Args:
        path: the file named by `--config`, which must exist; None: the first found of
            /etc/shadowmesh/daemon.yaml and ~/.shadowmesh/config.yaml, or no file.
        flags: text of each `section.key` given on the command line.
        environ: the environment; only HOME and SHADOWMESH_* are looked at.
        is_root: for tests; None: ask the system.
    Raises:
        ConfigError: with every problem of every source.
    """
    home = _home(environ)
    problems: list[Problem] = []
    found, content = _find_file(path, home, problems)
    given: list[tuple[Key, _Setting]] = []
    listed: PeerList | None = None
    if found is not None and content is not None:
        problems += content.problems
        _take_file(str(found), content, given, problems)
        listed = _take_peers(str(found), content, problems)
    _take_environment(environ, given, problems)
    _take_flags(flags, given, problems)

    values: dict[str, Any] = {
        key.name: key.parse(key.default) for key in KEYS.values() if key.default is not None
    }
    settings: dict[str, _Setting] = {}
    for key, setting in given:
        # a wrong value is reported even when a stronger source hides it
        try:
            values[key.name] = key.checked(setting.raw)
        except ValueError as error:
            problems.append(Problem(setting.source, setting.line, key.name, str(error)))
        settings[key.name] = setting
    if listed is not None:
        _refuse_both(listed, settings, problems)
    root = os.geteuid() == 0 if is_root is None else is_root
    service_dir = _service_directory(environ)
    if service_dir is not None:
        _use_service_directory(values, settings, service_dir)
    unused: list[str] = []
    if not (problems or values["network.tap_device"]):
        unused = _do_without_tap(values, settings)
    if not problems:
        _resolve(values, home, problems, is_root=root)
    if not problems:
        _check_together(values, settings, problems)
        _check_peers(listed, values, problems)
    if found is not None and content is not None and content.mode & 0o077:
        _check_private(found, settings, problems)
    if problems:
        raise ConfigError(problems)

    sources = {name: str(settings.get(name, DEFAULT_SOURCE)) for name in KEYS}
    if listed is not None:
        sources[PEERS] = str(listed)
        sources.update({f"{PEERS}.{peer.entry.name}": str(peer) for peer in listed.peers})
    config = _build(values, listed)
    warnings = tuple(_warnings(config, found, content, unused))
    return LoadedConfig(config, sources, found, warnings)


def _home(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HOME", "")
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return None  # a container's user without an entry
    return Path(home) if home.startswith("/") else None


def _service_directory(environ: Mapping[str, str]) -> Path | None:
    """Return the state directory that systemd made for us; None outside of a service.

    Source: systemd.exec(5), StateDirectory=.
    """
    first = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(first) if first.startswith("/") else None


def _use_service_directory(
    values: dict[str, Any], settings: Mapping[str, _Setting], directory: Path
) -> None:
    """Keep state there by default, and the certificate too unless one is where it usually is.

    The service may write to no other place, and does not run as root.
    """
    if "daemon.state_dir" not in settings:
        values["daemon.state_dir"] = directory
    pair = ("websocket.tls_cert", "websocket.tls_key")
    if not any(name in settings or os.path.lexists(values[name]) for name in pair):
        for name in pair:
            values[name] = directory / values[name].name


def _find_file(
    path: Path | None, home: Path | None, problems: list[Problem]
) -> tuple[Path | None, FileContent | None]:
    """Return the first file found and what it holds."""
    if path is not None:
        content = yamlfile.read(path)
        if content is None:
            message = "no such file; name an existing one with --config"
            problems.append(Problem(str(path), None, None, message))
        return path, content
    candidates = [Path(SYSTEM_CONFIG_FILE)]
    if home is not None:
        candidates.append(home / USER_CONFIG_FILE)
    for candidate in candidates:
        content = yamlfile.read(candidate)
        if content is not None:
            return candidate, content
    return None, None


# --- Sources, each later one wins -------------------------------------------------------------


def _take_file(
    source: str,
    content: FileContent,
    given: list[tuple[Key, _Setting]],
    problems: list[Problem],
) -> None:
    unknown: list[Problem] = []
    for name, section in content.sections.items():
        if name not in (*SECTIONS, PEERS) and len(unknown) < yamlfile.MAX_PROBLEMS:
            message = f"unknown section {show(name)}{_suggestion(name, (*SECTIONS, PEERS))}"
            unknown.append(Problem(source, section.line, None, message))
        elif name in SECTIONS and section.kind not in {"mapping", "null"}:
            message = "must be a section of keys, each on a line of its own"
            problems.append(Problem(source, section.line, name, message))
    for entry in content.entries:
        if entry.section not in SECTIONS:
            continue  # said once, for the section
        name = f"{entry.section}.{entry.key}"
        if name in KEYS:
            given.append((KEYS[name], _Setting(entry.raw, source, entry.line)))
        elif len(unknown) < yamlfile.MAX_PROBLEMS:
            message = f"unknown key {show(entry.key)}{_suggest_key(entry.section, entry.key)}"
            unknown.append(Problem(source, entry.line, entry.section, message))
    problems += unknown


def _take_peers(source: str, content: FileContent, problems: list[Problem]) -> PeerList | None:
    """Return the list of peers; None when the file has none, or nothing in its place."""
    section = content.sections.get(PEERS)
    if section is None or section.kind == "null":
        return None
    if section.kind != "list":
        message = "must be a list of peers, each of which begins with `- name:`"
        problems.append(Problem(source, section.line, PEERS, message))
        return None
    listed, wrong = peerlist.read(source, section)
    problems += _first(wrong, listed)
    return listed


def _first(wrong: Sequence[Problem], listed: PeerList) -> Iterator[Problem]:
    """Give as many of the mistakes of a list as somebody wants to read, and how many more."""
    yield from wrong[: yamlfile.MAX_PROBLEMS]
    if len(wrong) > yamlfile.MAX_PROBLEMS:
        message = f"has {len(wrong) - yamlfile.MAX_PROBLEMS} more mistakes, which are not shown"
        yield Problem(listed.source, listed.line, PEERS, message)


def _take_environment(
    environ: Mapping[str, str], given: list[tuple[Key, _Setting]], problems: list[Problem]
) -> None:
    names = {key.environment: key for key in KEYS.values()}
    prefixes = tuple(f"{ENVIRONMENT_PREFIX}{section.upper()}_" for section in SECTIONS)
    for name, text in sorted(environ.items()):
        source = f"environment {name}"
        if name in names:
            given.append((names[name], _Setting(Raw("text", text), source)))
        elif name.startswith(prefixes):
            # other SHADOWMESH_ names belong to tests, scripts and the command-line program
            message = f"unknown variable{_suggestion(name, names)}; correct or unset it"
            problems.append(Problem(source, None, None, message))
        elif name == _PEERS_VARIABLE or name.startswith(f"{_PEERS_VARIABLE}_"):
            message = "unknown variable; a list of peers can stand in the file only, so unset it"
            problems.append(Problem(source, None, None, message))


def _take_flags(
    flags: Mapping[str, str], given: list[tuple[Key, _Setting]], problems: list[Problem]
) -> None:
    for name, text in flags.items():
        source = f"flag --{name}"
        key = KEYS.get(name)
        if key is None:
            problems.append(Problem(source, None, None, f"unknown flag{_suggestion(name, KEYS)}"))
        elif key.secret:
            message = (
                "a secret on the command line is visible to every user; put it into the file or "
                f"into {key.environment}, and make a new key if this one was in use"
            )
            problems.append(Problem(source, None, name, message))
        else:
            given.append((key, _Setting(Raw("text", text), source)))


def _suggestion(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return "" if near is None else f'; did you mean "{near}"?'


def _suggest_key(section: str, name: str) -> str:
    elsewhere = [key.name for key in KEYS.values() if key.attribute == name]
    if elsewhere:
        return f'; did you mean "{elsewhere[0]}"?'
    return _suggestion(name, [key.attribute for key in KEYS.values() if key.section == section])


# --- Values -----------------------------------------------------------------------------------


def _resolve(
    values: dict[str, Any], home: Path | None, problems: list[Problem], *, is_root: bool
) -> None:
    """Fill in the defaults that depend on the machine or on other keys."""
    values.setdefault("encryption.key", None)
    values.setdefault("peer.auto_connect", values["peer.address"] is not None)
    if "daemon.state_dir" not in values:
        if is_root:
            values["daemon.state_dir"] = Path(SYSTEM_STATE_DIR)
        elif home is not None:
            values["daemon.state_dir"] = home / USER_STATE_DIR
        else:
            message = "this user has no home directory; set the key to an absolute path"
            problems.append(Problem(DEFAULT_SOURCE, None, "daemon.state_dir", message))
            return
    # A second daemon has another state_dir, and with it another socket.
    state_dir = values["daemon.state_dir"]
    system = state_dir == Path(SYSTEM_STATE_DIR)
    values.setdefault(
        "daemon.api_socket", Path(SYSTEM_API_SOCKET) if system else state_dir / API_SOCKET_FILE
    )


def _do_without_tap(values: dict[str, Any], settings: dict[str, _Setting]) -> list[str]:
    """Set what is of the TAP as it is without one; return the keys that say something else.

    That a key has its default says nothing: the example has all of them.
    """
    unused = []
    for name, value in _WITHOUT_TAP.items():
        given, default = values[name], KEYS[name].default
        if given != value and default is not None and given != KEYS[name].parse(default):
            unused.append(name)
        values[name], settings[name] = value, settings["network.tap_device"]
    return unused


def _refuse_both(
    listed: PeerList, settings: Mapping[str, _Setting], problems: list[Problem]
) -> None:
    """Refuse a peer beside the list, of whatever source; the empty one of the example is none."""
    for name, setting in settings.items():
        if KEYS[name].section == "peer" and setting.raw.text:
            message = (
                f"cannot stand beside {PEERS} ({listed}), of which peer is the short form"
                " for one; move it into the list, or remove it"
            )
            problems.append(Problem(setting.source, setting.line, name, message))
            return


def _check_together(
    values: Mapping[str, Any], settings: Mapping[str, _Setting], problems: list[Problem]
) -> None:
    """Check what only several keys together can get wrong."""

    def problem(message: str, *names: str) -> None:
        """Blame the first of the keys that was set."""
        name = next((name for name in names if name in settings), names[0])
        setting = settings.get(name, _Setting(Raw("text"), DEFAULT_SOURCE))
        problems.append(Problem(setting.source, setting.line, name, message))

    if values["peer.auto_connect"] and values["peer.address"] is None:
        problem("is true, but peer.address says not whom to dial", "peer.auto_connect")
    keepalive, silence = values["websocket.keepalive_interval"], values["websocket.read_timeout"]
    if silence <= keepalive:
        problem(
            f"read_timeout {format_duration(silence)} must be longer than keepalive_interval "
            f"{format_duration(keepalive)}, or a quiet link dies between two keepalives",
            "websocket.read_timeout", "websocket.keepalive_interval",
        )  # fmt: skip
    if values["websocket.tls_cert"] == values["websocket.tls_key"]:
        problem("tls_cert and tls_key must be two files", "websocket.tls_key", "websocket.tls_cert")
    if values["peer.address"] is not None:
        objection = _why_not_dialled(
            values["peer.address"], values["network.local_ip"], values["websocket.listen_address"]
        )
        if objection is not None:
            problem(objection, "peer.address", "network.local_ip")

    listeners: list[tuple[str, HostPort]] = [
        ("daemon.listen_address", values["daemon.listen_address"])
    ]
    if values["websocket.listen_address"] is not None:
        listeners.append(("websocket.listen_address", values["websocket.listen_address"]))
    metrics_port = values["monitoring.prometheus_port"]
    if values["monitoring.metrics_enabled"] and metrics_port:
        listeners.append(("monitoring.prometheus_port", HostPort("127.0.0.1", metrics_port)))
    for index, (name, address) in enumerate(listeners):
        for other_name, other in listeners[:index]:
            if _collide(address, other):
                problem(f"{address} is already taken by {other_name}", name, other_name)


def _check_peers(
    listed: PeerList | None, values: Mapping[str, Any], problems: list[Problem]
) -> None:
    """Check what a peer of the list and the other sections can get wrong together."""
    if listed is None:
        return
    wrong: list[Problem] = []
    local_ips, listen = values["network.local_ip"], values["websocket.listen_address"]
    ours = {address.ip for address in local_ips}
    for peer in listed.peers:
        if peer.entry.address is not None:
            objection = _why_not_dialled(peer.entry.address, local_ips, listen)
            if objection is not None:
                wrong.append(peer.problem("address", objection))
        for ip in peer.entry.tunnel_ips:
            if ip in ours:
                message = f"{ip} is this machine's own, from network.local_ip"
                wrong.append(peer.problem("tunnel_ips", message))
    problems += _first(wrong, listed)


def why_not_dialled(target: HostPort, config: Config) -> str | None:
    """Return why this address cannot be that of the peer; None when it can."""
    return _why_not_dialled(target, config.network.local_ip, config.websocket.listen_address)


def _why_not_dialled(target: HostPort, local_ips: Addresses, listen: HostPort | None) -> str | None:
    ip = _ip(target)
    for local_ip in local_ips:
        if ip is not None and ip in local_ip.network:
            return (
                f"{ip} lies in {local_ip.network}, the network inside the tunnel; give the "
                "address that the peer has outside of it"
            )
    # The same port of the loopback interface cannot be anybody else's.
    is_loopback = target.host == "localhost" if ip is None else ip.is_loopback
    if listen is not None and is_loopback and _collide(target, listen):
        return (
            f"{target} is this daemon itself (websocket.listen_address {listen}); give the "
            "address of the other machine"
        )
    return None


def _check_private(path: Path, settings: Mapping[str, _Setting], problems: list[Problem]) -> None:
    """Refuse secrets in a file that others have rights to. Source: `keys.private_file`."""
    status = path.stat()
    for name, setting in settings.items():
        if KEYS[name].secret and setting.line is not None and setting.raw.text:
            message = (
                f"stands in a file of mode {stat.S_IMODE(status.st_mode):04o}, so others may have"
                f" read it; if nobody did, `{closing_command(path, status)}`, else make a new key"
                " too"
            )
            problems.append(Problem(setting.source, setting.line, name, message))


def _ip(address: HostPort) -> Any:
    try:
        return ip_address(address.host)
    except ValueError:
        return None


def _collide(one: HostPort, other: HostPort) -> bool:
    """Tell whether two listeners cannot both have their address."""
    if one.port != other.port:
        return False
    hosts = {one.host, other.host}
    return len(hosts) == 1 or bool(hosts & {"0.0.0.0", "::"})


def _build(values: Mapping[str, Any], listed: PeerList | None) -> Config:
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for key in KEYS.values():
        sections[key.section][key.attribute] = values[key.name]
    return Config(
        **{name: SECTIONS[name](**fields) for name, fields in sections.items()},
        peer_list=None if listed is None else tuple(peer.entry for peer in listed.peers),
    )


def _warnings(
    config: Config, path: Path | None, content: FileContent | None, unused: Sequence[str]
) -> Iterable[str]:
    mode = 0 if content is None else content.mode
    if mode & 0o022:
        yield f"{path} may be changed by others (mode {mode:04o}); `chmod go-w {path}`"
    if unused:
        yield (
            "network.tap_device is empty: there is no TAP device, and what is set of it is not used;"
            f" remove {joined_by_commas(unused)}, or name a device"
        )
    if config.listed and not config.peers:
        yield f"{PEERS} is an empty list: no peer is accepted and none is dialled; add one"
    if config.mode == 0:
        yield NOBODY
    elif config.mode == MODE_PSK:
        yield ANYBODY
    api = config.daemon.listen_address
    address = _ip(api)
    if api.host != "localhost" and (address is None or not address.is_loopback):
        yield (
            f"daemon.listen_address {api} is not a loopback address: the API token crosses the "
            "network in clear text"
        )
