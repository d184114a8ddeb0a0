"""`shadowmesh capture`."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import click

from shadowmesh.base.constants import CAPTURE_DAEMON_STOPS
from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.base.units import count as number_of
from shadowmesh.cli.failures import DaemonNotRunning, ForeignAnswer
from shadowmesh.cli.group import Command
from shadowmesh.cli.output import print_json, text
from shadowmesh.cli.parameters import Duration, PeerName
from shadowmesh.cli.settings import Settings
from shadowmesh.cli.stream import Stream
from shadowmesh.insight.frame_words import describe
from shadowmesh.insight.pcapng import (
    INBOUND,
    MAX_SNAP_BYTES,
    OUTBOUND,
    Interface,
    Packet,
    Reader,
    Statistics,
)

_LONGEST_S: Final = 86400.0
_ARROWS: Final = {INBOUND: "in ", OUTBOUND: "out"}
_WORDS: Final = {INBOUND: "in", OUTBOUND: "out"}
#: without it there are no addresses and no type to show
_ETHERNET_BYTES: Final = 14


class NotWritten(ShadowMeshError):
    """The file cannot be written."""


@dataclass(slots=True)
class _Tally:
    """What has come so far."""

    interface: str = ""
    frames: int = 0
    statistics: Statistics | None = None

    @property
    def dropped(self) -> int:
        return 0 if self.statistics is None else self.statistics.dropped

    @property
    def is_complete(self) -> bool:
        return self.statistics is not None and self.statistics.ended_ns is not None


@click.command(cls=Command)
@click.option(
    "--write", "-w", "target", metavar="FILE",
    help="Write pcapng to FILE, for you alone; - is standard output.  [default: print a line for each frame]",
)  # fmt: skip
@click.option(
    "--snaplen", "-s", type=click.IntRange(1, MAX_SNAP_BYTES), default=MAX_SNAP_BYTES,
    metavar="BYTES", help="Keep so much of each frame.  [default: all of it]",
)  # fmt: skip
@click.option(
    "--count", "-c", type=click.IntRange(1, 1_000_000_000), metavar="N",
    help="End after N frames.  [default: at Ctrl-C]",
)  # fmt: skip
@click.option(
    "--duration", "duration_s", type=Duration(_LONGEST_S), metavar="DURATION",
    help="End after this time, such as 500ms, 30s or 2m.",
)  # fmt: skip
@click.option(
    "--peer", "peer", type=PeerName(), metavar="NAME",
    help="Only frames from and to this one of several peers.  [default: of all]",
)  # fmt: skip
@click.pass_obj
def capture(
    settings: Settings,
    target: str | None,
    snaplen: int,
    count: int | None,
    duration_s: float | None,
    peer: str | None,
) -> None:
    """Show or save the frames that cross the tunnel, in plaintext.

    For tcpdump: shadowmesh capture -w - | tcpdump -r -

    Frames are those between the TAP device and the tunnel, "out" is to the peer. With offloads
    on, TCP comes in super-frames of up to 64 KiB, and a checksum may not be computed yet, as
    with tcpdump on any card that has offloads; network.offload: false changes both.

    The tunnel never waits for a capture. Frames that come faster than they are taken are left
    out of it and counted; --snaplen 128 helps. One capture runs at a time, and the log, the
    status and the events of the daemon tell of it.
    """
    if target == "-" and sys.stdout.isatty():
        raise click.UsageError(
            "standard output is a terminal; use `-w FILE`, or `-w - | tcpdump -r -`"
        )
    tally = _Tally()
    client = settings.client()
    try:
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(
                client.capture(snap_bytes=snaplen, count=count, duration_s=duration_s, peer=peer)
            )
            sink = None if target is None else stack.enter_context(_opened(target))
            stack.enter_context(_signals_finish(stream))
            _pump(settings, stream, sink, tally)
    except BrokenPipeError:
        # Whoever read it has had enough; what is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _say_end(tally)
        return
    except OSError as error:
        place = "standard output" if target in (None, "-") else target
        raise NotWritten(f"cannot write to {place}: {error.strerror}") from None
    except ValueError as error:
        raise ForeignAnswer(
            f"what answers at {client.url} sends no capture: {error}; check --api"
        ) from None
    _summarise(settings, target, tally)
    if not tally.is_complete:
        raise DaemonNotRunning(
            "the capture was cut off: the daemon ended, or gave up because nothing was read for"
            " 20 s; see `shadowmesh logs`"
        )
    if tally.statistics is not None and tally.statistics.comment == CAPTURE_DAEMON_STOPS:
        raise DaemonNotRunning("the capture ended early, because the daemon stops")


@contextlib.contextmanager
def _opened(target: str) -> Iterator[BinaryIO]:
    """Give what to write to; a file is one that nobody else may read."""
    if target == "-":
        yield sys.stdout.buffer
        return
    with os.fdopen(_open_private(Path(target)), "wb") as file:
        yield file


def _open_private(path: Path) -> int:
    """Return a descriptor of a file for this user alone: it holds what the tunnel keeps secret.

    A file that has the name is replaced and not written to: others may have the right to read it,
    have it open, or know it by another name. A pipe or a device is taken as it is.

    Raises:
        NotWritten: the name is a symbolic link, which may lead anywhere.
        OSError: it cannot be made.
    """
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        kind = stat.S_IFREG
    if stat.S_ISLNK(kind):
        raise NotWritten(
            f"{path} is a symbolic link, which is not followed; name the file itself, or - for"
            " standard output"
        )
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    if not stat.S_ISREG(kind):
        return os.open(path, flags)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, flags | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        # At once, so that what comes can be looked at meanwhile, and is there if we are killed.
        temporary.replace(path)
    except OSError:
        os.close(descriptor)
        temporary.unlink()
        raise
    return descriptor


@contextlib.contextmanager
def _signals_finish(stream: Stream) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM ask the daemon for the end, and a second one abort."""

    def finish(number: int, _frame: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        stream.finish()

    before = {number: signal.signal(number, finish) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pump(settings: Settings, stream: Stream, sink: BinaryIO | None, tally: _Tally) -> None:
    """Move the capture to where it goes, until it ends."""
    reader = Reader()
    for data in stream:
        whole = []
        for raw, block in reader.receive(data):
            whole.append(raw)
            if isinstance(block, Packet):
                tally.frames += 1
                if sink is None:
                    _show(settings, block)
            elif isinstance(block, Statistics):
                tally.statistics = block
            elif isinstance(block, Interface):
                tally.interface = block.name
                click.echo(f"capturing on {text(block.name)}", err=True)
        if sink is not None:
            # Only whole blocks, so that the file can be read whatever becomes of us.
            sink.write(b"".join(whole))
            sink.flush()
        sys.stdout.flush()  # the reader of a pipe wants each line when it is due


def _show(settings: Settings, packet: Packet) -> None:
    data = packet.data
    target, source = data[:6].hex(":"), data[6:12].hex(":")
    ethertype = int.from_bytes(data[12:14], "big")
    if len(data) < _ETHERNET_BYTES:
        target, source, ethertype = "?", "?", 0
    words = describe(data)
    if settings.json:
        print_json(
            {
                "schema": 1,
                "time_ns": packet.time_ns,
                "direction": _WORDS.get(packet.direction),
                "source": source,
                "destination": target,
                "ethertype": f"0x{ethertype:04x}",
                "vlans": words.vlans,
                "inner_ethertype": None if words.ethertype is None else f"0x{words.ethertype:04x}",
                "detail": words.detail,
                "length": packet.frame_bytes,
                "remark": packet.comment or None,
            },
            pretty=False,
        )
        return
    seconds, rest_ns = divmod(packet.time_ns, 1_000_000_000)
    moment = time.strftime("%H:%M:%S", time.localtime(seconds))
    remark = f" ({text(packet.comment)})" if packet.comment else ""
    detail = f" {words.detail}" if words.detail else ""
    click.echo(
        f"{moment}.{rest_ns:09d} {_ARROWS.get(packet.direction, '?  ')} {source} > {target}"
        f" {words.kind} {packet.frame_bytes}{detail}{remark}"
    )


def _summarise(settings: Settings, target: str | None, tally: _Tally) -> None:
    if not settings.json or target == "-":
        _say_end(tally)
        return
    summary: dict[str, Any] = {
        "schema": 1,
        "frames": tally.frames,
        "dropped": tally.dropped,
        "cause": None if tally.statistics is None else tally.statistics.comment or None,
    }
    print_json({"schema": 1, "summary": summary} if target is None else summary, pretty=False)


def _say_end(tally: _Tally) -> None:
    line = f"{number_of(tally.frames, 'frame')} captured"
    if tally.dropped:
        line += (
            f", {tally.dropped:,} left out: they came faster than they were taken; keep less of"
            " each with --snaplen"
        )
    click.echo(line, err=True)
