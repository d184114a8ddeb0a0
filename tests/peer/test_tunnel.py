"""One session between two tunnels: real TLS over loopback, real data planes, no TAP."""

from __future__ import annotations

import gc
import os
import secrets
import sys
import time
from dataclasses import replace

import gevent
import gevent.socket as gsocket
import pytest

from shadowmesh._fastpath import DataPlane, Port, build_info
from shadowmesh.base.clock import boottime
from shadowmesh.base.constants import (
    CLOSE_AFTER_FAILED,
    REKEY_AFTER_FAILED,
    Abilities,
    Caps,
    CloseReason,
    Inner,
    RejectReason,
)
from shadowmesh.base.errors import LocalProtocolError
from shadowmesh.device.tap import OFFLOAD_TCP
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.keys.identity import Identity
from shadowmesh.link import tls
from shadowmesh.link.link import Upgraded
from shadowmesh.link.stream import TlsStream
from shadowmesh.peer import probes, tunnel
from shadowmesh.peer.terms import Terms, terms_of
from shadowmesh.peer.tunnel import Tunnel
from shadowmesh.wire import liveness
from shadowmesh.wire.handshake.agreement import Offer, Policy
from tests.peer.machines import PATIENCE_S, FakeTap, Machine, cut, frame, wait_for

PSK = bytes(range(32))
CERTIFICATE = bytes(32)


@pytest.fixture(autouse=True)
def patience():
    with gevent.Timeout(4 * PATIENCE_S):
        yield


