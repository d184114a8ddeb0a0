"""What many peers cost: `make perf ARGS="--only many"`.

    streams      to four peers and from four, beside one, all on the cores of this machine
    idle         round trips with a thousand peers in the list, of whom one is there, beside one
                 peer; and the same with a table full of addresses
    slow         round trips to one peer while another has a line of 1 Mbit/s and all of it is used
    broadcast    CPU for one frame to a hundred peers, each with keys of its own
    table        a lookup and what is learned from one frame, in a full table

Real daemons, but for the last two. AEGIS-256 throughout.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from shadowmesh._fastpath import CIPHER_NAMES, DataPlane, Port, Session, build_info
from shadowmesh.base.constants import MAX_PEERS, Caps
from shadowmesh.fast.bench import Bench
from shadowmesh.netlab import NetlabError

from .lab import PATHS, Broken, Lane, cpu_seconds, generate, output, spawn
from .latency import ONE_AFTER_THE_OTHER, parse_round_trips
from .report import Failure, Row, compared, percentile, unread
from .star import Star, star
from .targets import (
    AEGIS,
    BROADCAST_US,
    IDLE_PEERS_RTT,
    MANY_STREAMS,
    ROUNDS,
    SLOW_PEER_RTT,
    TABLE_NS,
    Target,
)
from .tunnel import SMALL_PAYLOAD

SPOKES = 4
IDLE = 1_000 - 1
#: Learned on the hub's own side: fewer than it would begin to make room for others at.
ADDRESSES = 7_500
ETHERTYPE = 0x88B5  # IEEE 802, local experiments
SLOW_RATE = "1mbit"
#: of which a stream has more than so many bits a second when it fills the line
SLOW_LEAST_BITS = 0.6e6
#: until every queue in front of the slow line is full
SLOW_WARM_UP_S = 3.0
BROADCASTS_PER_S = 500
MEMBERS = 100
TABLE_ADDRESSES, TABLE_TURNS = 8192, 100
Rounds = dict[str, list[float]]


def measure(directory: Path, quick: bool) -> Iterator[Row]:
    """Everything; the daemons' files lie below `directory`."""
    yield from _table(quick)
    if not build_info()["aegis256"]:
        failure = Failure("this build or processor has no AEGIS-256")
        yield unread("many peers", "daemons and broadcasts", "", failure)
        return
    rounds, seconds = (1, 0.7) if quick else (ROUNDS, 1.5)
    yield from _broadcast_to_members(rounds, seconds)
    for path in PATHS:
        yield from _star(directory / path, path, rounds, seconds)
    for path in PATHS:
        yield from _idle(directory, path, rounds, seconds)
    yield from _slow(directory / "slow", rounds, seconds)


def in_turns(rounds: int, reads: Mapping[str, Callable[[], float]]) -> Rounds | Failure:
    """Read each of these once a round, in alternating order; the failure of the first that fails."""
    values: Rounds = {name: [] for name in reads}
    for turn in range(rounds):
        for name in reads if turn % 2 == 0 else reversed(list(reads)):
            try:
                values[name].append(reads[name]())
            except (Broken, NetlabError, OSError, ValueError) as error:
                why = str(error).partition("\n")[0]
                return Failure(f"{name}: {why}", broken=True)
    return values


def shown(
    group: str,
    unit: str,
    found: Rounds | Failure,
    names: Sequence[str],
    reference: str = "",
    target: Target | None = None,
) -> Iterator[Row]:
    """A row for each name, beside the reference where there is one."""
    for name in names:
        judged = None if name == reference else target
        if isinstance(found, Failure):
            yield unread(group, name, unit, found, judged)
        elif name == reference or not reference:
            yield compared(group, name, unit, found[name], target=judged)
        else:
            yield compared(group, name, unit, found[name], reference, found[reference], judged)


# --- Streams and broadcasts of one daemon ---------------------------------------------------------


def _star(directory: Path, path: str, rounds: int, seconds: float) -> Iterator[Row]:
    group = f"TCP, one stream for each peer, {path} {AEGIS}, all on {_cores()} cores"
    to_one, to_all, from_all = "1 to 1", f"1 to {SPOKES}", f"{SPOKES} to 1"
    names = to_one, to_all, from_all
    told = f"CPU of the daemon for one broadcast to {SPOKES} peers, {path} {AEGIS}"
    try:
        with star(directory, [path] * SPOKES) as built:
            outward = built.lanes
            inward = [built.lane(number, back=True) for number in range(SPOKES)]
            ways = (outward[:1], outward, inward)
            found = in_turns(
                rounds,
                {
                    name: lambda lanes=lanes: _gbits(built, lanes, seconds)
                    for name, lanes in zip(names, ways, strict=True)
                },
            )
            spent = in_turns(rounds, {told: lambda: _broadcast_us(built, seconds)})
    except (NetlabError, TimeoutError) as error:
        found = spent = Failure(str(error).partition("\n")[0], broken=True)
    yield from shown(group, "Gbit/s", found, names, to_one, MANY_STREAMS)
    yield from shown("broadcasts", "us", spent, [told])


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _gbits(built: Star, lanes: Sequence[Lane], seconds: float) -> float:
    """What all receivers take together, each of one stream."""
    ends = [end for lane in lanes for end in lane.streams(1)]
    counted, span, _ = generate("stream", seconds, sockets=ends)
    built.settle()
    return int(counted) * 8 / float(span) / 1e9


