"""Our tunnel beside other tunnels that are installed here, in turns, on cables of the same kind.

    tinc          switch mode, its default cipher          layer 2
    openvpn       TAP, TLS, AES-256-GCM                    layer 2
    fastd         TAP, salsa2012+umac                     layer 2
    n2n           its default cipher; edge to edge         layer 2
    wireguard-go  ChaCha20-Poly1305                        layer 3

All over UDP, and each as it comes: what is not set here has the program's own default. The version
is in the name because it decides: one program may be several times as fast two years later.
Nothing is installed, and nothing judged.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.hazmat.primitives.serialization import PublicFormat as Public

from shadowmesh.link.tls import load_or_create_certificate
from shadowmesh.netlab import Host, Net, NetlabError, wait_until

from .lab import Kind, Lab, Lane, cable
from .latency import RoundTrips, idle_trips, trips_beside_stream
from .report import Failure, Row
from .resources import first_answer
from .targets import AEGIS, CHACHA
from .tunnel import Readings, Streams, small_frames

TUNNELS = (Kind("udp", AEGIS), Kind("udp", CHACHA), Kind("wss", AEGIS))
NETWORK = "10.9.0"
DEVICE_S, CONTROL_S, END_S = 10.0, 5.0, 3.0
N2N_PORT = 7654
LOG_CHARACTERS = 100  # of the last line of a log, in the table
#: where wireguard-go is told its keys; shared by all network namespaces
WIREGUARD_SOCKETS = Path("/var/run/wireguard")

Process = subprocess.Popen[bytes]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two hosts of a tunnel; all that a program gets lies below `directory`."""

    host: Host
    peer: Host
    directory: Path
    device: str

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.host.number}"

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def await_device(self) -> None:
        wait_until(lambda: self.device in self.host.interfaces(), DEVICE_S, f"{self.device} made")

    def start(self, *command: object, **environment: str) -> Process:
        words = map(str, command)
        return self.host.popen(*words, log=self.directory / "log", env=environment)


Sides = tuple[Side, Side]


def parse_version(text: str) -> str:
    """The first number with a blank, a "v" or a dot in front of it, or ""."""
    found = re.search(r"[ v.](\d+(?:\.\d+)*)", text)
    return found[1] if found else ""


@dataclass(frozen=True, slots=True)
class Program:
    """A tunnel of others: what prints its version, and what starts it on both sides."""

    name: str
    banner: tuple[str, str]
    start: Callable[[Sides], Sequence[Process]]

    def missing(self) -> Failure | None:
        command = self.banner[0]
        return None if shutil.which(command) else Failure(f"{command} is not installed")

    def version(self) -> str:
        told = subprocess.run(
            self.banner, capture_output=True, text=True, check=False, timeout=CONTROL_S
        )
        return parse_version(told.stdout + told.stderr)


def tinc(sides: Sides) -> Sequence[Process]:
    for side in sides:
        side.write(
            "tinc.conf",
            f"Name = host{side.host.number}\nConnectTo = host{side.peer.number}\n"
            f"Mode = switch\nDeviceType = tap\nInterface = {side.device}\nAddressFamily = ipv4\n",
        )
        key = generate_private_key(65537, 2048)
        private = key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()
        ).decode()
        public = key.public_key().public_bytes(Encoding.PEM, Public.PKCS1).decode()
        side.write("rsa_key.priv", private)
        for each in sides:
            each.write(f"hosts/host{side.host.number}", f"Address = {side.host.ipv4}\n{public}")
    return [
        side.start("tincd", "-D", "-c", side.directory, f"--pidfile={side.directory / 'pid'}")
        for side in sides
    ]


