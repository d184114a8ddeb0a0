"""`make demo`: two hosts on this machine, a real daemon on each, and a tunnel between them.

Owns: the story that is told, and nothing that outlives it: everything happens in network and
mount namespaces of its own and in one temporary directory. Does not know the inside of the daemon;
it uses the commands and the configuration that a user has.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
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

from shadowmesh.netlab import Daemon, Net, NetlabError, Ping, introduce
from shadowmesh.netlab.sandbox import settle_in, unshare_command
from shadowmesh.netlab.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shadowmesh.netlab import Host

PINGS: Final = 20
TRANSFER_S: Final = 2.0
UDP_WAIT_S: Final = 5.0
ETH_P_ALL: Final = 0x0003
INSIDE: Final = "--inside"  # we are in namespaces of our own already


class DemoFailed(NetlabError):
    """A step of the demo did not do what it should."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; return 0 only when a ping crossed the tunnel."""
    parser = argparse.ArgumentParser(
        prog="shadowmesh.netlab.demo", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--no-udp", action="store_true", help="stay on the WebSocket path")
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="copy both logs there")
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
    left, right = _daemons(net, directory, udp=udp)
    try:
        _story(net, left, right, udp=udp)
    except (NetlabError, OSError, subprocess.SubprocessError) as error:
        _explain(error, left, right)
        return 1
    finally:
        for daemon in (left, right):
            daemon.kill()
            if keep is not None and daemon.log_path.exists():
                keep.mkdir(parents=True, exist_ok=True)
                (keep / f"{daemon.host.label}.log").write_text(daemon.log())
    print(f"\nDone in {time.monotonic() - started:.1f} s; nothing is left behind.")
    return 0


def _daemons(net: Net, directory: Path, *, udp: bool) -> tuple[Daemon, Daemon]:
    pair = []
    for label in ("left", "right"):
        settings = {"daemon.log_level": "info", "nat.enabled": udp}
        # Both hosts are on one switch and need no STUN server; none can be reached from here.
        settings["nat.stun_server"] = ""
        # The daemon dies with us, whatever happens to us.
        wrapper = ("setpriv", "--pdeathsig", "KILL")
        pair.append(Daemon(net.host(label), directory / label, settings, wrapper=wrapper))
    left, right = pair
    introduce(left, right)
    left.settings["peer.address"] = right.host.peer_endpoint
    left.settings["peer.auto_connect"] = False  # the command below shall do it
    return left, right


def _story(net: Net, left: Daemon, right: Daemon, *, udp: bool) -> None:
    print("Two hosts out of network namespaces, joined by a cable:\n")
    for daemon in (left, right):
        print(
            f"  {daemon.host.label:5}  cable {daemon.host.ipv4:12}  tunnel {daemon.tunnel_ip:8}  "
            f"key {daemon.public_key}"
        )
    began = time.monotonic()
    left.start()
    right.start()
    print(f"\nA daemon runs on each ({time.monotonic() - began:.1f} s to start both).")
    _show_command(left, "connect")
    if udp:
        _await_udp(left, right)
    with _sniffer(net, left.host) as seen:
        canary = secrets.token_hex(24).encode()
        _ping(left, right, canary)
        _ping(right, left, canary)
    _show_wire(seen, canary)
    speed, size = transfer(left.host, right.host, right.tunnel_ip, TRANSFER_S)
    print(
        f"TCP through the tunnel: {size / 1e6:.0f} MB in {TRANSFER_S:.0f} s, "
        f"{speed / 1e9:.2f} Gbit/s (both hosts share this machine's {os.cpu_count()} cores)."
    )
    _show_command(left, "status")
    _show_command(left, "disconnect")
    for daemon in (left, right):
        code, seconds = daemon.terminate()
        if code != 0:
            raise DemoFailed(f"daemon on {daemon.host.label}: exit {code} after SIGTERM")
        print(f"Daemon on {daemon.host.label} stopped in {seconds:.1f} s.")


def _show_command(daemon: Daemon, command: str) -> None:
    """Run a CLI command and print it as it would look in a terminal."""
    done = daemon.cli(command)
    print(f"\n{daemon.host.label}$ shadowmesh {command}")
    print("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()))
    if done.returncode != 0:
        raise DemoFailed(f"`shadowmesh {command}` on {daemon.host.label}: exit {done.returncode}")


def _await_udp(left: Daemon, right: Daemon) -> None:
    """Give hole punching its time; the tunnel works on WSS meanwhile and afterwards."""
    for daemon in (left, right):
        with contextlib.suppress(NetlabError):
            daemon.wait_for(UDP_WAIT_S, state="connected", path="udp")
    status = left.status()
    print(f"The frames go over {status['path']} now. {status['path_reason']}.\n")


def _ping(source: Daemon, target: Daemon, canary: bytes) -> None:
    outcome: Ping = source.host.ping(target.tunnel_ip, count=PINGS, payload=canary)
    if not outcome.received:
        raise DemoFailed(f"no ping from {source.host.label} to {target.tunnel_ip} was answered")
    print(
        f"Ping {source.host.label} -> {target.tunnel_ip} through the tunnel: "
        f"{outcome.received} of {outcome.sent} answered, round trip "
        f"{statistics.median(outcome.rtts_ms):.2f} ms (median)."
    )
    if not outcome.complete:
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


def _show_wire(frames: list[bytes], canary: bytes) -> None:
    readable = sum(canary in frame for frame in frames)
    print(
        f"On the cable meanwhile: {len(frames)} frames, the text of the pings readable in "
        f"{readable} of them."
    )
    if readable or not frames:
        raise DemoFailed("the pings did not cross the cable encrypted")


def _explain(error: Exception, left: Daemon, right: Daemon) -> None:
    """Print what failed, the end of both logs, and what to do."""
    for daemon in (left, right):
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
        "`make demo ARGS='--keep-logs DIR'` keeps both logs.",
        file=sys.stderr,
    )


if __name__ == "__main__":
    sys.exit(main())