def _broadcast_us(built: Star, seconds: float) -> float:
    """CPU of the hub for one frame of its host's to all spokes, in us."""
    out, one = (
        daemon.host.open_socket(socket.AF_INET, socket.SOCK_DGRAM)
        for daemon in (built.hub, built.spokes[0])
    )
    one.bind(("", 0))
    out.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    out.connect((built.hub.tunnel_ip.rpartition(".")[0] + ".255", one.getsockname()[1]))
    before = cpu_seconds(built.hub.pid)
    words = seconds, BROADCASTS_PER_S, SMALL_PAYLOAD
    sent, received, _ = generate("frames", *words, sockets=(out, one))
    spent = cpu_seconds(built.hub.pid) - before
    if int(received) < 0.99 * int(sent):
        raise Broken(f"{received} of {sent} broadcasts arrived")
    return 1e6 * spent / int(sent)


# --- A thousand who are not there -----------------------------------------------------------------


def _idle(directory: Path, path: str, rounds: int, seconds: float) -> Iterator[Row]:
    group = f"round trip, idle, one after the other, p50, {path} {AEGIS}"
    one, many = "1 peer", f"1 of {1 + IDLE:,} peers"
    full = f"{many}, {ADDRESSES:,} MACs"
    assert 1 + IDLE <= MAX_PEERS
    try:
        with (
            star(directory / f"{path}-one", [path]) as alone,
            star(directory / f"{path}-many", [path], idle=IDLE) as crowded,
        ):
            reads = {
                one: lambda: percentile(_trips(alone, 0, seconds), 50),
                many: lambda: percentile(_trips(crowded, 0, seconds), 50),
            }
            found = in_turns(rounds, reads)
            _fill_table(crowded)
            filled = in_turns(rounds, {one: reads[one], full: reads[many]})
    except (NetlabError, TimeoutError, Broken) as error:
        found = filled = Failure(str(error).partition("\n")[0], broken=True)
    yield from shown(group, "us", found, [one, many], one, IDLE_PEERS_RTT)
    yield from shown(group, "us", filled, [full], one, IDLE_PEERS_RTT)


def _trips(built: Star, number: int, seconds: float) -> list[float]:
    """Round trips to that spoke, in us."""
    words = generate("rtt", seconds, ONE_AFTER_THE_OTHER, sockets=built.lane(number).datagrams())
    built.settle()
    return parse_round_trips(words)[0]


def _fill_table(built: Star) -> None:
    """Let the hub's own side send a frame from each of many addresses, as hosts behind a bridge do.

    Raises:
        Broken: the table has not learned them.
    """
    hub, tap = built.hub, built.hub.tap
    there = built.spokes[0]
    to = bytes.fromhex(there.host.interfaces()[there.tap]["address"].replace(":", ""))
    with hub.host.open_socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((tap, ETHERTYPE))
        for number in range(ADDRESSES):
            source = b"\x02\0" + number.to_bytes(4)
            wire.send((to + source + ETHERTYPE.to_bytes(2)).ljust(60, b"\0"))
            if number % 100 == 0:
                time.sleep(0.001)  # less than the queue of the device holds
    code, answer = hub.api("GET", "/fdb")
    known = len(answer["entries"]) if code == 200 else 0
    if known < ADDRESSES:
        raise Broken(f"the table has {known} of {ADDRESSES} addresses")


# --- One peer with a slow line --------------------------------------------------------------------


def _slow(directory: Path, rounds: int, seconds: float) -> Iterator[Row]:
    """The first spoke has the slow line, the round trips go to the others."""
    group = f"round trip to a peer while another one's line of {SLOW_RATE}, over wss, is full"
    seen: dict[str, list[list[float]]] = {}

    def read(built: Star, number: int, name: str) -> float:
        times = _trips(built, number, seconds)
        seen.setdefault(name, []).append(times)
        return percentile(times, 50)

    def quiet_line(built: Star, number: int, name: str) -> float:
        time.sleep(SLOW_WARM_UP_S)  # what the load before has left on the line goes
        return read(built, number, name)

    def loaded(built: Star, number: int, name: str) -> float:
        with _stream_to(built, 0, SLOW_WARM_UP_S + seconds):
            return read(built, number, name)

    try:
        with star(directory, ["wss", *PATHS]) as built, built.slow_line(0, SLOW_RATE):
            found = {
                (path, quiet, busy): in_turns(
                    rounds,
                    {
                        quiet: lambda number=number, name=quiet: quiet_line(built, number, name),
                        busy: lambda number=number, name=busy: loaded(built, number, name),
                    },
                )
                for number, path in enumerate(PATHS, 1)
                for quiet, busy in [(f"{path} {AEGIS}, idle", f"{path} {AEGIS}")]
            }
    except (NetlabError, TimeoutError) as error:
        failure = Failure(str(error).partition("\n")[0], broken=True)
        for path in PATHS:
            yield unread(group, f"{path} {AEGIS}", "us", failure, SLOW_PEER_RTT)
        return
    for percent, target in ((50, SLOW_PEER_RTT), (99, None)):
        for (_, quiet, busy), outcome in found.items():
            rows: Rounds | Failure = outcome
            if not isinstance(outcome, Failure):
                rows = {
                    name: [percentile(times, percent) for times in seen[name]]
                    for name in (quiet, busy)
                }
            yield from shown(f"{group}, p{percent}", "us", rows, [quiet, busy], quiet, target)


