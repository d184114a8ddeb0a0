"""Namespaces, the cables between them, and processes inside them.

Owns: namespaces named `smPID-N-LABEL`, their removal in any case, and nothing else on the machine.
Knows iproute2 and setns(2). Does not know what runs in a namespace.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from shadowmesh.netlab.ping import Ping, ping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
NETNS_DIRECTORY = Path("/run/netns")
LAB_NAME = re.compile(r"^sm(\d+)-")  # the number is the process that made the namespace
PEER_PORT = 9001

_libc = ctypes.CDLL(None, use_errno=True)
_net_numbers = itertools.count(1)


class NetlabError(RuntimeError):
    """A namespace, a command inside one or a daemon did not do what it was asked.

    The text may have many lines: the end of a log helps whoever reads it.
    """


def bound_to_us() -> tuple[str, ...]:
    """Return words in front of a command that let it end with this process, whatever ends this one.

    The kernel tells only a child that has asked before: whether this process is still there is
    looked at afterwards.
    """
    still_ours = '[ "$PPID" = "$0" ] && exec "$@"'
    return "setpriv", "--pdeathsig", "KILL", "sh", "-c", still_ours, str(os.getpid())


def wait_until(
    predicate: Callable[[], T], timeout_s: float, what: str, *, interval_s: float = 0.05
) -> T:
    """Poll `predicate` until it returns something true, and return that.

    Raises:
        TimeoutError: not within `timeout_s`; the text names `what` and the last value seen.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s, last seen {value!r}")
        time.sleep(interval_s)


