"""The WSS side of one session: its link, whether the peer is still behind it, its round trip.

Owns: the link from the upgraded socket to its end, its probes and its liveness, and that a peer has
to authenticate in time. Does not know: what messages and records mean (`keying`), what follows from
the end of the link (`tunnel`).

::

    Link --messages, records--> Keying
         --probes-------------> answered here
         --end----------------> on_closed

All methods belong to the hub's thread.
"""

from __future__ import annotations

import time
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import gevent

from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import WS_GOING_AWAY, Inner
from shadowmesh.link.link import Link
from shadowmesh.link.route import SMALL_SEGMENT_BYTES
from shadowmesh.link.tcp import SEGMENT_HEADERS_BYTES, far_end, plain_address
from shadowmesh.peer.probes import Probes
from shadowmesh.wire import control
from shadowmesh.wire.liveness import Dead, Liveness, SendKeepalive, SendProbe
from shadowmesh.wire.standstill import Finding, Readings, Standstill

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from shadowmesh._fastpath import Pipe, Session
    from shadowmesh.insight.events import Recorder
    from shadowmesh.link.link import LinkEvent, Upgraded
    from shadowmesh.peer.keying import Keying
    from shadowmesh.peer.terms import Terms
    from shadowmesh.wire.control import Address

#: while frames take this link, its round trip is measured so often, as that of an idle UDP path is
MEASURE_INTERVAL_S: Final = 15.0
#: and at first so many times so soon
EARLY_MEASUREMENTS: Final = 3
EARLY_INTERVAL_S: Final = 2.0