@contextlib.contextmanager
def _stream_to(built: Star, number: int, seconds: float) -> Iterator[None]:
    """One TCP stream takes all of the way to that spoke from the beginning of the block on.

    Raises:
        Broken: it did not.
    """
    ends = built.lane(number).streams(1, "cubic")
    stream = spawn("stream", seconds, sockets=ends)
    for end in ends:
        end.close()
    time.sleep(SLOW_WARM_UP_S)
    try:
        yield
    finally:
        counted, span, _ = output(stream, seconds + 20).split()
    if int(counted) * 8 / float(span) < SLOW_LEAST_BITS:
        raise Broken(f"the stream to the slow peer had {counted} bytes in {span} s")


# --- The data plane alone -------------------------------------------------------------------------


def _broadcast_to_members(rounds: int, seconds: float) -> Iterator[Row]:
    """A plane with a hundred ports, each with a session over UDP to a socket of this machine.

    They come one by one, as broadcasts do, so that a wake-up of the thread is part of each.
    """
    name = f"CPU of the data plane for one broadcast to {MEMBERS} peers, udp {AEGIS}"
    with ExitStack() as stack:
        host, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for end in (host, device):
            stack.enter_context(end)
        ours.bind(("127.0.0.1", 0))
        for end in (ours, device):
            end.setblocking(False)
        plane = DataPlane()
        stack.callback(plane.detach_udp)
        stack.callback(plane.detach_tap)
        plane.attach_tap([device.fileno()], 1500)
        plane.attach_udp(ours.fileno(), socket.AF_INET)
        for number in range(MEMBERS):
            _member(stack, plane, number)
        found = in_turns(rounds, {name: lambda: _plane_us(plane, host, seconds)})
    yield from shown("broadcasts", "us", found, [name], target=BROADCAST_US)


def _member(stack: ExitStack, plane: DataPlane, number: int) -> None:
    theirs = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    theirs.bind(("127.0.0.1", 0))
    port, session = Port(plane), Session(plane)
    stack.callback(port.close)
    stack.callback(session.close)
    session.belongs_to(port)
    key_id = session.reserve_key_id()
    keys = (bytes([1 + number, kind]) * 16 for kind in range(4))
    names = "wss_tx", "wss_rx", "udp_tx", "udp_rx"
    session.install(
        key_id,
        number + 1,
        AEGIS,
        **dict(zip(names, keys, strict=True)),
        peer_mtu_bytes=1500,
        peer_caps=int(Caps.OFFLOAD | Caps.UDP | Caps.UDP_GSO),
    )
    session.send_under(key_id)
    session.use_udp(*theirs.getsockname(), 1472)
    port.activate(session)


def _plane_us(plane: DataPlane, host: socket.socket, seconds: float) -> float:
    """CPU of this process for each broadcast that another one sends, in us."""
    source = b"\x02\0\0\0\0\1"
    frame = (bytes(10) + b"\xff" * 6 + source + ETHERTYPE.to_bytes(2)).ljust(10 + 64, b"\0")
    before, copied = cpu_seconds(os.getpid()), plane.counters()["frames_copied"]
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            while True:
                host.send(frame)
                time.sleep(1 / BROADCASTS_PER_S)
        os._exit(1)
    try:
        time.sleep(seconds)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    spent = cpu_seconds(os.getpid()) - before
    done = (plane.counters()["frames_copied"] - copied) / (MEMBERS - 1)
    if done < 1:
        raise Broken("no broadcast went out")
    return 1e6 * spent / done


def _table(quick: bool) -> Iterator[Row]:
    group = f"the switch's table with {TABLE_ADDRESSES:,} addresses, per frame"
    rounds = 5 if quick else 15
    names = (
        "looked up and learned, heard this second",
        "looked up and learned, first of a second",
        "address that is new",
    )
    values: list[list[float]] = [[] for _ in names]
    for _ in range(rounds):
        bench = Bench(CIPHER_NAMES["chacha20-poly1305"], True)
        fresh, same = bench.switch(TABLE_ADDRESSES, TABLE_TURNS, 0)
        _, each = bench.switch(TABLE_ADDRESSES, TABLE_TURNS, 1)
        for readings, value in zip(values, (same, each, fresh), strict=True):
            readings.append(value)
    for name, readings in zip(names, values, strict=True):
        yield compared(group, name, "ns", readings, target=TABLE_NS)
