"""What a row works with: pairs of daemons whose invariants are checked, figures, chance.

Owns: the invariants (a) to (f) of the catalogue:

    (a) no frame twice, altered or from a stranger          canaries
    (b) connected again in time, or an error with a cause   _settle
    (c) memory, descriptors, threads and TAPs as before     Resources
    (d) no traceback  (e) no secret in a log                tests.lab.pair
    (f) no nonce twice                                      nonces
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shadowmesh.netlab import Daemon, Net, NetlabError, wait_until
from tests.lab.pair import Pair, assert_log_clean, make_pair

from .canaries import Watch
from .nonces import NonceWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: in the directory of a row: what was measured so far, a line each
FIGURES: Final = "figures.txt"
UDP: Final = {"nat.enabled": True, "nat.stun_server": ""}
CANARIES_PER_SECOND: Final = 40
#: what a session needs beyond the start: buffers, a first status, a first probe
WARM_UP_S: Final = 1.0
SETTLE_S: Final = 30.0
CONNECT_S: Final = 20.0
#: invariant (c)
RSS_FACTOR: Final = 1.1
RSS_BYTES: Final = 5 << 20


@dataclass(frozen=True, slots=True)
class Resources:
    """What a daemon holds."""

    rss_bytes: int
    fds: int
    threads: int
    taps: int

    @classmethod
    def of(cls, daemon: Daemon) -> Resources:
        process = Path(f"/proc/{daemon.pid}")
        status = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
        return cls(
            rss_bytes=int(status["VmRSS"].split()[0]) * 1024,
            fds=len(os.listdir(process / "fd")),
            threads=int(status["Threads"]),
            taps=len(daemon.host.taps()),
        )

    def growth(self, before: Resources) -> str:
        """Say what is more than before; empty when nothing is."""
        found = [
            f"{name} {old} -> {new}"
            for name, old, new in (
                ("fds", before.fds, self.fds),
                ("threads", before.threads, self.threads),
                ("TAPs", before.taps, self.taps),
            )
            if new > old
        ]
        if self.rss_bytes > RSS_FACTOR * before.rss_bytes + RSS_BYTES:
            found.append(f"RSS {before.rss_bytes >> 20} -> {self.rss_bytes >> 20} MiB")
        return ", ".join(found)


@dataclass
class Bench:
    """One run of one row; `long` asks for full counts, `random` is the row's own chance."""

    directory: Path
    long: bool
    random: random.Random
    figures: list[str] = field(default_factory=list)
    _places: int = 0

    def figure(self, text: str) -> None:
        """Note what was measured; shown in the table also when the row fails or is ended later."""
        self.figures.append(text)
        with (self.directory / FIGURES).open("a", encoding="utf-8") as file:
            file.write(f"{text}\n")

    def amount(self, short: int, long: int) -> int:
        return long if self.long else short

    def place(self) -> Path:
        """Make a directory that nobody else uses."""
        self._places += 1
        place = self.directory / str(self._places)
        place.mkdir()
        return place

    @contextlib.contextmanager
    def pair(
        self,
        both: Mapping[str, object] | None = None,
        *,
        udp: bool = False,
        canaries: bool = True,
        flat: bool = True,
        settle_s: float = SETTLE_S,
        clean_logs: bool = True,
        change: Any = None,
        **options: Any,
    ) -> Iterator[Pair]:
        """A connected pair; when the block ends well, all invariants must hold.

        Args:
            udp: on the UDP path; else UDP is off.
            canaries: watch for frames that come twice, altered or from nobody.
            flat: compare what the daemons hold with what they held before.
            settle_s: how soon the pair must be connected again.
            change: called with the pair before it starts.
        """
        settings = {"peer.auto_connect": False, **(UDP if udp else {}), **(both or {})}
        with contextlib.ExitStack() as stack:
            net = stack.enter_context(Net())
            pair = make_pair(net, self.place(), settings, **options)
            if change is not None:
                change(pair)
            for daemon in pair:
                stack.callback(daemon.kill)
            pair.start()
            pair.left.api("POST", "/connect")  # it may be under way, where it connects by itself
            pair.await_connected(CONNECT_S)
            if udp:
                await_path(pair, "udp")
            watch = nonces = None
            if canaries:
                watch = stack.enter_context(Watch(pair, per_second=CANARIES_PER_SECOND))
            if udp:
                nonces = stack.enter_context(NonceWatch(pair))
            time.sleep(WARM_UP_S)
            before = [Resources.of(daemon) for daemon in pair]
            yield pair
            self._settle(pair, settle_s)
            if flat:
                _assert_flat(pair, before)
            if watch is not None:
                wait_until(lambda: watch.arrived, 10, "a canary arrived")
                watch.assert_sound()
            if nonces is not None:
                nonces.assert_sound()
            if clean_logs:
                assert_logs_clean(pair)

    def _settle(self, pair: Pair, timeout_s: float) -> None:
        """Invariant (b): connected and carrying frames, or an error with a cause."""
        began = time.monotonic()
        states = await_verdict(pair, timeout_s)
        if states == ["connected", "connected"]:
            until("a ping crosses the tunnel", lambda: crosses(pair), timeout_s)
        if (took := time.monotonic() - began) > 1:
            self.figure(f"settled after {took:.1f} s")


