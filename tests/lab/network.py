"""Daemons that come into one network by invitations: where the tests of networks begin."""

from __future__ import annotations

import base64
import contextlib
import http
import http.client
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shadowmesh.netlab import Daemon, Net, wait_until
from tests.lab.pair import assert_log_clean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PATIENCE_S = 30.0
NAME = "home"


@dataclass
class Network:
    """Hosts on one LAN; the first makes the network, and is its relay.

    Attributes:
        daemons: by the name of their member.
    """

    net: Net
    directory: Path
    daemons: dict[str, Daemon] = field(default_factory=dict)
    #: what no log may have: texts of invitations, recovery keys
    secrets: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Daemon:
        return self.daemons[name]

    def machines(self, *names: str, **settings: object) -> list[Daemon]:
        """Fresh hosts, each with a daemon that knows nobody; they start side by side."""
        made = []
        for name in names:
            host = self.net.host(f"h{len(self.net.hosts) + 1}")
            given = {"nat.enabled": True, "nat.stun_server": "", "daemon.log_level": "debug"}
            daemon = Daemon(host, self.directory / name, {**given, **settings})
            del daemon.settings["network.local_ip"]
            daemon.spawn()
            self.daemons[name] = daemon
            made.append(daemon)
        for daemon in made:
            daemon.await_healthy(PATIENCE_S)
        return made

    def machine(self, name: str, **settings: object) -> Daemon:
        """A fresh host with a daemon that knows nobody."""
        return self.machines(name, **settings)[0]

    def end(self, *names: str, by: str = "hub") -> None:
        """Machines are not needed any more, nor are they members."""
        for name in names:
            daemon = self.daemons.pop(name)
            daemon.kill()
            assert_log_clean(daemon)
            self.assert_no_secret(daemon)
            if name in self[by].peers():
                self.remove(name, by)

    def found(self, name: str = "hub", **body: Any) -> dict[str, Any]:
        """Let a fresh machine make the network; return what it says."""
        daemon = self.machine(name)
        said = self.ask(
            daemon, "POST", "/network",
            {"name": NAME, "own_name": name, "address": daemon.host.peer_endpoint, **body},
        )  # fmt: skip
        self.await_member(daemon)
        self.secrets.append(said["recovery_key"])
        return said

    def invite(self, by: str = "hub", **body: Any) -> str:
        """Return the text of an invitation."""
        token = str(self.ask(self[by], "POST", "/invitations", body)["token"])
        self.secrets.append(token)
        return token

    def join(
        self,
        name: str,
        token: str | None = None,
        *,
        announce: Sequence[str] = (),
        **settings: object,
    ) -> Daemon:
        """Let a fresh machine join; wait until it has begun anew as a member."""
        token = token or self.invite(name=name)
        daemon = self.machine(name, **settings)
        body = {"token": token, "name": name, "accept": True, "announce": list(announce)}
        self.ask(daemon, "POST", "/join", body)
        self.await_member(daemon)
        return daemon

    def assert_no_secret(self, daemon: Daemon) -> None:
        """Nothing that lets somebody into the network, or makes one, is in a log."""
        log = daemon.log()
        found = list(self.secrets)
        directory = daemon.state_dir / "network"
        for name in ("member.key", "secrets"):
            if (directory / name).exists():
                data = (directory / name).read_bytes()
                for at in (0, 4):  # the secret is behind its epoch
                    found += [
                        data[at : at + 32].hex(),
                        base64.b64encode(data[at : at + 32]).decode(),
                    ]
        for secret in found:
            assert secret not in log, f"{daemon.host.label}: a secret is in the log"

    def remove(self, name: str, by: str = "hub") -> Any:
        return self.ask(self[by], "DELETE", f"/peers/{name}")

    def network(self, daemon: Daemon) -> dict[str, Any] | None:
        """What a daemon says of its network."""
        found: dict[str, Any] | None = self.ask(daemon, "GET", "/network")["network"]
        return found

    def await_member(self, daemon: Daemon) -> None:
        """Wait until a daemon has begun anew, as a member."""

        wait_until(lambda: self._is_member(daemon) is True, PATIENCE_S, "a member")

    def await_no_member(self, daemon: Daemon) -> None:
        """Wait until a daemon has begun anew, in no network."""
        wait_until(lambda: self._is_member(daemon) is False, PATIENCE_S, "none any more")

    def _is_member(self, daemon: Daemon) -> bool | None:
        """Whether it is one; None while nobody answers."""
        try:
            return self.network(daemon) is not None
        except (OSError, AssertionError, http.client.HTTPException):
            return None

    def make(self, daemon: Daemon) -> None:
        """Let a machine that is in no network make one, and be in it."""
        address = daemon.host.peer_endpoint
        body = {"name": NAME, "own_name": daemon.host.label, "address": address}
        self.ask(daemon, "POST", "/network", body)
        self.await_member(daemon)

    def leave(self, daemon: Daemon) -> None:
        """Let a machine leave its network; wait until it has begun anew."""
        self.ask(daemon, "POST", "/leave")
        self.await_no_member(daemon)

    def await_session(self, one: str, other: str) -> None:
        """Wait for a session of one member with another."""

        def connected() -> bool:
            peers = self[one].peers()
            return other in peers and peers[other]["state"] == "connected"

        wait_until(connected, PATIENCE_S, f"a session of {one} with {other}")

    def address(self, name: str) -> str:
        """The IPv4 address of a member in the tunnel."""
        network = self.network(self[name])
        assert network is not None
        return next(str(one) for one in network["addresses"] if "." in one)

    @staticmethod
    def ask(daemon: Daemon, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Return a successful answer."""
        code, answer = daemon.api(method, path, body)
        assert code == http.HTTPStatus.OK, answer
        return dict(answer)


@contextlib.contextmanager
def running_network(directory: Path) -> Iterator[Network]:
    """A LAN without machines yet; afterwards their logs have no trouble in them."""
    with Net() as net:
        network = Network(net, directory)
        try:
            yield network
            for daemon in network.daemons.values():
                assert_log_clean(daemon)
                network.assert_no_secret(daemon)
        finally:
            for daemon in network.daemons.values():
                daemon.kill()
