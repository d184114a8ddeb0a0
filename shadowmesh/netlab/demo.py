"""`make demo`: three hosts on this machine, a real daemon on each, that become one network.

Owns: the story that is told, and nothing that outlives it: everything happens in network and
mount namespaces of its own and in one temporary directory. Does not know the inside of the daemon;
it uses the commands and the configuration that a user has.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import itertools
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shadowmesh.netlab import (
    Daemon,
    Net,
    NetlabError,
    Ping,
    bound_to_us,
    wait_until,
)
from shadowmesh.netlab.sandbox import settle_in, unshare_command
from shadowmesh.netlab.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shadowmesh.netlab import Host

RELAY, LEFT, RIGHT = LABELS = ("relay", "left", "right")
NETWORK: Final = "home"
PINGS: Final = 20
TRANSFER_S: Final = 2.0
SESSIONS_WAIT_S: Final = 15.0
UDP_WAIT_S: Final = 5.0
REMOVAL_WAIT_S: Final = 5.0
#: an invitation is longer than a line
SHOWN_WORD: Final = 40
ETH_P_ALL: Final = 0x0003
INSIDE: Final = "--inside"  # we are in namespaces of our own already


class DemoFailed(NetlabError):
    """A step of the demo did not do what it should."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 only when all pings crossed the tunnels."""
    parser = argparse.ArgumentParser(
        prog="shadowmesh.netlab.demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--no-udp", action="store_true", help="stay on the WebSocket path")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="copy all logs there")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if not options.inside:
        try:
            command = [
                *unshare_command(),
                sys.executable,
                "-m",
                "shadowmesh.netlab.demo",
                INSIDE,
                *given,
            ]
        except NetlabError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 4
        # In our place, not as a child: a signal must reach the process that cleans up.
        os.execvp(command[0], command)  # noqa: S606  (no shell is wanted)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # in order with stderr, also into a pipe
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settle_in()
    try:
        with tempfile.TemporaryDirectory(prefix="shadowmesh-demo-") as name, Net() as net:
            return _demo(net, Path(name), udp=not options.no_udp, keep=options.keep_logs)
    except KeyboardInterrupt:
        print("\ninterrupted; everything is removed", file=sys.stderr)
        return 128 + signal.SIGINT


def _demo(net: Net, directory: Path, *, udp: bool, keep: Path | None) -> int:
    started = time.monotonic()
    daemons = _daemons(net, directory, udp=udp)
    try:
        _story(net, daemons, udp=udp)
    except (NetlabError, OSError, subprocess.SubprocessError) as error:
        _explain(error, daemons)
        return 1
    finally:
        for daemon in daemons:
            daemon.kill()
            if keep is not None and daemon.log_path.exists():
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{daemon.host.label}.log").write_text(daemon.log())
    print(
        f"\nDone in {time.monotonic() - started:.1f} s; the daemons have stopped, nothing is left"
        " behind."
    )
    return 0


def _daemons(net: Net, directory: Path, *, udp: bool) -> list[Daemon]:
    daemons = []
    for label in LABELS:
        host = net.host(label)
        settings: dict[str, object] = {"daemon.log_level": "info", "nat.enabled": udp}
        # All hosts are on one switch and need no STUN server; none can be reached from here.
        settings["nat.stun_server"] = ""
        if label == RIGHT:
            settings["mesh.announce"] = host.peer_endpoint
        daemon = Daemon(host, directory / label, settings, wrapper=bound_to_us())
        # The network gives its members their addresses.
        del daemon.settings["network.local_ip"]
        daemons.append(daemon)
    return daemons


def _story(net: Net, daemons: Sequence[Daemon], *, udp: bool) -> None:
    print("Three hosts out of network namespaces, joined by a switch, on each a fresh daemon:\n")
    for daemon in daemons:
        daemon.spawn()
        print(f"  {daemon.host.label:6}  cable {daemon.host.ipv4}")
    for daemon in daemons:
        daemon.await_healthy()
    relay, left, right = daemons
    began = time.monotonic()
    _show_command(
        relay, "network", "create", NETWORK, "--address", relay.host.peer_endpoint, "--as", RELAY
    )
    for daemon in (left, right):
        token = _show_command(relay, "invite", daemon.host.label)
        _show_command(daemon, "join", token, "--yes")
    _await_sessions(daemons)
    print(
        f"\nFrom nothing to one Ethernet: {time.monotonic() - began:.1f} s. Of left and right, which"
        " announces\nits address, the frames go from one to the other and not by the relay."
    )
    if udp:
        _await_udp(daemons)
    with _sniffer(net, left.host) as seen:
        canary = secrets.token_hex(24).encode()
        for one, other in itertools.combinations(daemons, 2):
            _ping(one, other, canary)
    _show_wire(left, seen, canary)
    speed, size = transfer(left.host, right.host, right.tunnel_ip, TRANSFER_S)
    print(
        f"TCP from {LEFT} to {RIGHT} through the tunnel: {size / 1e6:.0f} MB in"
        f" {TRANSFER_S:.0f} s, {speed / 1e9:.2f} Gbit/s (all share this machine's"
        f" {os.cpu_count()} cores)."
    )
    _show_command(left, "peers")
    _show_command(left, "peers", RIGHT)
    _remove(relay, right, left)
    _ping(relay, left, canary)
    for daemon in daemons:
        code, _ = daemon.terminate()
        if code != 0:
            raise DemoFailed(f"daemon on {daemon.host.label}: exit {code} after SIGTERM")


