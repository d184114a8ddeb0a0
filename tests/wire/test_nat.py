"""The detector against simulated NATs and servers of every kind, in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.wire.nat.detector import Detected, Mapped, NatDetector
from shadowmesh.wire.nat.result import (
    Filtering,
    Mapping,
    NatResult,
    NatType,
    Server,
    describe,
    name_type,
)
from tests.lab.stun_server import Behaviour, StunServer
from tests.twins.nat_box import Depends, Host, NatBox, Network, endpoint, make_box

PRIMARY = endpoint("198.51.100.10:3478")
OTHER = endpoint("198.51.100.11:3479")
SECOND = endpoint("198.51.100.20:3478")
CLIENT = endpoint("192.168.1.2:9001")
PUBLIC_CLIENT = endpoint("198.51.100.5:9001")


class Lab:
    """One client with a detector, and STUN servers, on a virtual network."""

    def __init__(self, box: NatBox | None, *servers: StunServer, delay_s: float = 0.01):
        self.network = Network(delay_s)
        self.client = self.network.add(Host(CLIENT if box else PUBLIC_CLIENT, box, self._on_client))
        self.servers = servers
        self.requests = 0
        self.events: list[object] = []
        for server in servers:
            for local in server.endpoints():
                self._add_server(server, local)
        self.detector: NatDetector | None = None

    def _add_server(self, server: StunServer, at):
        def receive(data, size, source, now, local):
            for reply in server.receive(data, source, at):
                self.network.send(host, reply.data, len(reply.data), reply.destination, reply.local)

        host = self.network.add(Host(at, None, receive))

    def _on_client(self, data, size, source, now, local):
        assert self.detector is not None
        self.detector.receive(data, source, now)
        self._pump()

    def _pump(self):
        for datagram in self.detector.data_to_send():
            self.requests += 1
            self.network.send(self.client, datagram.data, len(datagram.data), datagram.destination)
        while (event := self.detector.next_event()) is not None:
            self.events.append((self.network.now, event))

    def detect(self, timeout_s: float = 5.0, asked=None) -> NatResult:
        asked = asked or [Server(f"s{n}", s.primary) for n, s in enumerate(self.servers)]
        self.detector = NatDetector(
            asked,
            [self.client.endpoint],
            self.network.now,
            detection_timeout_s=timeout_s,
            random=random.Random(1).randbytes,
        )
        self._pump()
        while (timeout := self.detector.next_timeout()) is not None:
            assert timeout >= self.network.now
            self.network.run_until(timeout)
            self.detector.handle_timeout(self.network.now)
            self._pump()
        assert self.detector.result is not None
        time, last = self.events[-1]
        assert last == Detected(self.detector.result)
        assert time <= timeout_s
        return self.detector.result


def rfc5780(behaviour=Behaviour.HONEST) -> StunServer:
    return StunServer(PRIMARY, OTHER, behaviour)


# --- RFC 5780 --------------------------------------------------------------------------------

CONES = {
    Depends.NOTHING: (NatType.FULL_CONE, Filtering.ENDPOINT_INDEPENDENT),
    Depends.ADDRESS: (NatType.RESTRICTED_CONE, Filtering.ADDRESS_DEPENDENT),
    Depends.ADDRESS_AND_PORT: (
        NatType.PORT_RESTRICTED_CONE,
        Filtering.ADDRESS_AND_PORT_DEPENDENT,
    ),
}
MAPPINGS = {
    Depends.NOTHING: Mapping.ENDPOINT_INDEPENDENT,
    Depends.ADDRESS: Mapping.ADDRESS_DEPENDENT,
    Depends.ADDRESS_AND_PORT: Mapping.ADDRESS_AND_PORT_DEPENDENT,
}


@pytest.mark.parametrize("preserve_port", [True, False])
@pytest.mark.parametrize("filtering", Depends)
@pytest.mark.parametrize("mapping", Depends)
def test_one_server_with_rfc_5780_tells_every_kind_of_nat(mapping, filtering, preserve_port):
    box = NatBox("198.51.100.1", mapping, filtering, preserve_port=preserve_port)
    result = Lab(box, rfc5780()).detect()
    cone, expected_filtering = CONES[filtering]
    expected = cone if mapping is Depends.NOTHING else NatType.SYMMETRIC
    assert (result.type, result.mapping, result.filtering) == (
        expected,
        MAPPINGS[mapping],
        expected_filtering,
    )
    assert result.public_address is not None
    assert str(result.public_address.address) == "198.51.100.1"
    assert result.local_address == CLIENT
    assert result.mapping_varies is (mapping is not Depends.NOTHING)
    assert result.detail == describe(result.mapping, result.filtering)


def test_a_host_without_nat_is_open():
    result = Lab(None, rfc5780()).detect()
    assert result.type is NatType.OPEN
    assert result.mapping is Mapping.NONE
    assert result.filtering is Filtering.ENDPOINT_INDEPENDENT
    assert result.public_address == PUBLIC_CLIENT
    assert result.mapping_varies is False


class Firewall(NatBox):
    """Filters, and leaves addresses alone."""

    def outbound(self, inside, remote, now):
        seen = super().outbound(inside, remote, now)
        return seen and inside


@pytest.mark.parametrize("filtering", [Depends.ADDRESS, Depends.ADDRESS_AND_PORT])
def test_a_firewall_without_nat_gets_the_name_of_the_cone_that_filters_alike(filtering):
    firewall = Firewall("198.51.100.5", Depends.NOTHING, filtering)
    lab = Lab(firewall, rfc5780())
    lab.client.endpoint = PUBLIC_CLIENT
    result = lab.detect()
    assert (result.type, result.filtering) == CONES[filtering]
    assert result.mapping is Mapping.NONE
    assert result.detail.startswith("no NAT")


def test_a_rude_router_does_not_turn_a_cone_into_a_symmetric_nat():
    box = make_box("port-restr", "198.51.100.1", rude=True)
    assert Lab(box, rfc5780()).detect().type is NatType.PORT_RESTRICTED_CONE


def test_the_address_is_told_at_once_and_the_type_later():
    lab = Lab(make_box("port-restr", "198.51.100.1"), rfc5780())
    result = lab.detect()
    (first_at, mapped), (last_at, _) = lab.events
    assert isinstance(mapped, Mapped)
    assert mapped.mapped == result.public_address == endpoint("198.51.100.1:9001")
    assert first_at == pytest.approx(0.02)
    assert result.servers[0].rtt_ms == pytest.approx(20.0)
    assert 2.0 < last_at < 3.0  # the filter answers by silence


def test_a_full_cone_is_known_within_the_settling_time():
    result = Lab(make_box("full", "198.51.100.1"), rfc5780()).detect()
    assert result.detected_at <= 1.5


@pytest.mark.parametrize("seed", range(20))
def test_loss_of_every_tenth_datagram_never_gives_a_wrong_type(seed):
    dice = random.Random(seed)
    lab = Lab(make_box("port-restr", "198.51.100.1"), rfc5780())
    lab.network.drop = lambda *_: dice.random() < 0.1
    result = lab.detect()
    assert result.mapping is Mapping.ENDPOINT_INDEPENDENT
    # Two losses in a row leave too little time to wait for the filter's silence.
    assert result.type in (NatType.PORT_RESTRICTED_CONE, NatType.UNKNOWN)


def test_a_short_timeout_leaves_unknown_what_silence_would_have_said():
    result = Lab(make_box("port-restr", "198.51.100.1"), rfc5780()).detect(timeout_s=1.0)
    assert result.filtering is Filtering.UNKNOWN
    assert result.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert result.type is NatType.UNKNOWN
    assert "not known" in result.detail


def test_a_dead_alternate_address_is_not_taken_for_a_filter():
    lab = Lab(make_box("full", "198.51.100.1"), rfc5780())
    lab.network.drop = lambda host, to, size: OTHER.address in (host.endpoint.address, to.address)
    # The server's replies leave from the primary host in this model, so drop by what they claim.
    server = lab.servers[0]
    honest = server.receive
    server.receive = lambda data, source, local: [  # type: ignore[method-assign]
        reply for reply in honest(data, source, local) if reply.local == PRIMARY
    ]
    result = lab.detect()
    assert result.filtering is Filtering.UNKNOWN
    assert result.mapping is Mapping.UNKNOWN
    assert result.type is NatType.UNKNOWN
    assert result.detail == "cone or symmetric: one server only"


def test_a_server_that_ignores_change_request_leaves_filtering_unknown():
    box = make_box("port-restr", "198.51.100.1")
    result = Lab(box, rfc5780(Behaviour.IGNORES_CHANGE)).detect()
    assert result.filtering is Filtering.UNKNOWN
    assert result.mapping is Mapping.ENDPOINT_INDEPENDENT


def test_an_other_address_that_is_no_alternate_is_not_used():
    for other in ["198.51.100.10:3479", "198.51.100.11:3478", "127.0.0.1:99", "[2001:db8::1]:99"]:
        lab = Lab(make_box("full", "198.51.100.1"), StunServer(PRIMARY, endpoint(other)))
        lab.servers[0]._changed = lambda *_, o=other: endpoint(o)  # type: ignore[method-assign]
        result = lab.detect()
        assert result.mapping is Mapping.UNKNOWN


# --- Without RFC 5780 ------------------------------------------------------------------------


def test_one_plain_server_says_honestly_that_it_cannot_tell():
    result = Lab(make_box("full", "198.51.100.1"), StunServer(PRIMARY)).detect()
    assert result.type is NatType.UNKNOWN
    assert result.mapping is Mapping.UNKNOWN
    assert result.mapping_varies is None
    assert result.detail == "cone or symmetric: one server only"
    assert result.public_address == endpoint("198.51.100.1:9001")
    assert result.detected_at == pytest.approx(0.02)


def test_one_plain_server_can_tell_that_there_is_no_nat():
    result = Lab(None, StunServer(PRIMARY)).detect()
    assert result.type is NatType.OPEN
    assert result.filtering is Filtering.UNKNOWN


@pytest.mark.parametrize(
    ("kind", "mapping", "expected"),
    [
        ("full", Mapping.ENDPOINT_INDEPENDENT, NatType.UNKNOWN),
        ("port-restr", Mapping.ENDPOINT_INDEPENDENT, NatType.UNKNOWN),
        ("symmetric", Mapping.DESTINATION_DEPENDENT, NatType.SYMMETRIC),
    ],
)
def test_two_plain_servers_tell_the_mapping(kind, mapping, expected):
    box = make_box(kind, "198.51.100.1")
    result = Lab(box, StunServer(PRIMARY), StunServer(SECOND)).detect()
    assert (result.type, result.mapping) == (expected, mapping)
    assert result.filtering is Filtering.UNKNOWN
    assert len(result.servers) == 2
    assert all(report.rtt_ms for report in result.servers)


def test_two_ports_of_one_host_tell_only_that_the_port_matters():
    port_2 = endpoint("198.51.100.10:3480")
    varying = Lab(make_box("symmetric", "198.51.100.1"), StunServer(PRIMARY), StunServer(port_2))
    assert varying.detect().mapping is Mapping.ADDRESS_AND_PORT_DEPENDENT
    same = Lab(make_box("full", "198.51.100.1"), StunServer(PRIMARY), StunServer(port_2))
    assert same.detect().mapping is Mapping.UNKNOWN


def test_the_second_server_is_used_when_only_that_offers_rfc_5780():
    servers = (StunServer(SECOND), rfc5780())
    result = Lab(make_box("addr-restr", "198.51.100.1"), *servers).detect()
    assert result.type is NatType.RESTRICTED_CONE


def test_a_server_named_twice_is_asked_once():
    lab = Lab(make_box("full", "198.51.100.1"), StunServer(PRIMARY))
    result = lab.detect(asked=[Server("a", PRIMARY), Server("b", PRIMARY)])
    assert [report.server.name for report in result.servers] == ["a"]
    assert lab.requests == 1


# --- Servers that are silent or lie ------------------------------------------------------------


def test_no_answer_at_all_is_udp_blocked_when_the_time_is_up():
    box = make_box("full", "198.51.100.1")
    box.blocked = True
    lab = Lab(box, rfc5780(), StunServer(SECOND))
    result = lab.detect()
    assert result.type is NatType.UDP_BLOCKED
    assert result.detected_at == 5.0
    assert result.public_address is None
    assert result.detail == "no STUN server answered in 5 s: UDP is blocked, or all are down"
    assert lab.requests == 8  # 0, 0.5, 1.5, 3.5 s, two servers
    assert [report.detail for report in result.servers] == ["no answer to 4 requests"] * 2


def test_no_server_at_all_is_known_at_once():
    result = Lab(make_box("full", "198.51.100.1")).detect()
    assert result.type is NatType.UNKNOWN
    assert result.detected_at == 0.0
    assert result.detail == "no STUN server is configured"


def test_a_silent_server_does_not_delay_what_the_other_can_tell():
    silent = StunServer(SECOND, behaviour=Behaviour.SILENT)
    result = Lab(make_box("full", "198.51.100.1"), silent, rfc5780()).detect()
    assert result.type is NatType.FULL_CONE
    assert result.detected_at == pytest.approx(1.5)
    assert result.servers[0].detail == "no answer in time"
    assert result.servers[0].rtt_ms is None


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour.GARBAGE,
        Behaviour.BAD_FINGERPRINT,
        Behaviour.WRONG_TRANSACTION,
        Behaviour.REFUSING,
        Behaviour.UNKNOWN_ATTRIBUTE,
    ],
)
def test_nonsense_means_that_udp_passes_and_nothing_else_is_known(behaviour):
    server = StunServer(PRIMARY, behaviour=behaviour)
    result = Lab(make_box("full", "198.51.100.1"), server).detect()
    assert result.type is NatType.UNKNOWN
    assert result.public_address is None
    assert result.detail == "UDP passes, but no STUN server gave our address"


def test_an_answer_from_another_address_is_no_answer():
    server = StunServer(PRIMARY, behaviour=Behaviour.OTHER_SOURCE)
    result = Lab(make_box("full", "198.51.100.1"), server).detect()
    assert result.type is NatType.UDP_BLOCKED
    assert result.public_address is None


def test_an_old_server_is_understood():
    server = StunServer(PRIMARY, behaviour=Behaviour.OLD)
    result = Lab(make_box("full", "198.51.100.1"), server).detect()
    assert result.public_address == endpoint("198.51.100.1:9001")


@pytest.mark.parametrize("lie", ["0.0.0.0:1", "224.0.0.1:5", "127.0.0.1:9001", "192.0.2.1:0"])
def test_an_address_that_cannot_be_ours_is_not_believed(lie):
    server = StunServer(PRIMARY, behaviour=Behaviour.LIAR, lie=endpoint(lie))
    result = Lab(make_box("full", "198.51.100.1"), server).detect()
    assert result.public_address is None
    assert result.type is NatType.UNKNOWN
    assert lie in result.servers[0].detail


def test_a_liar_beside_an_honest_server_makes_the_type_unknown():
    liar = StunServer(SECOND, behaviour=Behaviour.LIAR)
    result = Lab(make_box("full", "198.51.100.1"), StunServer(PRIMARY), liar).detect()
    assert result.type is NatType.UNKNOWN
    assert "one lies" in result.detail


def test_a_liar_is_outvoted_by_two():
    third = endpoint("198.51.100.30:3478")
    servers = (
        StunServer(SECOND, behaviour=Behaviour.LIAR),
        StunServer(PRIMARY),
        StunServer(third),
    )
    result = Lab(make_box("full", "198.51.100.1"), *servers).detect()
    assert result.mapping is Mapping.ENDPOINT_INDEPENDENT
    assert "disagrees" in result.detail


def test_a_liar_does_not_overrule_the_tests_of_rfc_5780():
    liar = StunServer(SECOND, behaviour=Behaviour.LIAR)
    result = Lab(make_box("full", "198.51.100.1"), liar, rfc5780()).detect()
    assert result.type is NatType.FULL_CONE
    assert result.public_address == endpoint("198.51.100.1:9001")
    assert result.detail.endswith("a STUN server disagrees")


@given(st.binary(max_size=100), st.booleans())
def test_any_datagram_is_taken_or_left_but_never_raises(data, from_server):
    detector = NatDetector(
        [Server("s", PRIMARY)], [CLIENT], 0.0, detection_timeout_s=5.0, random=random.randbytes
    )
    assert not detector.receive(data, PRIMARY if from_server else OTHER, 0.1)
    assert detector.result is None


@pytest.mark.parametrize("mapping", Mapping)
@pytest.mark.parametrize("filtering", Filtering)
def test_every_pair_of_behaviours_has_a_name_and_a_sentence(mapping, filtering):
    assert name_type(mapping, filtering) in NatType
    assert describe(mapping, filtering)
