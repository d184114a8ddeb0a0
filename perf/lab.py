"""The lanes that are compared: pairs of hosts, each joined by one cable, and what runs between.

Owns: namespaces, kernel devices and daemons of all lanes for the time of a run, and the calls of
the traffic generator. Does not know: what is measured, targets, how results are shown.

    veth, vxlan          one pair of hosts with nothing but the kernel: the references
    wss|udp CIPHER       a pair of hosts for each, with one real daemon on either host

Every lane has its own cable (veth, no switch between), all lanes stay up together, and only one
carries traffic at a time, so that they can be measured in turns.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from shadowmesh._fastpath import build_info
from shadowmesh.netlab import Daemon, Host, Net, NetlabError, introduce
from shadowmesh.service.switches import VARIABLE

from .report import Failure

ROOT = Path(__file__).resolve().parent.parent
SOURCES, PROGRAMS = ROOT / "perf", ROOT / "build" / "perf"

CIPHERS = ("chacha20-poly1305", "aegis-256")
PATHS = ("wss", "udp")


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes a tunnel: its path, its cipher, the optimisation that both sides do without.

    `queues` of the TAP: 0 is what the daemon takes by itself. `title` tells tunnels apart that are
    alike, or of the same settings with the daemons of another build, whose checkout is `built`.
    """

    path: str
    cipher: str
    without: str = ""  # a word of shadowmesh.service.switches
    queues: int = 0
    title: str = ""
    built: Path | None = None

    @property
    def name(self) -> str:
        name = f"{self.path} {self.cipher}" + (self.without and f" without {self.without}")
        name += self.title and f" {self.title}"
        return f"{name}, queues: {self.queues}" if self.queues else name

    @property
    def programs(self) -> Path | None:
        """Where its daemons' programs are; None: beside the interpreter that runs us."""
        return self.built and self.built / ".venv" / "bin"


TUNNELS = tuple(Kind(path, cipher) for path in PATHS for cipher in CIPHERS)
REFERENCES = ("veth", "vxlan")

CONNECT_S = 15.0
#: What the sockets of a test may hold, so that a loss is the tunnel's and not the generator's.
DATAGRAM_BUFFER_BYTES = 8 << 20
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h
VXLAN_NETWORK = "10.1.0"


class Broken(Exception):
    """A lane is not, or no longer, what its name says; the text says why."""


