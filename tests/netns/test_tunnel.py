"""One connected pair, and everything an Ethernet cable would carry."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import socket
import struct
import threading

import pytest

from shadowmesh.netlab import wait_until
from tests.lab.capture import Capture
from tests.lab.frames import vlan_tag
from tests.lab.pair import connected_pair, counters, exchange, link_statistics, streams

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def pair(directory):
    with connected_pair(directory) as pair:
        yield pair


@pytest.fixture(scope="module", params=["left to right", "right to left"])
def ways(pair, request):
    """Source and target daemon, in both orders."""
    return tuple(pair) if request.param == "left to right" else tuple(pair)[::-1]


def test_a_ping_crosses_in_both_directions(pair):
    pair.assert_pings()


def test_the_status_tells_how_the_tunnel_is_protected(pair):
    for daemon, other in (tuple(pair), tuple(pair)[::-1]):
        status = daemon.status()
        assert status["path"] == "wss"
        assert status["cipher"] in {"aegis-256", "chacha20-poly1305"}
        assert status["post_quantum"] is True
        assert status["tls_path"] == "direct"
        assert status["peer"]["public_key"] == other.public_key
        assert status["peer"]["pinned"] is True
        assert status["last_error"] is None
        queues = status["tap"].pop("queues")
        assert 1 <= len(queues) <= 4
        assert sum(queue["frames_in"] for queue in queues) <= status["counters"]["frames_in"]
        assert status["tap"] == {
            "device": "tap0",
            "mtu": 1500,
            "address": daemon.settings["network.local_ip"],
            "addresses": [daemon.settings["network.local_ip"]],
            "realtime": None,
            "realtime_problem": None,
        }


def test_nothing_of_a_payload_is_readable_on_the_wire(pair, tmp_path):
    canary = secrets.token_hex(16).encode()
    with Capture(pair.net, pair.left.host, tmp_path) as capture:
        for source, target in (tuple(pair), tuple(pair)[::-1]):
            assert source.host.ping(target.tunnel_ip, payload=canary).complete
        # The same bytes beside the tunnel, or the silence would prove nothing.
        pair.left.host.ping(pair.right.host.ipv4, count=1, payload=b"beside the tunnel")
        wait_until(lambda: capture.count(b"beside the tunnel"), 5, "the capture caught up")
    capture.assert_absent(canary)
    assert capture.count(b"beside the tunnel") == 2


@pytest.mark.parametrize("size", [60, 61, 128, 590, 1513, 1514])
def test_frames_of_every_size_arrive_unchanged(ways, size):
    source, target = ways
    exchange(source.host, source.tap, target.host, target.tap, size=size)


@pytest.mark.parametrize(
    ("tags", "size"),
    [
        (vlan_tag(7), 104),
        (vlan_tag(7), 1518),
        (vlan_tag(0), 104),
        (vlan_tag(8, tpid=0x88A8) + vlan_tag(7), 108),
    ],
    ids=["802.1Q", "full 802.1Q", "priority tag", "QinQ"],
)
def test_vlan_tags_are_kept(ways, tags, size):
    source, target = ways
    exchange(source.host, source.tap, target.host, target.tap, size=size, tags=tags)


def test_a_full_frame_keeps_two_vlan_tags(ways):
    source, target = ways
    tags = vlan_tag(8, tpid=0x88A8) + vlan_tag(7)
    # A packet socket refuses a second tag above the MTU; what the daemon takes stays the same.
    source.host.ip(f"link set {source.tap} mtu 1600")
    try:
        exchange(source.host, source.tap, target.host, target.tap, size=1522, tags=tags)
    finally:
        source.host.ip(f"link set {source.tap} mtu 1500")


@pytest.mark.parametrize(
    "target_mac",
    ["ffffffffffff", "333300000001", "01005e0000fb", "0180c2000000", "020000000042"],
    ids=["broadcast", "IPv6 multicast", "IPv4 multicast", "bridge protocol", "unknown host"],
)
def test_frames_to_every_kind_of_address_arrive(ways, target_mac):
    source, target = ways
    exchange(source.host, source.tap, target.host, target.tap, target=bytes.fromhex(target_mac))


def test_a_full_packet_that_may_not_be_fragmented_crosses(ways):
    source, target = ways
    outcome = source.host.ping(target.tunnel_ip, size=1472, dont_fragment=True)
    assert outcome.complete


def test_arp_finds_the_other_host(ways):
    source, target = ways
    source.host.ip(f"neighbour flush dev {source.tap}")
    assert source.host.ping(target.tunnel_ip, count=1, timeout_s=3).complete
    found = source.host.ip(f"neighbour show {target.tunnel_ip} dev {source.tap}")
    assert target.host.interfaces()[target.tap]["address"] in found


def test_ipv6_works_inside_the_tunnel(pair):
    for number, daemon in enumerate(pair, 1):
        daemon.host.ip(f"address add fd00:77::{number}/64 dev {daemon.tap} nodad")
    assert pair.left.host.ping("fd00:77::2", size=1452, dont_fragment=True).complete
    assert pair.right.host.ping("fd00:77::1").complete


def test_multicast_reaches_a_member(ways):
    source, target = ways
    group = "239.7.7.7"
    udp = (socket.AF_INET, socket.SOCK_DGRAM)
    with source.host.open_socket(*udp) as out, target.host.open_socket(*udp) as into:
        into.bind((group, 5353))
        into.settimeout(3)
        membership = socket.inet_aton(group) + socket.inet_aton(target.tunnel_ip)
        into.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        interface = socket.inet_aton(source.tunnel_ip)
        out.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        out.sendto(b"to all of you", (group, 5353))
        assert into.recvfrom(100)[0] == b"to all of you"


def test_a_large_tcp_transfer_arrives_unchanged(ways):
    source, target = ways
    chunk = secrets.token_bytes(1 << 20)
    chunks = 32
    received = hashlib.sha256()
    with target.host.listen((target.tunnel_ip, 5001)) as listener:

        def take() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(1 << 20):
                    received.update(data)

        thread = threading.Thread(target=take)
        thread.start()
        with source.host.connect((target.tunnel_ip, 5001), timeout_s=30) as connection:
            for number in range(chunks):
                connection.sendall(struct.pack("!Q", number) + chunk)
        thread.join(30)
    sent = hashlib.sha256(b"".join(struct.pack("!Q", n) + chunk for n in range(chunks)))
    assert received.hexdigest() == sent.hexdigest()


@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
@pytest.mark.parametrize("extra", [["-P4"], ["-R"], ["-u", "-b", "20M"]], ids=" ".join)
def test_iperf3_moves_data(pair, extra, tmp_path):
    server = pair.right.host.popen(
        "iperf3", "-s", "-1", "-B", pair.right.tunnel_ip, log=tmp_path / "server"
    )
    try:
        listening = ("ss", "-Hlnt", "sport", "=", ":5201")
        wait_until(lambda: pair.right.host.run(*listening).stdout, 15, "iperf3 listens")
        command = ["iperf3", "-c", pair.right.tunnel_ip, "-t", "1", "-J", *extra]
        report = json.loads(pair.left.host.run(*command, timeout_s=30).stdout)
    finally:
        server.kill()
        server.wait()
    total = report["end"].get("sum_received") or report["end"]["sum"]
    assert total["bytes"] > 1_000_000


def test_no_frame_is_lost_doubled_or_altered_at_a_steady_rate(pair):
    with streams(pair, per_second=1000, size=400) as collectors:
        wait_until(lambda: all(len(c.arrived) > 1500 for c in collectors), 15, "frames arrive")
    for collector in collectors:
        collector.assert_sound()
        assert collector.vanished == 0


def test_every_frame_that_was_read_was_sent_or_counted_as_dropped(pair):
    """The kernel's counters of both TAPs and the daemons' own tell one story.

    From here on, with small frames: a super-frame is one to the kernel, and counts for each piece
    where a busy machine made the link a slow one (shadowmesh/fast/link_out.pxd).
    """

    def accounts() -> list[int]:
        numbers = []
        for daemon in pair:
            ours, kernel = counters(daemon), link_statistics(daemon.host, daemon.tap)
            numbers += [
                ours["frames_out"], ours["frames_in"], sum(ours["dropped"].values()),
                kernel["tx"]["packets"], kernel["rx"]["packets"],
            ]  # fmt: skip
        return [number - old for number, old in zip(numbers, before, strict=True)]

    def settled() -> bool:
        (lo, li, ld, lt, lr), (ro, ri, rd, rt, rr) = (numbers[:5], numbers[5:])
        return lo + ro + ld + rd == lt + rt and li + ri == lr + rr and (lo, ro) == (ri, li)

    before = [0] * 10
    seen = accounts()

    def quiet() -> bool:
        last, seen[:] = list(seen), accounts()
        return last == seen

    wait_until(quiet, 15, "nothing is under way", interval_s=1)
    before = seen
    assert pair.left.host.ping(pair.right.tunnel_ip, count=20).complete
    numbers = accounts()

    def agree() -> bool:
        numbers[:] = accounts()
        return settled()

    try:
        wait_until(agree, 15, "counters agree", interval_s=0.2)
    except TimeoutError:
        names = ("out", "in", "dropped", "kernel tx", "kernel rx")
        pytest.fail(f"left and right: {names} {numbers}")