def openvpn(sides: Sides) -> Sequence[Process]:
    files = [(side.directory / "cert.pem", side.directory / "key.pem") for side in sides]
    prints = [load_or_create_certificate(*pair).sha256.hex(":") for pair in files]
    roles = "tls-server\ndh none", "tls-client"
    started = []
    for side, pair, known, role in zip(sides, files, reversed(prints), roles, strict=True):
        config = side.write(
            "openvpn.conf",
            f"dev {side.device}\ndev-type tap\nproto udp\n"
            f"local {side.host.ipv4}\nremote {side.peer.ipv4}\n"
            f"{role}\ncert {pair[0]}\nkey {pair[1]}\npeer-fingerprint {known}\n"
            "data-ciphers AES-256-GCM\n",
        )
        started.append(side.start("openvpn", "--config", config))
    return started


def fastd(sides: Sides) -> Sequence[Process]:
    keys = [fastd_keys() for _ in sides]
    # The second alone dials, and the first is there by then: of two handshakes at the same time the
    # sides may take different keys, and one that nobody answers is repeated only much later.
    remotes = "", f"remote {sides[0].host.ipv4}:10000;"
    started = []
    for side, (secret, _), (_, known), remote in zip(
        sides, keys, reversed(keys), remotes, strict=True
    ):
        config = side.write(
            "fastd.conf",
            f'mode tap;\ninterface "{side.device}";\nmtu 1426;\nmethod "salsa2012+umac";\n'
            f'bind {side.host.ipv4}:10000;\nsecret "{secret}";\n'
            f'peer "other" {{ key "{known}"; {remote} }}\n',
        )
        started.append(side.start("fastd", "--config", config))
        side.await_device()
    return started


def fastd_keys() -> tuple[str, str]:
    """A new secret and its public key, on a curve that only fastd has."""
    done = subprocess.run(
        ["fastd", "--generate-key"], capture_output=True, text=True, check=False, timeout=CONTROL_S
    )
    found = re.findall(r"\b[0-9a-f]{64}\b", done.stdout)
    if len(found) != 2:
        raise NetlabError(f"fastd --generate-key: exit {done.returncode}, {len(found)} keys")
    return found[0], found[1]


def n2n(sides: Sides) -> Sequence[Process]:
    # The options of version 3 are those of its manual; only 1.3 has been tried.
    old = N2N.version().startswith("1.")
    where = sides[0].host
    port = ("-l", N2N_PORT) if old else ("-f", "-p", N2N_PORT)
    supernode = sides[0].start("supernode", *port)
    wait_until(
        lambda: f":{N2N_PORT}" in where.run("ss", "-Hlun").stdout, CONTROL_S, "supernode listening"
    )
    key = secrets.token_hex(16)
    words = () if old else ("-f",)
    edges = [
        side.start(
            *("edge", *words, "-d", side.device, "-a", side.address, "-c", "perf"),
            *("-l", f"{where.ipv4}:{N2N_PORT}", "-p", 5000),
            N2N_KEY=key,
        )
        for side in sides
    ]
    return [supernode, *edges]


def wireguard_go(sides: Sides) -> Sequence[Process]:
    started = [side.start("wireguard-go", "-f", side.device) for side in sides]
    keys = [X25519PrivateKey.generate() for _ in sides]
    for side, own, other in zip(sides, keys, reversed(keys), strict=True):
        known = other.public_key().public_bytes(Encoding.Raw, Public.Raw)
        set_wireguard(
            side.device,
            f"set=1\nprivate_key={own.private_bytes_raw().hex()}\nlisten_port=51820\n"
            f"public_key={known.hex()}\nendpoint={side.peer.ipv4}:51820\n"
            f"allowed_ip={NETWORK}.0/24\n\n",
        )
    return started


def set_wireguard(device: str, text: str) -> None:
    """Configure a device by its control socket, which is there soon after its start."""
    path = WIREGUARD_SOCKETS / f"{device}.sock"
    wait_until(path.exists, CONTROL_S, f"{path} made")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
        control.settimeout(CONTROL_S)
        control.connect(str(path))
        control.sendall(text.encode())
        answer = control.recv(4096).decode()
    if "errno=0" not in answer:
        raise NetlabError(f"wireguard-go has not taken its configuration: {answer.strip()}")


