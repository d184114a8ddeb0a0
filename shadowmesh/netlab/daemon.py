"""A real daemon on a host of the lab.

Owns: its configuration, state and log below one directory, and its process. Knows the daemon's
command line and control API (docs/interface); does not know anything about its inside.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from shadowmesh.netlab.namespaces import NetlabError, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

    from shadowmesh.netlab.namespaces import Host

API_PORT = 9090


class _Connection(http.client.HTTPConnection):
    """HTTP to the loopback of a host's namespace."""

    def __init__(self, host: Host, port: int, timeout_s: float) -> None:
        super().__init__("127.0.0.1", port, timeout=timeout_s)
        self._lab_host = host
        self._lab_timeout_s = timeout_s

    def connect(self) -> None:
        self.sock = self._lab_host.connect(("127.0.0.1", self.port), self._lab_timeout_s)


def program(name: str, directory: Path | None = None) -> str:
    """Path of one of our commands, beside the interpreter that runs us or in `directory`.

    Raises:
        NetlabError: it is not installed there.
    """
    path = (directory or Path(sys.executable).parent) / name
    if not path.exists():
        raise NetlabError(f"{path}: not there; `make build` installs it")
    return str(path)


class Daemon:
    """One shadowmesh-daemon on one host, with its configuration and state below `directory`.

    `settings` has dotted keys (`network.local_ip`), and `peers` for the list of many peers; it may
    be changed until the next start, and until the next `write_config` for a reload.
    """

    def __init__(
        self,
        host: Host,
        directory: Path,
        settings: Mapping[str, object] | None = None,
        *,
        wrapper: Sequence[str] = (),
        programs: Path | None = None,
    ) -> None:
        self.host = host
        self.directory = directory
        self.wrapper = tuple(wrapper)  # setpriv and the like, put before the command
        self.programs = programs  # where those of another build are; None: ours
        self.environment: dict[str, str] = {}  # beside what this process has, from the next start
        self.process: subprocess.Popen[bytes] | None = None
        self.config_path = directory / "daemon.yaml"
        self.log_path = directory / "daemon.log"
        self.state_dir = directory / "state"
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.settings: dict[str, object] = {
            "daemon.listen_address": f"127.0.0.1:{API_PORT}",
            "daemon.log_level": "debug",
            "daemon.pid_file": str(directory / "daemon.pid"),
            "daemon.state_dir": str(self.state_dir),
            "network.local_ip": f"10.0.0.{host.number}/24",
            "nat.enabled": False,
            "websocket.tls_cert": str(directory / "cert.pem"),
            "websocket.tls_key": str(directory / "key.pem"),
            **(settings or {}),
        }

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    @functools.cached_property
    def public_key(self) -> str:
        """The daemon's own key as `peer.public_key` of the other side wants it."""
        from shadowmesh.keys.identity import format_public_key, load_or_create_identity

        return format_public_key(load_or_create_identity(self.state_dir).public_key)

    @property
    def tap(self) -> str:
        return str(self.settings.get("network.tap_device", "tap0"))

    @property
    def tunnel_ip(self) -> str:
        """Our address in the tunnel; empty for none. In a network the daemon knows it."""
        given = self.settings.get("network.local_ip")
        if given is not None:
            return str(given).partition("/")[0]
        network = self.network()
        addresses = () if network is None else network["addresses"]
        return next((str(one) for one in addresses if ":" not in one), "")

    def network(self) -> dict[str, Any] | None:
        """What the daemon says of the network that it is in; None in none."""
        code, answer = self.api("GET", "/network")
        if code != http.HTTPStatus.OK:
            raise NetlabError(f"daemon on {self.host.label}: GET /network gave {code}: {answer}")
        found: dict[str, Any] | None = answer["network"]
        return found

    @property
    def pid(self) -> int:
        if self.process is None:
            raise NetlabError(f"daemon on {self.host.label}: not started")
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def write_config(self) -> None:
        sections: dict[str, Any] = {}
        for key, value in self.settings.items():
            section, dot, name = key.partition(".")
            if dot:
                sections.setdefault(section, {})[name] = value
            else:
                sections[section] = value
        self.config_path.write_text(yaml.safe_dump(sections))
        self.config_path.chmod(0o600)

    def command(self) -> list[str]:
        return [program("shadowmesh-daemon", self.programs), "--config", str(self.config_path)]

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and return at once."""
        self.write_config()
        self.process = self.host.popen(
            *self.wrapper, *self.command(), log=self.log_path, env=self.environment
        )
        return self.process

    def start(self, timeout_s: float = 20.0) -> None:
        """Start the process and return when its API says that it is healthy.

        Raises:
            NetlabError: it ended, or is not healthy in time; the text has the end of its log.
        """
        self.spawn()
        self.await_healthy(timeout_s)

    def await_healthy(self, timeout_s: float = 20.0) -> None:
        """Wait for a spawned daemon as `start` does."""

        def healthy() -> bool:
            if self.process is None or self.process.poll() is not None:
                code = None if self.process is None else self.process.returncode
                raise NetlabError(
                    f"daemon on {self.host.label}: exit {code} at start:\n{self.log_tail()}"
                )
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.api("GET", "/health", authorize=False)[0] == http.HTTPStatus.OK
            return False

        try:
            wait_until(healthy, timeout_s, f"daemon on {self.host.label} healthy")
        except TimeoutError as error:
            raise NetlabError(f"{error}:\n{self.log_tail()}") from error

    def kill(self) -> None:
        """SIGKILL, as a crash or a power cut; nothing when it does not run."""
        self._end(signal.SIGKILL, 10)

    def terminate(self, timeout_s: float = 10.0) -> tuple[int, float]:
        """SIGTERM; return the exit code and the seconds that it took."""
        started = time.monotonic()
        self._end(signal.SIGTERM, timeout_s)
        if self.process is None:
            raise NetlabError(f"daemon on {self.host.label}: not started")
        return self.process.returncode, time.monotonic() - started

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, number: signal.Signals, timeout_s: float) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            self.process.kill()
            self.process.wait()
            raise NetlabError(
                f"daemon on {self.host.label}: still there {timeout_s:g} s after {number.name}"
            ) from error

    def cli(
        self, *arguments: str, text: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run the CLI on the daemon's host with the daemon's configuration."""
        command = [program("shadowmesh"), "--config", str(self.config_path), *arguments]
        return self.host.run(*command, check=False, text=text, timeout_s=timeout_s)

    def token(self) -> str:
        return (self.state_dir / "api.token").read_text().strip()

    def api(
        self,
        method: str,
        route: str,
        body: object = None,
        *,
        authorize: bool = True,
        headers: Mapping[str, str] | None = None,
        raw: bytes | None = None,
        timeout_s: float = 60.0,
    ) -> tuple[int, Any]:
        """Return status and decoded body of one request, with the daemon's token unless told.

        `body` is sent as JSON; `raw` is sent as it is.
        """
        sent = dict(headers or {})
        if authorize:
            sent.setdefault("Authorization", f"Bearer {self.token()}")
        data = raw
        if body is not None:
            data = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        connection = _Connection(self.host, API_PORT, timeout_s)
        try:
            connection.request(method, route, body=data, headers=sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if "json" in (answer.getheader("Content-Type") or ""):
            return answer.status, json.loads(content)
        return answer.status, content.decode(errors="replace")

    def status(self) -> dict[str, Any]:
        code, snapshot = self.api("GET", "/status")
        if code != http.HTTPStatus.OK:
            raise NetlabError(f"daemon on {self.host.label}: GET /status gave {code}: {snapshot}")
        return dict(snapshot)

    def peers(self) -> dict[str, dict[str, Any]]:
        """Return what `GET /peers` says of each peer, by its name."""
        code, answer = self.api("GET", "/peers")
        if code != http.HTTPStatus.OK:
            raise NetlabError(f"daemon on {self.host.label}: GET /peers gave {code}: {answer}")
        return {peer["name"]: peer for peer in answer["peers"]}

    def reload(self) -> dict[str, Any]:
        """Write the configuration anew and have it read; return what came of it.

        Raises:
            NetlabError: it is refused; the text has the answer.
        """
        self.write_config()
        code, answer = self.api("POST", "/reload")
        if code != http.HTTPStatus.OK:
            raise NetlabError(f"daemon on {self.host.label}: POST /reload gave {code}: {answer}")
        return dict(answer)

    def wait_for(self, timeout_s: float = 10.0, **wanted: object) -> dict[str, Any]:
        """Wait until the status has these fields, for instance `state="connected"`.

        Raises:
            NetlabError: not in time; the text has the last status and the end of the log.
        """
        last: dict[str, Any] = {}

        def reached() -> bool:
            last.update(self.status())
            return all(last.get(key) == value for key, value in wanted.items())

        try:
            wait_until(reached, timeout_s, f"{self.host.label} {wanted}")
        except TimeoutError:
            seen = {key: last.get(key) for key in (*wanted, "state", "phase", "last_error")}
            raise NetlabError(
                f"daemon on {self.host.label}: {wanted} not within {timeout_s:g} s, status "
                f"{seen}, log:\n{self.log_tail()}"
            ) from None
        return last

    def connect(self, peer: str | None = None) -> dict[str, Any]:
        """Connect through the API; return the snapshot.

        Raises:
            NetlabError: refused or failed; the text has the answer and the end of the log.
        """
        code, answer = self.api("POST", "/connect", None if peer is None else {"peer": peer})
        if code != http.HTTPStatus.OK:
            raise NetlabError(
                f"daemon on {self.host.label}: POST /connect gave {code}: {answer}\n"
                f"{self.log_tail()}"
            )
        return dict(answer)

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int = 25) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def introduce(one: Daemon, other: Daemon, *, psk: bool = True, pins: bool = True) -> None:
    """Give two daemons each other's public key, a shared key, or both, before they start."""
    if psk:
        one.settings["encryption.key"] = other.settings["encryption.key"] = secrets.token_hex(32)
    if pins:
        one.settings["peer.public_key"] = other.public_key
        other.settings["peer.public_key"] = one.public_key


def acquaint(daemons: Sequence[Daemon]) -> None:
    """Let each of many daemons list all others, before they start; of each two the first dials."""
    psk = secrets.token_hex(32)
    for index, daemon in enumerate(daemons):
        daemon.settings["encryption.key"] = psk
        daemon.settings["peers"] = [
            {
                "name": other.host.label,
                "public_key": other.public_key,
                "tunnel_ips": [ip for ip in (other.tunnel_ip,) if ip],
                **({"address": other.host.peer_endpoint} if number > index else {}),
            }
            for number, other in enumerate(daemons)
            if other is not daemon
        ]