def _remove(relay: Daemon, member: Daemon, other: Daemon) -> None:
    """Put a member out, and show that another one has heard of it."""
    name = member.host.label
    address = member.tunnel_ip
    _show_command(relay, "peer", "remove", name, "--yes")
    began = time.monotonic()
    wait_until(lambda: name not in other.peers(), REMOVAL_WAIT_S, f"the end at {other.host.label}")
    print(
        f"\n{other.host.label} knows {name} no more after {time.monotonic() - began:.1f} s, and a ping to"
        f" {address} from there has {_answers(other, address)} answers.\n"
    )


def _answers(daemon: Daemon, address: str) -> int:
    return daemon.host.ping(address, count=2, timeout_s=0.3).received


def _show_command(daemon: Daemon, *words: str) -> str:
    """Run a CLI command and print it as it would look in a terminal; return what it has said."""
    done = daemon.cli(*words)
    command = " ".join(
        word if len(word) < SHOWN_WORD else f"{word[:SHOWN_WORD]}..." for word in words
    )
    print(f"\n{daemon.host.label}$ shadowmesh {command}")
    print("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="")
    if done.returncode != 0:
        raise DemoFailed(f"`shadowmesh {command}` on {daemon.host.label}: exit {done.returncode}")
    return done.stdout.strip()


def _await_sessions(daemons: Sequence[Daemon]) -> None:
    """Wait until each daemon has a session to each other one, which they make by themselves."""
    for daemon in daemons:
        wait_until(
            lambda daemon=daemon: {p["state"] for p in daemon.peers().values()} == {"connected"},
            SESSIONS_WAIT_S,
            f"{daemon.host.label} connected to all",
        )


def _await_udp(daemons: Sequence[Daemon]) -> None:
    """Give hole punching its time; the tunnels work on WSS meanwhile and afterwards."""

    def paths() -> list[str]:
        return [peer["path"] for daemon in daemons for peer in daemon.peers().values()]

    with contextlib.suppress(TimeoutError):
        wait_until(lambda: set(paths()) == {"udp"}, UDP_WAIT_S, "all over UDP")
    found = paths()
    print(f"The frames go over udp now: {found.count('udp')} of {len(found)} ways.\n")


def _ping(one: Daemon, other: Daemon, canary: bytes) -> None:
    """Ping through the tunnel, from each of two hosts to the other."""
    outcomes: list[Ping] = []
    for source, target in ((one, other), (other, one)):
        outcome = source.host.ping(target.tunnel_ip, count=PINGS, payload=canary)
        outcomes.append(outcome)
        if not outcome.received:
            raise DemoFailed(f"no ping from {source.host.label} to {target.tunnel_ip} was answered")
    there, back = outcomes
    print(
        f"Ping {one.host.label} -> {other.host.label}: {there.received} of {there.sent} answered, "
        f"round trip {statistics.median(there.rtts_ms):.2f} ms (median); and back: "
        f"{back.received} of {back.sent}, {statistics.median(back.rtts_ms):.2f} ms."
    )
    if not there.complete or not back.complete:
        raise DemoFailed("pings were lost")


@contextlib.contextmanager
def _sniffer(net: Net, host: Host) -> Iterator[list[bytes]]:
    """Collect every frame on the host's cable while the block runs."""
    frames: list[bytes] = []
    with net.switch.open_socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as raw:
        raw.bind((net.port(host), ETH_P_ALL))
        raw.settimeout(0.1)
        stop = threading.Event()

        def collect() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    frames.append(raw.recv(1 << 16))

        thread = threading.Thread(target=collect, name="sniffer", daemon=True)
        thread.start()
        try:
            yield frames
        finally:
            stop.set()
            thread.join()


def _show_wire(daemon: Daemon, frames: list[bytes], canary: bytes) -> None:
    readable = sum(canary in frame for frame in frames)
    print(
        f"On the cable of {daemon.host.label} meanwhile: {len(frames)} frames, the text of the pings readable in "
        f"{readable} of them."
    )
    if readable or not frames:
        raise DemoFailed("the pings did not cross the cable encrypted")


def _explain(error: Exception, daemons: Sequence[Daemon]) -> None:
    """Print what failed, the end of all logs, and what to do."""
    for daemon in daemons:
        print(f"\n--- last lines of the daemon on {daemon.host.label}:", file=sys.stderr)
        print(daemon.log_tail(15) or "(nothing logged)", file=sys.stderr)
        if daemon.running:
            with contextlib.suppress(OSError, NetlabError, http.client.HTTPException):
                status = daemon.status()
                print(
                    f"state {status['state']}, last error {status['last_error']}", file=sys.stderr
                )
    first_line = re.split(r":?\n", str(error), maxsplit=1)[0]
    print(
        f"\ndemo: failed: {first_line}\n"
        "`make test` shows which part is at fault; "
        "`make demo ARGS='--keep-logs DIR'` keeps all logs.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