@contextlib.contextmanager
def in_namespace(path: Path) -> Iterator[None]:
    """Run the block with the calling thread in the network namespace at `path`.

    Only this thread moves, and a socket stays where it was made, so a test may hold sockets of
    several hosts at once.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _setns(target)
        finally:
            os.close(target)
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def _setns(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


def _run(
    command: Sequence[str], *, check: bool, text: str | None = None, timeout_s: float = 60
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check and done.returncode != 0:
        raise NetlabError(
            f"{shlex.join(command)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}"
        )
    return done


class Host:
    """One network namespace, named `namespace` in /run/netns; `label` is its name in messages."""

    def __init__(self, namespace: str, label: str, number: int = 0) -> None:
        self.namespace = namespace
        self.label = label
        self.number = number
        self.ipv4 = f"198.51.100.{number}"
        self.ipv6 = f"2001:db8::{number:x}"
        self._children: list[subprocess.Popen[bytes]] = []

    def create(self) -> None:
        _run(["ip", "netns", "add", self.namespace], check=True)
        self.ip("link set lo up")

    def __repr__(self) -> str:
        return f"<Host {self.label} in {self.namespace}>"

    @property
    def peer_endpoint(self) -> str:
        """Where a daemon on this host accepts peers, as `host:port`."""
        return f"{self.ipv4}:{PEER_PORT}"

    def ip(self, *commands: str) -> str:
        """Carry out `ip` commands here, in one process; return what they print."""
        if len(commands) == 1:
            return _run(["ip", "-n", self.namespace, *commands[0].split()], check=True).stdout
        batch = "".join(f"{command}\n" for command in commands)
        return _run(["ip", "-n", self.namespace, "-batch", "-"], check=True, text=batch).stdout

    def nft(self, rules: str) -> None:
        """Load nftables rules; nft 1.0.6 wants one statement a line."""
        self.run("nft", "-f", "-", text=rules)

    def run(
        self, *command: str, check: bool = True, text: str | None = None, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return _run(
            ["ip", "netns", "exec", self.namespace, *command],
            check=check,
            text=text,
            timeout_s=timeout_s,
        )

    def popen(
        self, *command: str, log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process here; both its outputs are appended to `log`.

        `env` comes on top of what this process has. env(1) adds it: a copy of `os.environ` made
        here would fail now and then, since another thread may be changing it.
        """
        words = [f"{name}={value}" for name, value in (env or {}).items()]
        with log.open("ab") as output:
            child = subprocess.Popen(
                ["ip", "netns", "exec", self.namespace, "env", *words, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end the children in order
            )
        self._children.append(child)
        return child

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with in_namespace(NETNS_DIRECTORY / self.namespace):
            yield

    def open_socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self.entered():
            return socket.socket(family, kind, protocol)

    def connect(self, address: tuple[str, int], timeout_s: float = 5.0) -> socket.socket:
        with self.entered():
            return socket.create_connection(address, timeout=timeout_s)

    def listen(self, address: tuple[str, int]) -> socket.socket:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        with self.entered():
            return socket.create_server(address, family=family)

    def interfaces(self) -> dict[str, dict[str, Any]]:
        """Return what `ip -json address` says, by interface name."""
        rows = json.loads(self.ip("-json -details address show") or "[]")
        return {row["ifname"]: row for row in rows if row}

    def taps(self) -> list[str]:
        return [
            name
            for name, row in self.interfaces().items()
            if row.get("linkinfo", {}).get("info_kind") == "tun"
        ]

    def ping(
        self,
        address: str,
        *,
        count: int = 3,
        size: int = 56,
        timeout_s: float = 1.0,
        payload: bytes = b"",
        dont_fragment: bool = False,
    ) -> Ping:
        """Send ICMP echo requests one after the other, each waiting for its answer.

        `size` is the length of the data; 1,472 bytes make a 1,514-byte Ethernet frame on IPv4.
        """
        with self.entered():
            return ping(
                address,
                count=count,
                timeout_s=timeout_s,
                payload=payload.ljust(size, b"."),
                dont_fragment=dont_fragment,
            )

    def pids(self) -> list[int]:
        listing = _run(["ip", "netns", "pids", self.namespace], check=False)
        return [int(word) for word in listing.stdout.split()]

    def remove(self) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for child in self._children:
            child.kill()  # one that has not entered the namespace yet, or has left it
            child.wait()
        _run(["ip", "netns", "delete", self.namespace], check=False)


class Net:
    """A switch and the hosts on it. Leaving the block removes them, with what runs in them."""

    def __init__(self) -> None:
        self.prefix = f"sm{os.getpid()}-{next(_net_numbers)}"
        self.hosts: list[Host] = []
        self._namespaces: list[Host] = []
        self._closed = False
        atexit.register(self.close)
        try:
            self.switch = self.namespace("switch")
            self.switch.ip(
                "link add br0 type bridge forward_delay 0 mcast_snooping 0", "link set br0 up"
            )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def namespace(self, label: str, number: int = 0) -> Host:
        """Make a namespace without any cable; the net removes it."""
        host = Host(f"{self.prefix}-{label}", label, number)
        self._namespaces.append(host)  # before it exists, so that half of one is removed too
        host.create()
        return host

    def host(self, label: str) -> Host:
        """Make a host and plug its eth0 into the switch; IPv6 without duplicate detection."""
        host = self.namespace(label, len(self.hosts) + 1)
        self.hosts.append(host)
        port = self.port(host)
        host.ip(
            f"link add eth0 type veth peer name {port} netns {self.switch.namespace}",
            "link set eth0 addrgenmode none",
            f"address add {host.ipv4}/24 dev eth0",
            f"address add {host.ipv6}/64 dev eth0 nodad",
            "link set eth0 up",
        )
        self.switch.ip(f"link set {port} master br0", f"link set {port} up")
        return host

    def port(self, host: Host) -> str:
        """The switch's interface towards `host`."""
        return f"p{host.number}"

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        for host in reversed(self._namespaces):
            host.remove()


def sweep() -> list[str]:
    """Remove namespaces whose maker died without cleaning up; return their names.

    Only names of this library's own form are looked at.
    """
    removed = []
    names = os.listdir(NETNS_DIRECTORY) if NETNS_DIRECTORY.is_dir() else []
    for name in sorted(names):
        match = LAB_NAME.match(name)
        if match is None or Path(f"/proc/{match[1]}").exists():
            continue
        Host(name, name).remove()
        removed.append(name)
    return removed
