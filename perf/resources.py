"""What the daemons need, and how long an interruption is.

CPU while nothing happens, with and without an open dashboard, and at 10,000 frames a second, memory
at the end of everything, start-up, a peer that is killed and comes back, and UDP that is blocked on
the way.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from shadowmesh.netlab import API_PORT, Daemon, NetlabError, wait_until

from .lab import PATHS, Lab, Lane, cpu_seconds, generate, output, spawn
from .report import Failure, Row, compared, unread
from .targets import (
    AEGIS,
    CPU_AT_10K_PERCENT,
    CPU_IDLE_PERCENT,
    FALL_BACK_S,
    MEMORY_MIB,
    REKEY_LOST,
    RESTART_S,
    ROUNDS,
    START_S,
    Target,
)
from .tunnel import SMALL_PAYLOAD, Readings, by_path, tunnel_names

GROUP = "resources"
FRAMES_PER_SECOND = 10_000
#: A ping that is not answered within this counts as lost; times are read to about as much.
PING_WAIT_S = 0.02
#: the subprotocol of the dashboard's WebSocket
FEED = "shadowmesh.events.v1"
HEAL_S = 20.0
#: The interval, which is 10 s, the jitter of up to 5 s, and a little after it.
REKEY_S = 16
BLOCK_UDP = """
table inet perf {
  chain in {
    type filter hook input priority filter; policy accept;
    iifname "eth0" meta l4proto udp drop
  }
}
"""


def measure(lab: Lab, quick: bool) -> Iterator[Row]:
    rounds, seconds = (1, 5) if quick else (ROUNDS, 10)
    yield from _idle(lab, rounds, seconds)
    yield from _watched(lab, rounds, seconds)
    yield from _ten_thousand(lab, rounds, 1)
    for name in tunnel_names():
        yield _memory(lab, name)
    interruptions: list[tuple[str, Mapping[str, Target], Callable[[Lane], float]]] = [
        ("start of a daemon to its first answered ping", START_S, start_up),
        ("peer killed and restarted: traffic after its start", RESTART_S, restart),
        ("UDP path blocked: tunnel back on WSS", FALL_BACK_S, fall_back),
    ]
    for title, targets, read in interruptions:
        times = Readings(lab)
        lanes = {_preferred(lab, path): target for path, target in targets.items()}
        times.take(rounds, read, lanes)
        for name, target in lanes.items():
            yield times.row(GROUP, name, "s", target=target, title=f"{title}, {name}")
    if not quick:
        yield from _rekeys(lab)


def _rekeys(lab: Lab) -> Iterator[Row]:
    """Steady frames across a change of keys, on both paths at the same time."""
    started = {}
    for path in PATHS:
        lane = lab.lanes[_preferred(lab, path)]
        if lane.failure is None:
            try:
                restart_with(lane, {"encryption.rotation_interval": "10s"})
                sockets = lane.datagrams()
                words = REKEY_S, FRAMES_PER_SECOND, SMALL_PAYLOAD
                started[path] = spawn("frames", *words, sockets=sockets)
            except (NetlabError, OSError) as error:
                lane.failure = Failure(str(error).partition("\n")[0], broken=True)
            else:
                for end in sockets:
                    end.close()
    for path in PATHS:
        lane, name = lab.lanes[_preferred(lab, path)], f"frames lost in a rekey under load, {path}"
        if lane.failure is not None:
            yield unread(GROUP, name, "", lane.failure, REKEY_LOST[path])
            continue
        sent, received, _ = output(started[path], REKEY_S + 15).split()
        rekeys = min(daemon.status()["session"]["rekeys"] for daemon in lane.daemons)
        if rekeys:
            lost = float(int(sent) - int(received))
            yield compared(GROUP, name, "", [lost], target=REKEY_LOST[path])
        else:
            why = Failure("the keys were not changed", broken=True)
            yield unread(GROUP, name, "", why, REKEY_LOST[path])


def restart_with(lane: Lane, settings: Mapping[str, object]) -> None:
    """Start both daemons of a lane again with other settings; back when they carry traffic."""
    for daemon in lane.daemons:
        daemon.terminate()
        daemon.settings.update(settings)
    for daemon in lane.daemons:
        daemon.start()
    lane.connect()


def _preferred(lab: Lab, path: str) -> str:
    best = lab.lanes[f"{path} {AEGIS}"]
    return best.name if best.failure is None else f"{path} chacha20-poly1305"


def _idle(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    """All daemons at once: they disturb each other less than anything else would."""
    idle = Readings(lab)
    for _ in range(rounds):
        before = {lane.name: _spent(lane) for lane in lab.tunnels()}
        began = time.monotonic()
        time.sleep(seconds)
        span = time.monotonic() - began
        for lane in lab.tunnels():
            most = max(
                now - start for now, start in zip(_spent(lane), before[lane.name], strict=True)
            )
            idle.values.setdefault(lane.name, []).append(100 * most / span)
    for name in tunnel_names():
        title = f"CPU of one daemon, idle, {name}"
        yield idle.row(GROUP, name, "%", target=CPU_IDLE_PERCENT, title=title)


def _spent(lane: Lane) -> list[float]:
    return [cpu_seconds(daemon.pid) for daemon in lane.daemons]


def _watched(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    """As `_idle`, for one daemon that a browser shows on its dashboard."""

    def read(lane: Lane) -> float:
        daemon = lane.daemons[0]
        with feed(daemon) as connection:
            before, began = cpu_seconds(daemon.pid), time.monotonic()
            while (span := time.monotonic() - began) < seconds:
                if not connection.recv(1 << 16):
                    raise NetlabError(f"{lane.name}: the daemon has ended GET /events")
            return 100 * (cpu_seconds(daemon.pid) - before) / span

    watched, name = Readings(lab), _preferred(lab, "udp")
    watched.take(rounds, read, [name])
    title = f"CPU of one daemon, idle, dashboard open, {name}"
    yield watched.row(GROUP, name, "%", target=CPU_IDLE_PERCENT, title=title)


def feed(daemon: Daemon) -> socket.socket:
    """Listen to a daemon as the dashboard does; the greeting has been read."""
    connection = daemon.host.connect(("127.0.0.1", API_PORT))
    connection.sendall(
        f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{API_PORT}\r\n"
        f"Origin: http://127.0.0.1:{API_PORT}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
        f"Sec-WebSocket-Protocol: {FEED}, bearer.{daemon.token()}\r\n\r\n".encode()
    )
    answer = connection.recv(1 << 16)
    if not answer.startswith(b"HTTP/1.1 101 "):
        connection.close()
        raise NetlabError(f"GET /events: {answer.splitlines()[:1]}")
    return connection


def _ten_thousand(lab: Lab, rounds: int, seconds: float) -> Iterator[Row]:
    lost: dict[str, int] = {}

    def read(lane: Lane) -> float:
        percent, missing = at_ten_thousand(lane, seconds)
        lost[lane.name] = lost.get(lane.name, 0) + missing
        return percent

    busy = Readings(lab)
    busy.take(rounds, read, tunnel_names())
    for name, target in by_path(CPU_AT_10K_PERCENT).items():
        title = f"CPU of one daemon at 10,000 frames/s, {name}"
        if lost.get(name):
            title += f" ({lost[name]} lost)"
        yield busy.row(GROUP, name, "%", target=target, title=title)


def at_ten_thousand(lane: Lane, seconds: float) -> tuple[float, int]:
    """What the busier daemon spends at 10,000 frames a second, % of a core; how many got lost."""
    before = _spent(lane)
    words = "frames", seconds, FRAMES_PER_SECOND, SMALL_PAYLOAD
    sent, received, _ = generate(*words, sockets=lane.datagrams())
    most = max(now - start for now, start in zip(_spent(lane), before, strict=True))
    return 100 * most / seconds, int(sent) - int(received)


def _memory(lab: Lab, name: str) -> Row:
    title = f"memory of one daemon after load, {name}"
    lane = lab.lanes[name]
    if lane.failure is not None:
        return unread(GROUP, title, "MiB", lane.failure, MEMORY_MIB)
    most = max(resident_bytes(daemon.pid) for daemon in lane.daemons)
    return compared(GROUP, title, "MiB", [most / 2**20], target=MEMORY_MIB)


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise NetlabError(f"process {pid}: no VmRSS in its status")


def first_answer(lane: Lane, began: float) -> float:
    """Ping from left to right until one is answered; seconds since `began`.

    Raises:
        TimeoutError: none within HEAL_S.
    """
    while time.monotonic() - began < HEAL_S:
        with contextlib.suppress(OSError):  # no route yet: the device is not there
            if lane.left.ping(lane.addresses[1], count=1, timeout_s=PING_WAIT_S).received:
                return time.monotonic() - began
        time.sleep(0.005)
    raise TimeoutError(f"{lane.name}: no ping answered within {HEAL_S:g} s")


def start_up(lane: Lane) -> float:
    """The dialling side is stopped in order, then started; the other one stays up."""
    left, right = lane.daemons
    left.terminate()
    wait_until(lambda: right.status()["state"] != "connected", HEAL_S, "the peer noticed")
    left.settings["peer.auto_connect"] = True
    began = time.monotonic()
    left.spawn()
    return _healed(lane, began)


def restart(lane: Lane) -> float:
    """The listening side crashes under a live tunnel and is started again at once."""
    right = lane.daemons[1]
    right.kill()
    began = time.monotonic()
    right.spawn()
    return _healed(lane, began)


def fall_back(lane: Lane) -> float:
    """A firewall on the way begins to drop UDP; pings go on and on."""
    for host in (lane.left, lane.right):
        host.nft(BLOCK_UDP)
    try:
        return first_answer(lane, time.monotonic())
    finally:
        for host in (lane.left, lane.right):
            host.nft("delete table inet perf\n")
        for daemon in lane.daemons:
            daemon.wait_for(60, path="udp")


def _healed(lane: Lane, began: float) -> float:
    taken = first_answer(lane, began)
    for daemon in lane.daemons:
        daemon.await_healthy()
        daemon.wait_for(HEAL_S, state="connected", path=lane.path)
    return taken