@contextlib.contextmanager
def beside(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run each of these in a thread while the block runs; it ends when the event is set."""
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(stop,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def crosses(pair: Pair) -> bool:
    """Whether a ping crosses the tunnel."""
    return pair.left.host.ping(pair.right.tunnel_ip, count=1, timeout_s=0.5).complete


def await_verdict(pair: Pair, timeout_s: float) -> list[str]:
    """Wait until the running daemons are connected; return their states.

    Raises:
        AssertionError: they are not, and one does not say why.
    """

    def states() -> list[str]:
        return [daemon.status()["state"] for daemon in pair if daemon.running]

    try:
        wait_until(lambda: set(states()) <= {"connected"}, timeout_s, "connected", interval_s=0.2)
    except TimeoutError:
        for daemon in pair:
            status = daemon.status() if daemon.running else {"state": "connected"}
            told = status["state"] == "error" and status["last_error"]
            assert status["state"] == "connected" or told, (
                f"{daemon.host.label} is {status['state']} without a cause"
            )
    return states()


def _assert_flat(pair: Pair, before: list[Resources]) -> None:
    """Invariant (c); what lingers is given some time."""
    found: list[str] = []

    def flat() -> bool:
        found[:] = [
            f"{daemon.host.label}: {growth}"
            for daemon, old in zip(pair, before, strict=True)
            if daemon.running and (growth := Resources.of(daemon).growth(old))
        ]
        return not found

    try:
        wait_until(flat, 15, "what was held is given back", interval_s=0.5)
    except TimeoutError:
        raise AssertionError(f"not given back: {'; '.join(found)}") from None


def assert_logs_clean(pair: Pair) -> None:
    """Invariants (d) and (e), in one line for the table."""
    for daemon in pair:
        if "Traceback" in (log := daemon.log()):
            last = log.rpartition("Traceback")[2].strip().splitlines()
            raise AssertionError(f"traceback in the log of {daemon.host.label}: {last[-1][:200]}")
        assert_log_clean(daemon)


def await_path(pair: Pair, path: str, timeout_s: float = 15.0) -> None:
    for daemon in pair:
        daemon.wait_for(timeout_s, state="connected", path=path)


def until(what: str, predicate: Any, timeout_s: float) -> float:
    """Wait for something; return the seconds that it took.

    Raises:
        AssertionError: not in time.
    """
    began = time.monotonic()
    try:
        wait_until(predicate, timeout_s, what)
    except TimeoutError as error:
        raise AssertionError(str(error)) from None
    return time.monotonic() - began


def cpu_seconds(daemon: Daemon) -> float:
    """Processor time of a daemon and all its threads."""
    total = 0
    for task in Path(f"/proc/{daemon.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # a thread that has just ended
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def answers(daemon: Daemon, times: int, *, route: str = "/health") -> list[float]:
    """Ask the API so many times; return the seconds that each answer took, the quickest first."""
    took = []
    for _ in range(times):
        began = time.monotonic()
        code, _ = daemon.api("GET", route, timeout_s=20)
        if code != 200:
            raise NetlabError(f"GET {route} gave {code}")
        took.append(time.monotonic() - began)
        time.sleep(0.05)
    return sorted(took)