@dataclass
class Lane:
    """One way from `left` to `right`; `addresses` are theirs on it.

    `daemons` are ours, `programs` those of others; a reference has neither.
    """

    name: str
    left: Host
    right: Host
    addresses: tuple[str, str]
    path: str = ""
    cipher: str = ""
    daemons: tuple[Daemon, ...] = ()
    programs: tuple[subprocess.Popen[bytes], ...] = ()
    failure: Failure | None = None  # why it cannot be measured

    def datagrams(self) -> tuple[socket.socket, socket.socket]:
        """Return a UDP socket on either host, connected to each other."""
        pair = []
        for host, address in zip((self.left, self.right), self.addresses, strict=True):
            made = host.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, DATAGRAM_BUFFER_BYTES)
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, DATAGRAM_BUFFER_BYTES)
            made.bind((address, 0))
            pair.append(made)
        left, right = pair
        left.connect(right.getsockname())
        right.connect(left.getsockname())
        return left, right

    def streams(self, count: int, congestion: str = "") -> list[socket.socket]:
        """Return `count` TCP connections as sender, receiver, sender, receiver, ...

        `congestion` is the sender's algorithm; empty: what this machine prefers.
        """
        ends = []
        with self.right.listen((self.addresses[1], 0)) as listener:
            for _ in range(count):
                ends.append(self.left.connect(listener.getsockname()[:2]))
                ends.append(listener.accept()[0])
        for end in ends:
            end.setblocking(True)
        for sender in ends[::2] if congestion else ():
            sender.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
        return ends

    def connect(self) -> None:
        """Connect running daemons; back when they use the path of the lane.

        Raises:
            NetlabError: they do not, in time.
        """
        if self.daemons[0].status()["state"] == "disconnected":
            self.daemons[0].connect()
        for daemon in self.daemons:
            daemon.wait_for(CONNECT_S, state="connected", path=self.path)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in (*self.daemons, *self.programs)]

    def cpu_seconds(self) -> float:
        return sum(map(cpu_seconds, self.pids))


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its threads, those that have ended too, to the nanosecond."""
    # What clock_getcpuclockid(3) gives for a process; Python has it for threads only.
    return time.clock_gettime(~pid << 3 | 2)


@dataclass
class Lab:
    """All lanes of a run. Use as a context manager: leaving it removes everything.

    `kinds` are its tunnels; with `references` there are the lanes of the kernel as well.
    """

    directory: Path
    kinds: Sequence[Kind] = TUNNELS
    references: bool = True
    lanes: dict[str, Lane] = field(default_factory=dict)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            net = stack.enter_context(Net())
            if self.references:
                self._references(net)
            for kind in self.kinds:
                self._tunnel(net, kind, stack)
            self._connect()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def usable(self) -> list[Lane]:
        return [lane for lane in self.lanes.values() if lane.failure is None]

    def tunnels(self) -> list[Lane]:
        return [lane for lane in self.usable() if lane.daemons]

    def settle(self, lane: Lane) -> None:
        """Make sure that a lane is what its name says.

        Raises:
            Broken: it is not (any more), for instance because UDP has fallen back.
        """
        for daemon in lane.daemons:
            status = daemon.status()
            found = status["state"], status["path"], status["cipher"]
            if found != ("connected", lane.path, lane.cipher):
                raise Broken(f"{daemon.host.label} says {found}")
        for program in lane.programs:
            if program.poll() is not None:
                raise Broken(f"{lane.name}: exit {program.returncode}")

    @contextlib.contextmanager
    def plain_cables(self) -> Iterator[None]:
        """Switch off what a veth does for free and a plain network card does not."""
        self._offloads("off")
        try:
            yield
        finally:
            self._offloads("on")

    @contextlib.contextmanager
    def slow_cables(self, rate: str) -> Iterator[None]:
        """Let what leaves the left hosts wait for a line of that rate.

        Its queue is deep, a second, as those of modems are: whoever fills it waits in it.
        """
        lefts = {lane.left.namespace: lane.left for lane in self.lanes.values()}.values()
        shape = f"rate {rate} burst 16kb latency 1s"
        try:
            for host in lefts:
                host.run("tc", *f"qdisc add dev eth0 root tbf {shape}".split())
            yield
        finally:
            for host in lefts:
                host.run("tc", "qdisc", "del", "dev", "eth0", "root")

    def _offloads(self, state: str) -> None:
        hosts = [host for lane in self.lanes.values() for host in (lane.left, lane.right)]
        for host in {host.namespace: host for host in hosts}.values():
            # Without the last one trains of datagrams (UDP_SEGMENT) would cross the cable whole.
            words = (
                word
                for feature in ("tso", "gso", "gro", "tx-udp-segmentation")
                for word in (feature, state)
            )
            host.run("ethtool", "-K", "eth0", *words)

    def _references(self, net: Net) -> None:
        left, right = cable(net, "kernel")
        self.lanes["veth"] = Lane("veth", left, right, (left.ipv4, right.ipv4))
        for host, peer in ((left, right), (right, left)):
            host.ip(
                f"link add vxlan0 type vxlan id 7 remote {peer.ipv4} dstport 4789 dev eth0",
                f"address add {VXLAN_NETWORK}.{host.number}/24 dev vxlan0",
                "link set vxlan0 up",
            )
        addresses = f"{VXLAN_NETWORK}.{left.number}", f"{VXLAN_NETWORK}.{right.number}"
        self.lanes["vxlan"] = Lane("vxlan", left, right, addresses)

    def _tunnel(self, net: Net, kind: Kind, stack: contextlib.ExitStack) -> None:
        path, cipher = kind.path, kind.cipher
        name, label = kind.name, kind.name.replace(" ", "-").replace(",", "").replace(":", "")
        hosts = cable(net, label)
        settings: dict[str, object] = {
            "daemon.log_level": "info",
            "encryption.cipher": cipher,
            "nat.enabled": path == "udp",
            "nat.stun_server": "",
        }
        if kind.queues:
            settings["network.queues"] = kind.queues
        one, other = (
            Daemon(
                host,
                self.directory / f"{label}-{host.number}",
                settings,
                programs=kind.programs,
            )
            for host in hosts
        )
        if kind.without:
            one.environment[VARIABLE] = other.environment[VARIABLE] = kind.without
        lane = Lane(name, *hosts, (one.tunnel_ip, other.tunnel_ip), path, cipher, (one, other))
        self.lanes[name] = lane
        if cipher == "aegis-256" and not build_info()["aegis256"]:
            lane.failure = Failure("this build or processor has no AEGIS-256")
            return
        introduce(one, other)
        one.settings["peer.address"] = hosts[1].peer_endpoint
        one.settings["peer.auto_connect"] = False
        for daemon in lane.daemons:
            stack.callback(daemon.kill)
            daemon.spawn()

    def _connect(self) -> None:
        for lane in self.tunnels():
            try:
                for daemon in lane.daemons:
                    daemon.await_healthy()
                lane.connect()
            except NetlabError as error:
                lane.failure = Failure(str(error).splitlines()[0], broken=True)


def cable(net: Net, label: str) -> tuple[Host, Host]:
    """Make two hosts joined by nothing but a veth pair, eth0 on either side."""
    left, right = net.namespace(f"{label}-1", 1), net.namespace(f"{label}-2", 2)
    left.ip(f"link add eth0 type veth peer name eth0 netns {right.namespace}")
    for host in (left, right):
        host.ip(f"address add {host.ipv4}/24 dev eth0", "link set eth0 up")
    return left, right


def build(name: str) -> Path:
    """Compile perf/NAME.c unless the program is newer than its source; return the program.

    Raises:
        NetlabError: there is no compiler, or it refuses; the text has what it said.
    """
    source, made = SOURCES / f"{name}.c", PROGRAMS / name
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        made.parent.mkdir(parents=True, exist_ok=True)
        compiler = shutil.which(os.environ.get("CC", "cc"))
        if compiler is None:
            raise NetlabError(f"no C compiler for perf/{source.name}")
        command = [compiler, "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(made), str(source)]
        done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise NetlabError(f"perf/{source.name} does not compile:\n{done.stderr}")
    return made


def spawn(mode: str, *words: object, sockets: Sequence[socket.socket]) -> subprocess.Popen[str]:
    """Start the generator with `sockets` as its last arguments; the caller may close them."""
    fds = [end.fileno() for end in sockets]
    command = [str(build("generator")), mode, *map(str, words), *map(str, fds)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pass_fds=fds
    )


def output(process: subprocess.Popen[str], timeout_s: float) -> str:
    """Wait for a generator; return what it printed.

    Raises:
        NetlabError: it failed, or did not end in time and was killed.
    """
    try:
        out, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise NetlabError(f"generator: still there after {timeout_s:g} s") from error
    if process.returncode != 0:
        raise NetlabError(f"generator: exit {process.returncode}: {errors.strip()}")
    return out


def generate(
    mode: str, seconds: float, *words: object, sockets: Sequence[socket.socket]
) -> list[str]:
    """Run the generator to its end; return the words that it printed."""
    with contextlib.ExitStack() as stack:
        for end in sockets:
            stack.enter_context(end)
        process = spawn(mode, seconds, *words, sockets=sockets)
        return output(process, seconds + 15).split()