class WssSide:
    """One link under one session.

    Attributes:
        remote_address: host and port of the other end.
        far_end: its IP address, with a zone where it is link-local.
        local_address: IP address of our end.
        link: the link.
        pipe: what it moves bytes through; closed by the link.
        probes: with the round trip.
        error: why the link ended although the session goes on without it; None while it is up.
        ending: the session is ending, so the peer's probes get no answer any more.
    """

    def __init__(
        self,
        upgraded: Upgraded,
        session: Session,
        pipe: Pipe,
        keying: Keying,
        terms: Terms,
        recorder: Recorder,
        on_closed: Callable[[str, int], None],
        interface_mtu: Callable[[Address], int | None],
    ) -> None:
        """Take over the socket; nothing happens before start().

        Args:
            keying: gets what the peer sends.
            on_closed: the link has ended by itself or by close(): why, and its close code.
            interface_mtu: tells that of the interface that has an address of ours, if it knows.
        """
        self.remote_address = upgraded.remote_address
        self.far_end = far_end(upgraded.sock, upgraded.remote_address[0])
        self.local_address = plain_address(upgraded.sock.getsockname())[0]
        self.pipe = pipe
        self.probes = Probes(session, recorder)
        self.error: str | None = None
        self.ending = False
        self._session = session
        self._keying = keying
        self._terms = terms
        self._release = upgraded.release
        #: boot-time seconds; None once the peer has authenticated
        self._authenticate_by: float | None = (
            boottime() + upgraded.authenticate_by - time.monotonic()
        )
        #: None before the session is established, and without the link
        self._liveness: Liveness | None = None
        self._measured = 0
        self._measured_at = 0.0
        self._standstill: Standstill | None = None
        #: activity() of the session when stands() was last asked
        self._seen = (0.0, 0.0)
        #: what both sides agreed on when they connected, or what has fitted since
        self._segment_bytes = 0
        self._server = upgraded.server
        self._interface_mtu = interface_mtu
        self.link = Link(
            upgraded,
            pipe,
            on_events=self._on_events,
            on_closed=on_closed,
            write_timeout_s=terms.write_timeout_s,
        )

    @property
    def peer_name(self) -> str:
        """Address and port of the other end, for people."""
        host, port = self.remote_address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def short_segments(self) -> bool:
        """Whether the segments of the link fit every path, and so are not what is lost."""
        progress = self.link.progress()
        return progress is not None and progress.segment_bytes <= SMALL_SEGMENT_BYTES

    def start(self) -> None:
        """Begin to move bytes."""
        self.link.start()

    def established(self, now: float) -> None:
        """The session is: it does not count as a stranger's any more, and has to stay alive."""
        self._release()
        self._authenticate_by = None
        self._liveness = Liveness(self._terms.keepalive_interval_s, self._terms.read_timeout_s, now)
        self._measured_at = now
        self._standstill = Standstill(now)
        progress = self.link.progress()
        self._segment_bytes = 0 if progress is None else progress.segment_bytes
        self.link.carry()

    def next_timeout(self) -> float | None:
        """When overdue(), or quiet(), check() and stands() have to be asked; None: no need.

        Boot-time seconds.
        """
        # That of Standstill comes no earlier.
        return self._authenticate_by if self._liveness is None else self._liveness.next_timeout()

    def overdue(self, now: float) -> bool:
        """Whether the peer should have authenticated by now and has not."""
        return self._authenticate_by is not None and now >= self._authenticate_by

    def check(self, now: float) -> str | None:
        """Send the probes that are due; return why the link is dead, None if it is not."""
        if self._liveness is None:
            return None
        data_sent_at, heard_at = self._session.activity()
        for action in self._liveness.check(now, data_sent_at=data_sent_at, heard_at=heard_at):
            match action:
                case SendKeepalive() | SendProbe():
                    # A probe keeps alive as well as padding does, and measures the round trip.
                    self.probes.send(now)
                case Dead(reason):
                    return reason
        self._measure(now, data_sent_at)
        return None

    def _measure(self, now: float, data_sent_at: float) -> None:
        """Keep the round trip of a link true on which frames leave no need for other probes.

        The first came while both daemons were busy with each other, so a few follow soon.
        """
        early = self._measured < EARLY_MEASUREMENTS
        interval_s = EARLY_INTERVAL_S if early else MEASURE_INTERVAL_S
        if now >= self._measured_at + interval_s and (early or data_sent_at > self._measured_at):
            self._measured += 1
            self._measured_at = now
            self.probes.send(now)

    def quiet(self, now: float) -> bool:
        """Whether check() and stands() would find nothing new; then they need not be asked.

        Most of the cost of an idle link would be in asking them each second.
        """
        if self._liveness is None or self._standstill is None or self.probes.awaited:
            return False
        activity = data_sent_at, _ = self._session.activity()
        return (
            activity == self._seen
            and self._measured >= EARLY_MEASUREMENTS
            and data_sent_at <= self._measured_at
            and self._liveness.quiet(now)
            and self._standstill.quiet(now)
        )

    def stands(self, now: float) -> bool | None:
        """Whether the link stands still, when that is news; sends the probe that may be due."""
        progress = self.link.progress()
        if self._standstill is None or progress is None:
            return None
        if progress.room_bytes is not None and progress.room_bytes < self._segment_bytes:
            narrower = self._interface_is_narrower()
            self._segment_bytes = progress.room_bytes  # asked once for each size
            if narrower:
                return self._leave_narrow_interface()
        self._seen = data_sent_at, heard_at = self._session.activity()
        readings = Readings(
            data_sent_at,
            heard_at,
            progress.acked_bytes,
            in_flight=progress.in_flight > 0,
            queued=self.pipe.queued_bytes > 0,
        )
        match self._standstill.check(now, readings):
            case Finding.ASK:
                self.probes.send(now)
            case Finding.STANDS:
                return True
            case Finding.MOVES:
                return False
        return None

    def _interface_is_narrower(self) -> bool:
        """Whether our interface takes less than it did, and not only something on the way."""
        mtu = self._interface_mtu(ip_address(self.local_address.partition("%")[0]))
        return mtu is not None and mtu < self._segment_bytes + SEGMENT_HEADERS_BYTES

    def _leave_narrow_interface(self) -> bool | None:
        """What the peer sends is too long now and TCP never tells it: another link is wanted.

        Who dialled tries one beside this. Who cannot dial closes the link, which is short enough
        for the peer to hear of.
        """
        if not self._server:
            return True
        self.close(WS_GOING_AWAY, "the MTU of this side's interface has fallen")
        return None

    def close(self, code: int, reason: str) -> gevent.Greenlet:
        """Close the link; join the greenlet to wait for its end, at most about 3 s later.

        In a greenlet of its own: closing waits, and the caller may be what it waits for.
        """
        return gevent.spawn(self.link.close, code, reason)

    def cut(self, reason: str) -> None:
        """Close a link that nothing comes through any more."""
        self._liveness = self._standstill = None
        self.close(WS_GOING_AWAY, reason)

    def lost(self, reason: str) -> None:
        """The link has ended, and the session goes on without it."""
        self.error = reason
        self._liveness = self._standstill = None

    def network_changed(self, held: Collection[Address]) -> None:
        """Close the link if our end of it is not an address of this host any more."""
        if self.error is None and held and ip_address(self.local_address) not in held:
            # TCP would take many minutes to notice that nothing can come to that address.
            self.close(WS_GOING_AWAY, f"{self.local_address} is gone")

    def _on_events(self, link_events: Sequence[LinkEvent]) -> None:
        """Raises RemoteProtocolError: the peer broke a rule; the link ends with its code."""
        now = boottime()
        for event in link_events:
            if event[0] == "message":
                self._keying.receive_message(event[1], now)
                continue
            _, key_id, inner_type, body = event
            if inner_type in (Inner.PROBE, Inner.PROBE_ANSWER):
                # A member may be anybody until it was judged, and gets no answers before that.
                if self._authenticate_by is None:
                    self._take_probe(inner_type, body, now)
                # For the keys only the fact counts: it may be the first record under new ones.
                inner_type, body = Inner.PADDING, b""
            self._keying.receive_record(key_id, inner_type, body, now)

    def _take_probe(self, inner_type: int, body: bytes, now: float) -> None:
        if inner_type == Inner.PROBE_ANSWER:
            self.probes.answered(body, now)
        elif not self.ending:
            host, port = self.remote_address
            seen = control.Endpoint(ip_address(host.partition("%")[0]), port)
            self.probes.answer(body, seen, now)