@pytest.fixture(scope="module")
def contexts(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    made = tls.load_or_create_certificate(directory / "cert.pem", directory / "key.pem")
    return tls.server_context(made), tls.client_context()


def terms(seed, **options):
    psk, pin = options.pop("psk", PSK), options.pop("pin", None)
    policy = options.pop("policy", None) or Policy(Identity.from_seed(seed), psk, pin)
    caps = Caps.OFFLOAD | (Caps.AEGIS256 if build_info()["aegis256"] else 0)
    offer = Offer(int(caps), 1500, CERTIFICATE, key_id=0)
    times = {
        "rotation_interval_s": 120.0,
        "keepalive_interval_s": 30.0,
        "read_timeout_s": 60.0,
        "write_timeout_s": 60.0,
        "hole_punch_timeout_s": 0.5,
    }
    return Terms(policy=policy, offer=offer, **{**times, **options})


class Heard:
    """The owner of a side's tunnel: at once, and only writing it down."""

    def __init__(self, side):
        self._side = side

    def post(self, message):
        message()

    def authenticated(self, one, _result):
        self._side.authenticated(one)

    def established(self, _one):
        self._side.heard.append("established")

    def link_lost(self, _one):
        self._side.heard.append("link lost")

    def ended(self, _one, ended):
        self._side.heard.append(ended)


class Side:
    """One tunnel and what its owner hears."""

    def __init__(self, sock, *, server, authenticate_in_s=PATIENCE_S, **options):
        self.sock = sock
        self.released = 0
        self.heard = []
        self.recorder = FlightRecorder()
        self.plane = DataPlane()
        self.tap = FakeTap("tap0", mtu=1500, offload=OFFLOAD_TCP)
        self.plane.attach_tap(self.tap.fds, 1500)
        #: what the responder's owner does with an authenticated peer
        self.decide = Tunnel.accept
        upgraded = Upgraded(
            sock=sock,
            remote_address=("127.0.0.1", 9001),
            leftover=b"",
            server=server,
            certificate_sha256=CERTIFICATE,
            authenticate_by=time.monotonic() + authenticate_in_s,
            release=self._release,
        )
        self.tunnel = Tunnel(
            self.plane,
            upgraded,
            terms(secrets.token_bytes(32), **options),
            Heard(self),
            recorder=self.recorder,
        )
        self.port = Port(self.plane)
        self.tunnel.session.belongs_to(self.port)

    def _release(self):
        self.released += 1

    def authenticated(self, one):
        assert one is self.tunnel
        self.heard.append("authenticated")
        if not one.initiator:
            self.decide(one)

    def established(self):
        wait_for(lambda: self.tunnel.established_boottime or self.tunnel.over, "established")
        assert not self.tunnel.over, self.heard
        self.port.activate(self.tunnel.session)

    def ended(self):
        """Wait for the end; return why, checking that it is told once and leaves nothing."""
        ended = wait_for(lambda: next((e for e in self.heard if not isinstance(e, str)), None))
        gevent.sleep(0.01)
        assert [one for one in self.heard if not isinstance(one, str)] == [ended]
        assert self.tunnel.over
        assert self.tunnel.session.number == -1, "the seat in the data plane is given back"
        assert self.tunnel.wss.pipe.closed
        assert self.sock.fileno() == -1
        assert self.released >= 1
        assert self.tunnel._wakeup.dead
        return ended

    def close(self):
        self.tunnel.close(CloseReason.SHUTDOWN, "the test is over")
        self.plane.detach_tap()
        self.tap.close()


@pytest.fixture
def make(contexts):
    """Makes two sides, (dialling, listening), of one connection; closes them after the test."""
    sides = []

    def build(*, dialling=None, listening=None, start=True, **both):
        with gsocket.socket() as port:
            port.bind(("127.0.0.1", 0))
            port.listen()
            raw_client = gsocket.create_connection(port.getsockname())
            raw_server, _ = port.accept()
        server = TlsStream(raw_server, contexts[0])
        serving = gevent.spawn(server.do_handshake)
        client = TlsStream(raw_client, contexts[1])
        client.do_handshake()
        serving.get()
        made = (
            Side(client, server=False, **{**both, **(dialling or {})}),
            Side(server, server=True, **{**both, **(listening or {})}),
        )
        sides.extend(made)
        if start:
            for side in made:
                side.tunnel.start()
        return made

    yield build
    for side in sides:
        side.close()


@pytest.fixture
def up(make):
    """Makes two sides and waits until their session is established."""

    def build(**options):
        sides = make(**options)
        for side in sides:
            side.established()
        return sides

    return build


def cross(source, sink, count=1):
    """Send frames from TAP to TAP, and have them all."""
    sent = [frame(secrets.token_bytes(60)) for _ in range(count)]
    for one in sent:
        source.tap.kernel.send(bytes(10) + one)
    for one in sent:
        gsocket.wait_read(sink.tap.kernel.fileno(), timeout=PATIENCE_S)
        assert sink.tap.kernel.recv(70000)[10:] == one


# --- Life -------------------------------------------------------------------------------------


def test_both_sides_agree_and_each_owner_hears_its_part(up):
    dialling, listening = up()
    assert dialling.heard == ["authenticated", "established"]
    assert listening.heard == ["authenticated"]
    assert dialling.tunnel.peer_public_key == listening.tunnel._terms.policy.identity.public_key
    assert listening.tunnel.peer_public_key == dialling.tunnel._terms.policy.identity.public_key
    assert dialling.tunnel.result.keys.wss_i2r == b"", "traffic keys stay in the data plane"
    assert dialling.released == listening.released == 1
    cross(dialling, listening)
    cross(listening, dialling)


def test_each_side_tells_the_other_what_it_takes(up):
    for side in up():
        wait_for(lambda side=side: side.tunnel.peer_abilities, "abilities")
        assert side.tunnel.peer_abilities == Abilities.PACKED


def test_the_round_trip_is_measured_and_smoothed(up):
    dialling, _ = up()
    first = wait_for(lambda: dialling.tunnel.rtt_s, "a round trip")
    assert 0 < first < 1
    probes = dialling.tunnel.wss.probes
    probes.send(boottime())
    token = next(reversed(probes._stopwatch._departed))
    probes._stopwatch._departed[token] -= 8.0
    wait_for(lambda: dialling.tunnel.rtt_s > first, "another round trip")
    assert 1.0 < dialling.tunnel.rtt_s < 1.5, "one eighth of the new one"


class Forged:
    """A session in the data plane under one of whose keys so many datagrams did not open."""

    def __init__(self, session, failures):
        self._session = session
        self._failures = failures

    def __getattr__(self, name):
        return getattr(self._session, name)

    def open_failures(self):
        return self._failures


def test_a_million_forged_datagrams_change_the_keys(up):
    dialling, listening = up()
    keying = dialling.tunnel._keying
    keying._machine._rekey._created_at -= 60.0  # not the keys of just now
    keying._session = Forged(dialling.tunnel.session, REKEY_AFTER_FAILED)
    dialling.tunnel._wakeup.set()
    for side in (dialling, listening):
        wait_for(lambda side=side: side.tunnel.rekeys == 1, "other keys")
    cross(dialling, listening)


def test_too_many_forged_datagrams_end_the_session(up):
    dialling, listening = up()
    dialling.tunnel._keying._session = Forged(dialling.tunnel.session, CLOSE_AFTER_FAILED)
    dialling.tunnel._wakeup.set()
    assert "failed to open under one key" in dialling.ended().detail
    assert "policy" in listening.ended().detail


def test_keys_change_under_traffic_without_losing_a_frame(up):
    dialling, listening = up(dialling={"rotation_interval_s": 0.05}, listening={})
    dialling.tunnel._keying._machine._rekey._jitter = lambda: 0.0
    dialling.tunnel._keying._machine._schedule()
    dialling.tunnel._wakeup.set()
    rounds = 0
    # A slow machine may change keys once a round, and then more rounds are needed.
    while listening.tunnel.rekeys < 3 or rounds <= 3:
        cross(dialling, listening, 5)
        cross(listening, dialling, 5)
        rounds += 1
    wait_for(lambda: dialling.tunnel.rekeys >= 3, "the dialling side has changed them, too")
    assert dialling.tunnel.last_rekey_at is not None
    assert not dialling.tunnel.over


@pytest.mark.parametrize("who", ["dialling", "listening"])
def test_a_close_is_told_to_the_peer(up, who):
    dialling, listening = up()
    closing, other = (dialling, listening) if who == "dialling" else (listening, dialling)
    closing.tunnel.close(CloseReason.DISCONNECT, "the operator wants it")
    assert closing.ended().kind == "closed"
    assert closing.ended().detail == "the operator wants it"
    ended = other.ended()
    assert (ended.kind, ended.peer_reason) == ("closed_by_peer", CloseReason.DISCONNECT)


def test_a_close_counts_once_and_may_be_repeated(up):
    dialling, _ = up()
    dialling.tunnel.close(CloseReason.SHUTDOWN, "first", wait=False)
    dialling.tunnel.close(CloseReason.DISCONNECT, "second")
    assert dialling.ended().detail == "first"
    dialling.tunnel.close(CloseReason.DISCONNECT, "third")
    assert dialling.ended().detail == "first"


def test_a_close_before_the_handshake_is_through_is_a_close(make):
    dialling, listening = make()
    dialling.tunnel.close(CloseReason.SHUTDOWN, "changed my mind")
    assert dialling.ended().kind == "closed"
    assert listening.ended().kind == "link_lost"


def test_a_closed_tunnel_burns_no_time_while_its_link_lingers(up):
    """Its deadlines are over although the link needs up to 3 s to end."""
    dialling, listening = up()
    turns = []
    dialling.tunnel._next_deadline = lambda: turns.append(1) or 0.0
    listening.tunnel.wss.link._event_wait.stop()  # it does not answer our close
    dialling.tunnel.close(CloseReason.SHUTDOWN, "bye")
    assert len(turns) <= 2
    dialling.ended()


def test_nothing_is_left_to_the_garbage_collector(make):
    def life():
        dialling, listening = make()
        dialling.established()
        listening.established()
        dialling.tunnel.close(CloseReason.SHUTDOWN, "bye")
        for side in (dialling, listening):
            side.ended()
            pipes.append(side.tunnel.wss.pipe.wakeup_fd)
            side.close()
            side.__dict__.clear()
            side.close = lambda: None

    pipes = []
    life()
    gc.collect()
    gc.disable()
    try:
        life()
        gevent.sleep(0.01)
        for descriptor in pipes[2:]:
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
    finally:
        gc.enable()


# --- Refusals ---------------------------------------------------------------------------------


def test_another_key_is_refused_and_nothing_is_told(make):
    dialling, listening = make(listening={"psk": secrets.token_bytes(32)})
    assert dialling.ended() == tunnel.Ended("the peer refused the handshake", "refused")
    ended = listening.ended()
    assert ended.kind == "refused"
    assert "another encryption.key" in ended.detail
    assert "authenticated" not in dialling.heard + listening.heard


def test_the_dialling_side_refuses_who_is_not_the_pinned_peer(make):
    nobody = Identity.from_seed(secrets.token_bytes(32)).public_key
    dialling, listening = make(listening={"pin": nobody})
    assert dialling.ended().kind == "refused"
    assert "pinned" in listening.ended().detail


def test_the_owner_may_refuse_an_authenticated_peer(make):
    dialling, listening = make(start=False)
    listening.decide = lambda one: one.reject(RejectReason.BUSY)
    for side in (dialling, listening):
        side.tunnel.start()
    ended = dialling.ended()
    assert (ended.kind, ended.rejected) == ("rejected", RejectReason.BUSY)
    assert listening.ended().kind == "rejected"
    assert dialling.heard[0] == "authenticated"
    assert "established" not in dialling.heard


def test_the_owner_may_decide_later_but_not_too_late(make, monkeypatch):
    dialling, listening = make(start=False)
    listening.decide = lambda one: None
    for side in (dialling, listening):
        side.tunnel.start()
    wait_for(lambda: "authenticated" in listening.heard, "authenticated")
    late = boottime() + 60
    monkeypatch.setattr(tunnel, "boottime", lambda: late)
    assert listening.tunnel.accept() is False
    assert listening.ended().kind == "timeout"
    assert dialling.ended().kind in ("link_lost", "timeout", "refused")


def test_who_does_not_authenticate_in_time_is_dropped(make):
    _, listening = make(start=False, listening={"authenticate_in_s": 0.05})
    listening.tunnel.start()
    assert listening.ended() == tunnel.Ended("the peer did not authenticate in time", "timeout")


@pytest.mark.parametrize(
    "message", [b"", b"x", bytes(1272), bytes(1336), bytes(200), secrets.token_bytes(1272)]
)
def test_garbage_instead_of_a_handshake_ends_the_link_alone(make, message):
    dialling, listening = make(start=False)
    listening.tunnel.start()
    dialling.tunnel.wss.link.start()
    dialling.tunnel.wss.pipe.send_message(message)
    assert listening.ended().kind == "refused"
    wait_for(lambda: dialling.tunnel.wss.link.closed, "the link is closed")


def test_terms_that_cannot_be_kept_are_told_before_anything_is_sent(make):
    dialling, _ = make(start=False)
    attempts, terms = dialling.tunnel._keying._machine._attempts, dialling.tunnel._terms
    attempts._policy = replace(terms.policy, require_cipher="aegis-256")
    attempts._offer = replace(terms.offer, caps=0)
    with pytest.raises(LocalProtocolError):
        dialling.tunnel.start()
    assert dialling.tunnel.session.number == -1
    assert dialling.sock.fileno() != -1, "the socket is still its owner's"
    dialling.close = lambda: None
    dialling.sock.close()
    dialling.plane.detach_tap()
    dialling.tap.close()


def test_a_tunnel_without_a_descriptor_takes_no_seat(make, monkeypatch):
    dialling, _ = make(start=False)

    def refuse(*_args, **_options):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(tunnel, "Pipe", refuse)
    made = []
    original = tunnel.Session
    monkeypatch.setattr(tunnel, "Session", lambda plane: made.append(original(plane)) or made[0])
    upgraded = dialling.tunnel.wss.link._upgraded
    with pytest.raises(OSError, match="Too many"):
        Tunnel(dialling.plane, upgraded, dialling.tunnel._terms, Heard(dialling))
    assert made[0].number == -1


@pytest.mark.parametrize("part", ["Session", "Pipe", "WssSide"])
def test_a_tunnel_that_cannot_be_made_does_not_wait_for_the_collector(make, monkeypatch, part):
    """It holds the pre-shared key, and perhaps descriptors."""
    dialling, _ = make(start=False)
    upgraded = dialling.tunnel.wss.link._upgraded

    def refuse(*_args, **_options):
        raise LocalProtocolError("no means")

    monkeypatch.setattr(tunnel, part, refuse)
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        terms_of_it = replace(dialling.tunnel._terms)
        with pytest.raises(LocalProtocolError):
            Tunnel(dialling.plane, upgraded, terms_of_it, Heard(dialling))
        assert sys.getrefcount(terms_of_it) == 2, "only this test knows it"
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


# --- Faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["handshake", "established"])
def test_a_broken_connection_is_a_lost_link(make, when):
    dialling, listening = make()
    if when == "established":
        dialling.established()
        listening.established()
    cut(dialling.sock)
    for side in (dialling, listening):
        ended = side.ended()
        assert ended.kind == "link_lost"
        assert "connection" in ended.detail


def test_a_forged_record_ends_the_session(up):
    dialling, listening = up()
    record = b"\x81\0\1\0" + secrets.token_bytes(60)
    dialling.tunnel.wss.pipe.send_message(record)
    listening.ended()
    assert dialling.ended().kind in ("link_lost", "closed_by_peer")


@pytest.mark.parametrize("body", [b"", b"x", bytes(7)])
@pytest.mark.parametrize("kind", [Inner.PROBE, Inner.PROBE_ANSWER, Inner.CONTROL, Inner.HANDSHAKE])
def test_a_malformed_record_of_the_peer_ends_the_session(up, kind, body):
    if kind is Inner.CONTROL and body:
        pytest.skip("an unknown code is ignored")
    dialling, listening = up()
    dialling.tunnel.session.send_record(kind, body)
    assert listening.ended().kind in ("refused", "link_lost")
    assert dialling.ended().kind in ("closed_by_peer", "link_lost")


def test_silence_is_noticed_and_ends_the_session(up, monkeypatch):
    monkeypatch.setattr(liveness, "WSS_DEAD_AFTER_PROBE_S", 0.1)
    monkeypatch.setattr(liveness, "CHECK_INTERVAL_S", 0.02)
    dialling, listening = up(dialling={"keepalive_interval_s": 0.05, "read_timeout_s": 0.3})
    listening.tunnel.wss.link._event_wait.stop()
    ended = dialling.ended()
    assert ended.kind == "link_lost"
    assert "nothing heard" in ended.detail


def test_keepalives_keep_an_idle_session(up, monkeypatch):
    monkeypatch.setattr(liveness, "WSS_DEAD_AFTER_PROBE_S", 0.1)
    monkeypatch.setattr(liveness, "CHECK_INTERVAL_S", 0.02)
    dialling, listening = up(keepalive_interval_s=0.05, read_timeout_s=0.3)
    gevent.sleep(0.8)
    assert not dialling.tunnel.over
    assert not listening.tunnel.over
    cross(dialling, listening)


def test_a_full_link_ends_the_session_when_a_record_has_to_go_out(up):
    dialling, _ = up()
    dialling.tunnel.wss.pipe.release()  # nobody moves its bytes
    for size in (2000, 10):
        with pytest.raises(LocalProtocolError):
            while True:
                dialling.tunnel.session.send_record(Inner.PADDING, bytes(size))
    dialling.tunnel._keying._machine.handle_timeout(boottime() + 130)  # a rekey is due
    dialling.tunnel._keying._carry_out()
    assert "cannot send to the peer" in dialling.ended().detail


def test_a_bug_in_a_timer_ends_the_session_and_is_told(up, caplog):
    dialling, listening = up()
    dialling.tunnel._check_deadlines = lambda now: 1 / 0
    dialling.tunnel._wakeup.set()
    assert "internal error" in dialling.ended().detail
    assert "session ended by a bug" in caplog.messages
    listening.ended()


def test_probes_that_are_never_answered_are_forgotten(up):
    dialling, listening = up()
    wait_for(lambda: dialling.tunnel.rtt_s, "the first answer")
    listening.tunnel.wss.link._event_wait.stop()
    for _ in range(3 * probes.MAX_PROBES):
        dialling.tunnel.wss.probes.send(boottime())
    assert dialling.tunnel.wss.probes.awaited == probes.MAX_PROBES


# --- Terms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "caps", "cipher"),
    [
        ({}, Caps.AEGIS256 | Caps.OFFLOAD, None),
        ({"encryption.cipher": "chacha20-poly1305"}, Caps.OFFLOAD, None),
        ({"encryption.cipher": "aegis-256"}, Caps.AEGIS256 | Caps.OFFLOAD, "aegis-256"),
        ({"network.offload": "false"}, Caps.AEGIS256, None),
    ],
)
def test_the_configuration_becomes_terms(tmp_path, flags, caps, cipher):
    if not build_info()["aegis256"]:
        pytest.skip("this libsodium has no AEGIS-256")
    machine = Machine(tmp_path, psk=PSK, flags={**flags, "network.mtu": "1400"})
    made = terms_of(
        machine.config, machine.identity, CERTIFICATE, udp=False, udp_super_frames=False
    )
    assert made.offer == Offer(int(caps), 1400, CERTIFICATE, 0)
    assert made.policy.psk == PSK
    assert made.policy.require_cipher == cipher
    assert made.rotation_interval_s == 120
    assert made.keepalive_interval_s == 30
    assert made.read_timeout_s == made.write_timeout_s == 60


@pytest.mark.parametrize(
    ("offload", "udp_super_frames", "caps"),
    [
        ("true", True, Caps.OFFLOAD | Caps.UDP_GSO),
        ("true", False, Caps.OFFLOAD),
        ("false", True, Caps(0)),
    ],
)
def test_super_frames_of_datagrams_are_accepted_where_the_kernel_knows_them(
    tmp_path, offload, udp_super_frames, caps
):
    flags = {"network.offload": offload, "encryption.cipher": "chacha20-poly1305"}
    machine = Machine(tmp_path, psk=PSK, flags=flags)
    for udp in (False, True):
        made = terms_of(
            machine.config,
            machine.identity,
            CERTIFICATE,
            udp=udp,
            udp_super_frames=udp_super_frames,
        )
        assert made.offer.caps == caps | (Caps.UDP if udp else 0)