N2N = Program("n2n", ("edge", "-h"), n2n)
PROGRAMS = (
    Program("tinc", ("tincd", "--version"), tinc),
    Program("openvpn", ("openvpn", "--version"), openvpn),
    Program("fastd", ("fastd", "--version"), fastd),
    N2N,
    Program("wireguard-go", ("wireguard-go", "--version"), wireguard_go),
)


@contextlib.contextmanager
def beside(lab: Lab, directory: Path, programs: Sequence[Program] = PROGRAMS) -> Iterator[None]:
    """Add a lane for each program to a lab, for the time of the block."""
    with Net() as net:
        lanes = [_lane(net, program, directory / program.name) for program in programs]
        lab.lanes.update((lane.name, lane) for lane in lanes)
        try:
            yield
        finally:
            for lane in lanes:
                del lab.lanes[lane.name]
                _end(lane.programs)
            for left_behind in WIREGUARD_SOCKETS.glob(f"{net.prefix}-*"):
                left_behind.unlink(missing_ok=True)


def _lane(net: Net, program: Program, directory: Path) -> Lane:
    hosts = cable(net, program.name)
    lane = Lane(
        program.name, *hosts, (f"{NETWORK}.{hosts[0].number}", f"{NETWORK}.{hosts[1].number}")
    )
    lane.failure = program.missing()
    if lane.failure is not None:
        return lane
    lane.name = f"{program.name} {program.version()}".strip()
    sides = _side(net, *hosts, directory), _side(net, *reversed(hosts), directory)
    try:
        lane.programs = tuple(program.start(sides))
        for side in sides:
            side.await_device()
            side.host.ip(
                f"address replace {side.address}/24 dev {side.device}",
                f"link set {side.device} up",
            )
        first_answer(lane, time.monotonic())
    except (NetlabError, OSError) as error:
        why = str(error).partition("\n")[0], _last_line(sides[0])
        lane.failure = Failure("; ".join(filter(None, why)))
    return lane


def _side(net: Net, host: Host, peer: Host, directory: Path) -> Side:
    # The name of a device is one of a file, too (WIREGUARD_SOCKETS): no two runs share it.
    own = directory / str(host.number)
    own.mkdir(mode=0o700, parents=True)
    return Side(host, peer, own, f"{net.prefix}-{host.number}")


def _last_line(side: Side) -> str:
    log = side.directory / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return lines[-1][:LOG_CHARACTERS] if lines else ""


def _end(processes: Sequence[Process]) -> None:
    """In order, so that each takes away what it has made; whoever does not is killed by the net."""
    for process in processes:
        process.terminate()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)


def measure(lab: Lab, quick: bool) -> Iterator[Row]:
    rounds, seconds = (1, 0.6) if quick else (3, 1.2)
    streams, idle_times, loaded_times = Streams(1, seconds), RoundTrips(), RoundTrips()
    speed, rate, idle, loaded = (Readings(lab) for _ in range(4))
    speed.take(rounds, streams.read)
    idle.take(rounds, idle_trips(idle_times, seconds / 2))
    loaded.take(rounds, trips_beside_stream(loaded_times, seconds))
    rate.take(rounds, small_frames(rate, 0.25))
    yield from _rows(lab, "TCP, 1 stream", "Gbit/s", speed)
    yield from _rows(lab, "round trip, idle, p50", "us", idle)
    for percent in (50, 99):
        of_all = loaded.derived(loaded_times.percentiles(percent, "ms"))
        yield from _rows(lab, f"round trip beside one TCP stream, p{percent}", "ms", of_all)
    yield from _rows(lab, "64-byte frames, one way, at most 1 % lost", "/s", rate)
    spent = speed.derived(streams.cpu_per_gb)
    for lane in lab.lanes.values():
        if lane.name not in ("veth", "vxlan"):  # which are the kernel's
            yield spent.row("CPU seconds of both daemons for one GB", lane.name, "s")


def _rows(lab: Lab, group: str, unit: str, readings: Readings) -> Iterator[Row]:
    for name in lab.lanes:
        yield readings.row(group, name, unit, "" if name == "vxlan" else "vxlan")
