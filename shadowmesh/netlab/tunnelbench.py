"""Two real daemons on this machine, and what their tunnel carries: for `shadowmesh bench --tunnel`.

Owns: the pair of each cipher and path, its TCP stream and its pings. Does not know: how the
figures are shown. On stdout each line is a JSON object: what is about to be measured (`about`), and
then its figures; `detail` says why there are none.

Runs in a process of its own, in network and mount namespaces that are gone with it. Both hosts
share the processor with the sender and the receiver: between two machines it is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shadowmesh.netlab import Daemon, Net, NetlabError, bound_to_us, introduce
from shadowmesh.netlab.sandbox import settle_in, unshare_command
from shadowmesh.netlab.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PINGS: Final = 50
PATHS: Final = ("udp", "wss")
UDP_WAIT_S: Final = 10.0
INSIDE: Final = "--inside"  # we are in namespaces of our own already
EXIT_NOT_PERMITTED: Final = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every cipher that was named on both paths; return 0 when all could be read."""
    parser = argparse.ArgumentParser(prog="shadowmesh.netlab.tunnelbench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each TCP stream")
    parser.add_argument(INSIDE, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("ciphers", nargs="+")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if not options.inside:
        try:
            command = [
                *unshare_command(),
                sys.executable,
                "-m",
                "shadowmesh.netlab.tunnelbench",
                INSIDE,
            ]
        except NetlabError as error:
            print(error, file=sys.stderr)
            return EXIT_NOT_PERMITTED
        # In our place, not as a child: a signal must reach the process that cleans up.
        os.execvp(command[0], [*command, *given])  # noqa: S606  (no shell is wanted)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    settle_in()
    broken = False
    try:
        with tempfile.TemporaryDirectory(prefix="shadowmesh-bench-") as name:
            for told in _measure(Path(name), options.ciphers, options.seconds):
                broken |= told.get("detail") is not None
                print(json.dumps(told), flush=True)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 1 if broken else 0


def _measure(directory: Path, ciphers: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    for cipher in ciphers:
        for path in PATHS:
            yield {"about": f"{path} {cipher}"}
            place = directory / f"{cipher}-{path}"
            figures: dict[str, Any] = {
                "path": path, "cipher": cipher, "tcp_bits_per_second": None, "round_trip_ms": None,
                "detail": None,
            }  # fmt: skip
            try:
                with Net() as net:
                    figures |= _one(net, place, cipher, path, seconds)
            except (NetlabError, OSError, subprocess.SubprocessError) as error:
                figures["detail"] = str(error).partition("\n")[0]
            yield figures


def _one(net: Net, place: Path, cipher: str, path: str, seconds: float) -> dict[str, Any]:
    settings = {
        "daemon.log_level": "info", "encryption.cipher": cipher, "nat.enabled": path == "udp",
        "nat.stun_server": "",
    }  # fmt: skip
    left, right = (
        Daemon(net.host(label), place / label, settings, wrapper=bound_to_us())
        for label in ("left", "right")
    )
    introduce(left, right)
    with left, right:
        left.connect(right.host.peer_endpoint)
        for daemon in (left, right):
            daemon.wait_for(UDP_WAIT_S, state="connected", path=path)
        pings = left.host.ping(right.tunnel_ip, count=PINGS)
        if not pings.received:
            raise NetlabError("no ping was answered")
        bits_per_second, _ = transfer(left.host, right.host, right.tunnel_ip, seconds)
    return {
        "tcp_bits_per_second": round(bits_per_second),
        "round_trip_ms": round(statistics.median(pings.rtts_ms), 4),
    }


if __name__ == "__main__":
    sys.exit(main())
