"""shadowmesh.device.tap: opening, setting up and taking back a TAP device.

The first half runs on a fake kernel, the second (marker netns) on the real one, in a network
namespace that exists only as long as the test does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import subprocess
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from types import SimpleNamespace

import pytest

from shadowmesh.base.errors import DeviceError, NotPermitted
from shadowmesh.device import tap, tun
from shadowmesh.device.netlink import NUD_INCOMPLETE, NUD_USABLE, Link, Neighbour, Netlink

ADDRESS4 = IPv4Interface("10.7.0.1/24")
ADDRESS6 = IPv6Interface("fd00:7::1/64")
MAC = bytes.fromhex("02aabbccddee")
KERNEL_MAC = bytes.fromhex("0e1122334455")


def refusal(code: int) -> OSError:
    return OSError(code, os.strerror(code))


@dataclass
class FakeKernel(tun.Kernel):
    """Interfaces and descriptors as data; `failures` maps the name of a step to an errno."""

    failures: dict[object, int] = field(default_factory=dict)
    links: dict[int, Link] = field(default_factory=dict)
    held: set[int] = field(default_factory=set)
    permanent: set[int] = field(default_factory=set)
    processors: int = 2
    knows_queues: bool = True
    driver: bool = True
    given: list[tuple[int, tap.Interface]] = field(default_factory=list)
    attached: dict[int, int] = field(default_factory=dict)
    offload: int | None = None
    header_bytes: int | None = None
    neighbours: list[Neighbour] = field(default_factory=list)
    calls: list[object] = field(default_factory=list)
    sockets: int = 0

    def step(self, name: object) -> None:
        self.calls.append(name)
        if name in self.failures:
            raise refusal(self.failures[name])

    def add(
        self, name: str, *, permanent: bool = False, up: bool = False, multi: bool = False
    ) -> Link:
        index = len(self.links) + 2
        queues = 0 if multi else None
        self.links[index] = Link(index, name, 1500, KERNEL_MAC, 1000, up, tun_queues=queues)
        if permanent:
            self.permanent.add(index)
        return self.links[index]

    def hold(self, index: int, count: int) -> None:
        """Let so many more descriptors be attached to a device that may have several."""
        held = self.links[index].tun_queues
        if held is not None:
            self.links[index] = replace(self.links[index], tun_queues=held + count)

    def state(self) -> object:
        return sorted(self.links.items()), sorted(map(str, self.given)), self.held, self.sockets

    def is_driver(self) -> bool:
        return self.driver

    def open(self) -> int:
        self.step("open")
        fd = max(self.held, default=39) + 1
        self.held.add(fd)
        return fd

    def close(self, fd: int) -> None:
        self.held.remove(fd)
        index = self.attached.pop(fd, None)
        if index is not None:
            self.hold(index, -1)
        if index is not None and index not in self.permanent | set(self.attached.values()):
            del self.links[index]
            self.given = [entry for entry in self.given if entry[0] != index]

    def ioctl(self, fd: int, request: int, argument: bytes | int) -> bytes | int:
        assert fd in self.held
        self.step(request if request != tun.TUNSETOFFLOAD else (request, argument))
        if request == tun.TUNSETIFF:
            raw, flags = struct.unpack("=16sH22x", argument)
            assert flags & ~tun.IFF_MULTI_QUEUE == tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
            multi = bool(flags & tun.IFF_MULTI_QUEUE)
            name = raw.rstrip(b"\0").decode().replace("%d", "0")
            known = [link for link in self.links.values() if link.name == name]
            if (multi and not self.knows_queues) or (
                known and multi != (known[0].tun_queues is not None)
            ):
                raise refusal(errno.EINVAL)
            self.attached[fd] = (known[0] if known else self.add(name, multi=multi)).index
            self.hold(self.attached[fd], 1)
            return struct.pack("=16sH22x", name.encode(), flags)
        if request == tun.TUNGETIFF:
            link = self.links[self.attached[fd]]
            flags = tun.IFF_TAP | tun.IFF_NO_PI | tun.IFF_VNET_HDR
            flags |= tun.IFF_PERSIST if link.index in self.permanent else 0
            flags |= tun.IFF_MULTI_QUEUE if link.tun_queues is not None else 0
            return struct.pack("=16sH22x", link.name.encode(), flags)
        if request == tun.TUNSETVNETHDRSZ:
            [self.header_bytes] = struct.unpack("=i", argument)
        elif request == tun.TUNSETOFFLOAD:
            self.offload = argument
        elif request == tun.TUNSETPERSIST:
            self.permanent.add(self.attached[fd])
        return 0

    def index_of(self, name: str) -> int:
        self.step("index")
        for link in self.links.values():
            if link.name == name:
                return link.index
        raise refusal(errno.ENODEV)

    def cores(self) -> int:
        return self.processors

    def netlink(self) -> FakeNetlink:
        self.step("netlink")
        self.sockets += 1
        return FakeNetlink(self)


class FakeNetlink(Netlink):
    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.open = True

    def close(self) -> None:
        self.kernel.sockets -= self.open
        self.open = False

    def link(self, index: int) -> Link:
        self.kernel.step("link")
        if index not in self.kernel.links:
            raise refusal(errno.ENODEV)
        return self.kernel.links[index]

    def set_link(
        self, index, *, mtu=None, queue_length=None, mac=None, up=None, most_segments=None
    ) -> None:
        self.kernel.step("limit" if most_segments else ("set_link", up))
        asked = {"mtu": mtu, "queue_length": queue_length, "mac": mac, "up": up}
        asked["most_segments"] = most_segments
        changes = {key: value for key, value in asked.items() if value is not None}
        self.kernel.links[index] = replace(self.kernel.links[index], **changes)

    def addresses(self) -> list[tuple[int, tap.Interface]]:
        self.kernel.step("addresses")
        return list(self.kernel.given)

    def add_address(self, index: int, address: tap.Interface) -> None:
        self.kernel.step("add_address")
        self.kernel.given.append((index, address))

    def delete_address(self, index: int, address: tap.Interface) -> None:
        self.kernel.given.remove((index, address))

    def neighbours(self) -> list[Neighbour]:
        return list(self.kernel.neighbours)

    def forget_neighbour(self, entry: Neighbour) -> None:
        self.kernel.step("forget_neighbour")
        self.kernel.neighbours.remove(entry)


ALL = tap.OFFLOAD_TCP | tap.OFFLOAD_UDP


def open_tap(kernel: tun.Kernel | None = None, name: str = "tap0", **wanted: object) -> tap.Tap:
    settings = {"mtu": 1400, "addresses": (ADDRESS4,), "persist": False, "offload": ALL, **wanted}
    return tap.open_tap(name, kernel=kernel, **settings)


def test_a_new_device_is_set_up_and_goes_away_on_close():
    kernel = FakeKernel()
    device = open_tap(kernel, name="tap%d", mac=MAC)
    assert (device.fds, device.name, device.mtu, device.mac) == ((40,), "tap0", 1400, MAC)
    assert kernel.links[device.ifindex] == Link(
        2, "tap0", 1400, MAC, tap.QUEUE_LENGTH, up=True, most_segments=128
    )
    assert kernel.given == [(2, ADDRESS4)]
    assert kernel.header_bytes == 10
    assert kernel.offload == ALL
    assert device.exists()
    assert device.is_up()
    assert not device.persistent
    device.close()
    device.close()
    assert device.fds == ()
    assert not device.exists()
    assert not device.is_up()
    assert kernel.state() == FakeKernel().state()


def test_the_address_is_there_before_the_link_comes_up():
    kernel = FakeKernel()
    open_tap(kernel)
    assert kernel.calls.index("add_address") < kernel.calls.index(("set_link", True))


def test_a_device_that_may_not_be_changed_serves_as_it_is():
    kernel = FakeKernel(failures={"limit": errno.EPERM})
    device = open_tap(kernel)
    assert kernel.links[device.ifindex].most_segments == 0xFFFF
    assert device.is_up()


def test_a_persistent_device_outlives_close_and_is_taken_over_unchanged():
    kernel = FakeKernel()
    device = open_tap(kernel, persist=True)
    assert device.persistent
    device.close()
    assert list(kernel.links) == [2]
    before = kernel.state()
    kernel.calls.clear()
    again = open_tap(kernel, persist=False)
    assert again.persistent
    changing = ("add_address", "limit")
    assert not any("set_link" in str(call) or call in changing for call in kernel.calls)
    again.close()
    assert kernel.state() == before


def test_several_addresses_are_given_in_their_order_and_taken_back_together():
    kernel = FakeKernel()
    open_tap(kernel, addresses=(ADDRESS4, ADDRESS6))
    assert kernel.given == [(2, ADDRESS4), (2, ADDRESS6)]
    refusing = FakeKernel(failures={("set_link", True): errno.EINVAL})
    with pytest.raises(DeviceError):
        open_tap(refusing, addresses=(ADDRESS4, ADDRESS6))
    assert refusing.given == []


def test_a_kept_device_that_lacks_one_of_the_addresses_does_not_fit():
    kernel = FakeKernel()
    fd = open_tap(kernel, addresses=(ADDRESS4,)).fds[0]
    other = ip_interface("10.9.9.9/24")
    why = tap.misfit(fd, "tap0", mtu=1400, addresses=(ADDRESS4, other), kernel=kernel)
    assert why == f"tap0 does not have the address {other}"
    # One that is spared where there is no IPv6 is given when the device is opened.
    both = (ADDRESS4, ADDRESS6)
    assert tap.misfit(fd, "tap0", mtu=1400, addresses=both, kernel=kernel) is None
    assert tap.misfit(fd, "tap0", mtu=1400, addresses=(ADDRESS6,), kernel=kernel) is not None


def test_without_an_address_none_is_given():
    kernel = FakeKernel()
    open_tap(kernel, addresses=())
    assert kernel.given == []


def test_udp_segmentation_is_left_out_where_the_kernel_has_none():
    kernel = FakeKernel(failures={(tun.TUNSETOFFLOAD, ALL): errno.EINVAL})
    assert not tap.check_permission("tap0", kernel)
    device = open_tap(kernel)
    assert not device.udp_super_frames
    assert kernel.offload == tap.OFFLOAD_TCP
    device.set_offload(0)
    device.set_offload(ALL)
    assert kernel.offload == tap.OFFLOAD_TCP


def test_where_no_device_is_wanted_nothing_is_asked_of_the_kernel():
    kernel = FakeKernel(failures={"open": errno.EACCES})
    assert tap.check_permission("", kernel)
    assert kernel.calls == []


def test_offload_is_what_was_asked_for():
    kernel = FakeKernel()
    assert tap.check_permission("tap0", kernel)
    device = open_tap(kernel, offload=0)
    assert device.udp_super_frames
    assert kernel.offload == 0
    for flags in (tap.OFFLOAD_CHECKSUM, tap.OFFLOAD_TCP, ALL, 0):
        device.set_offload(flags)
        assert kernel.offload == flags


STEPS = [
    tun.TUNSETIFF,
    tun.TUNSETVNETHDRSZ,
    (tun.TUNSETOFFLOAD, ALL),
    "index",
    "netlink",
    "link",
    "addresses",
    "add_address",
    ("set_link", True),
    tun.TUNGETIFF,
    tun.TUNSETPERSIST,
]


@pytest.mark.parametrize(
    ("step", "existed"),
    [(step, existed) for step in STEPS for existed in (False, True)][:-1],  # persistent already
    ids=str,
)
def test_a_failure_at_any_step_leaves_everything_as_it_was(step, existed):
    kernel = FakeKernel(failures={step: errno.ENOMEM})
    if existed:
        kernel.add("tap0", permanent=True)
    before = kernel.state()
    with pytest.raises(DeviceError) as caught:
        open_tap(kernel, persist=True, mac=MAC)
    assert caught.value.errno == errno.ENOMEM
    assert kernel.state() == before


@pytest.mark.parametrize("step", [*STEPS[:3], "add_address", ("set_link", True)], ids=str)
@pytest.mark.parametrize("code", [errno.EPERM, errno.EACCES])
def test_a_missing_permission_names_the_capability(step, code):
    kernel = FakeKernel(failures={step: code})
    with pytest.raises(NotPermitted, match="CAP_NET_ADMIN"):
        open_tap(kernel)
    assert kernel.held == set()


def test_a_device_prepared_for_a_user_keeps_its_mac_where_that_may_not_be_changed(caplog):
    kernel = FakeKernel(failures={("set_link", None): errno.EPERM})
    link = kernel.add("tap0", permanent=True, up=True)
    kernel.links[link.index] = replace(link, mtu=1400, queue_length=tap.QUEUE_LENGTH)
    kernel.given.append((link.index, ADDRESS4))
    device = open_tap(kernel, mac=MAC)
    assert device.mac == KERNEL_MAC
    [record] = [record for record in caplog.records if "MAC" in record.getMessage()]
    assert record.levelname == "WARNING"
    del kernel.failures["set_link", None]
    device.close()
    assert open_tap(kernel, mac=MAC).mac == MAC


@pytest.mark.parametrize(
    "put", ["file", "another device", "directory", "nothing", "link to nothing"]
)
def test_what_is_not_the_driver_is_named_at_the_start_and_not_opened(tmp_path, monkeypatch, put):
    path = tmp_path / "tun"
    if put == "file":
        path.touch()
    elif put == "another device":
        path.symlink_to("/dev/null")
    elif put == "directory":
        path.mkdir()
    elif put == "link to nothing":
        path.symlink_to("nowhere")
    monkeypatch.setattr(tun, "CLONE_DEVICE", str(path))
    kernel = tun.Kernel()
    kernel.open = lambda: pytest.fail("opened")  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match=r"modprobe tun.*--device"):
        tap.check_permission("tap0", kernel)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EACCES, "chmod 666 /dev/net/tun"),
        (errno.EPERM, "DeviceAllow=/dev/net/tun rw"),
    ],
)
def test_a_driver_that_may_not_be_opened_says_who_has_to_allow_it(code, remedy):
    with pytest.raises(NotPermitted, match=remedy):
        tap.check_permission("tap0", FakeKernel(failures={"open": code}))


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENODEV, errno.ENXIO])
def test_a_missing_driver_is_explained(code):
    with pytest.raises(DeviceError, match=r"modprobe tun.*--device /dev/net/tun") as caught:
        open_tap(FakeKernel(failures={"open": code}))
    assert caught.value.errno == code


def test_a_device_of_another_process_is_explained():
    with pytest.raises(DeviceError, match="another process has it") as caught:
        open_tap(FakeKernel(failures={tun.TUNSETIFF: errno.EBUSY}))
    assert caught.value.errno == errno.EBUSY


def test_an_interface_that_is_no_tap_is_explained():
    with pytest.raises(DeviceError, match="not a TAP device"):
        open_tap(FakeKernel(failures={tun.TUNSETIFF: errno.EINVAL}), name="eth0")


def test_switched_off_ipv6_is_explained():
    kernel = FakeKernel(failures={"add_address": errno.EACCES})
    with pytest.raises(DeviceError, match=r"IPv6 is switched off.*tap0\.disable_ipv6=0"):
        open_tap(kernel, addresses=(ADDRESS6,))


@pytest.mark.parametrize("code", [errno.EACCES, errno.EOPNOTSUPP, errno.EAFNOSUPPORT])
def test_without_ipv6_an_address_beside_one_of_ipv4_is_spared(code):
    kernel = FakeKernel()
    plain = FakeNetlink.add_address

    def add_address(self, index, address):
        if address.version == 6:
            raise OSError(code, os.strerror(code))
        plain(self, index, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FakeNetlink, "add_address", add_address)
        device = open_tap(kernel, addresses=(ADDRESS4, ADDRESS6))
    assert device.left_out == (ADDRESS6,)
    assert [address for _, address in kernel.given] == [ADDRESS4]


def test_a_kernel_that_refuses_to_forget_a_neighbour_is_an_error_of_the_device():
    kernel = FakeKernel()
    device = open_tap(kernel)
    silent = Neighbour(device.index, ADDRESS4.ip, b"", NUD_INCOMPLETE)
    others = [replace(silent, state=NUD_USABLE), replace(silent, index=device.index + 1)]
    kernel.neighbours = [*others, silent]
    device.ask_again()
    assert kernel.neighbours == others
    kernel.neighbours.append(silent)
    kernel.failures["forget_neighbour"] = errno.ENOENT  # it has answered meanwhile
    device.ask_again()
    kernel.failures["forget_neighbour"] = errno.EPERM
    with pytest.raises(DeviceError, match="cannot clear the neighbours of tap0"):
        device.ask_again()
    assert kernel.sockets == 0


# --- Queues -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "queues"), [(1, 1), (2, 1), (3, 3), (4, 4), (5, 4), (64, 4)])
def test_a_machine_with_more_than_two_cores_gets_a_queue_for_each_up_to_four(cores, queues):
    kernel = FakeKernel(processors=cores)
    device = open_tap(kernel, queues=None)
    assert len(device.fds) == queues
    assert kernel.links[device.ifindex].tun_queues == (queues if queues > 1 else None)
    device.close()
    assert kernel.state() == FakeKernel().state()


def test_a_device_with_one_queue_is_made_as_it_always_was():
    kernel = FakeKernel(processors=64)
    device = open_tap(kernel, queues=1)
    assert device.fds == (40,)
    assert kernel.links[device.ifindex].tun_queues is None


def test_a_device_that_was_made_for_one_queue_is_explained():
    kernel = FakeKernel()
    kernel.add("tap0", permanent=True)
    before = kernel.state()
    with pytest.raises(
        DeviceError, match=r"made for one; delete it .*multi_queue`, or set network\.queues to 1"
    ):
        open_tap(kernel, queues=4)
    assert kernel.state() == before


@pytest.mark.parametrize("why", ["old device", "old kernel"])
def test_by_itself_the_daemon_is_content_with_one_queue(why):
    kernel = FakeKernel(processors=4, knows_queues=why != "old kernel")
    if why == "old device":
        kernel.add("tap0", permanent=True)
    assert len(open_tap(kernel, queues=None).fds) == 1


def test_one_queue_of_a_device_that_may_have_several_is_enough():
    kernel = FakeKernel()
    kernel.add("tap0", permanent=True, multi=True)
    assert len(open_tap(kernel, queues=1).fds) == 1


def test_a_device_whose_queues_another_process_holds_is_not_joined():
    kernel = FakeKernel()
    open_tap(kernel, queues=2)
    before = kernel.state()
    for queues in (1, 2):
        with pytest.raises(DeviceError, match="another process has it"):
            open_tap(kernel, queues=queues)
    assert kernel.state() == before


def test_a_failure_at_the_last_queue_leaves_nothing_behind():
    kernel = FakeKernel(failures={"third": errno.EMFILE})
    opened = kernel.open
    turns = iter(("first", "second", "third"))

    def open_clone() -> int:
        kernel.step(next(turns))
        return opened()

    kernel.open = open_clone  # type: ignore[method-assign]
    with pytest.raises(DeviceError, match="Too many open files"):
        open_tap(kernel, queues=3)
    assert kernel.state() == FakeKernel().state()


def test_the_other_queues_of_a_device_that_was_kept_are_opened_anew():
    kernel = FakeKernel(processors=4)
    first, *others = open_tap(kernel, queues=None).fds
    for fd in others:  # what a restart leaves: somebody holds one
        kernel.close(fd)
    wanted = {"mtu": 1400, "addresses": (ADDRESS4,), "kernel": kernel}
    assert tap.misfit(first, "tap0", queues=None, **wanted) is None
    again = open_tap(kernel, queues=None, held=first)
    assert again.fds[0] == first
    assert len(again.fds) == 4
    again.close()
    kept = open_tap(kernel, queues=1).fds[0]
    assert "made for one queue, not 4" in str(tap.misfit(kept, "tap0", queues=4, **wanted))


@pytest.mark.parametrize("name", ["", "a" * 16, "é" * 8, "a b", "a/b", "a:b", ".", "..", "a\0b"])
def test_an_impossible_name_is_refused_before_anything_is_opened(name):
    kernel = FakeKernel()
    with pytest.raises(DeviceError, match=r"network\.tap_device"):
        open_tap(kernel, name=name)
    assert kernel.calls == []


def test_an_address_of_another_interface_is_a_warning_only(monkeypatch):
    said = []
    recorder = SimpleNamespace(
        info=lambda text, **fields: None, warning=lambda text, **fields: said.append(fields)
    )
    monkeypatch.setattr(tap, "_log", recorder)
    kernel = FakeKernel()
    lan = kernel.add("lan0")
    kernel.given += [(lan.index, IPv4Interface("10.7.0.1/16")), (9, IPv4Interface("10.7.0.2/24"))]
    device = open_tap(kernel)
    assert (device.ifindex, ADDRESS4) in kernel.given
    [fields] = said
    assert (fields["address"], fields["interface"]) == (ADDRESS4.ip, "lan0")
    assert "network.local_ip" in fields["remedy"]


# --- on the real kernel -----------------------------------------------------------------------

CLONE_NEWNET = 0x40000000
libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def namespace():
    """A network namespace of our own, for this thread, gone with the last reference to it."""
    if not Path(tun.CLONE_DEVICE).exists():
        pytest.skip(f"{tun.CLONE_DEVICE} is missing")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            pytest.skip(f"no network namespace: {os.strerror(ctypes.get_errno())}")
        try:
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
    finally:
        os.close(home)


def link_of(name: str) -> Link:
    """What the kernel says, but for the frames that it sends by itself and loses."""
    with Netlink() as netlink:
        return replace(netlink.link(socket.if_nametoindex(name)), tx_dropped=0)


def addresses_of(index: int) -> set[tap.Interface]:
    with Netlink() as netlink:
        return {
            address
            for owner, address in netlink.addresses()
            if owner == index and not address.ip.is_link_local
        }


@pytest.mark.netns
@pytest.mark.parametrize("addresses", [(ADDRESS4,), (ADDRESS6,), (ADDRESS4, ADDRESS6), ()], ids=str)
def test_a_real_device_gets_what_was_asked_for(namespace, addresses):
    device = open_tap(name="tap%d", mtu=9000, addresses=addresses, mac=MAC, queue_length=77)
    try:
        assert device.name == "tap0"
        assert link_of("tap0") == Link(
            device.ifindex, "tap0", 9000, MAC, 77, up=True, kind="tun", most_segments=128
        )
        assert addresses_of(device.ifindex) == set(addresses)
        assert os.get_blocking(device.fds[0]) is False
        assert os.get_inheritable(device.fds[0]) is False
        assert device.is_up()
    finally:
        device.close()
    assert not device.exists()
    with pytest.raises(OSError, match="no interface with this name"):
        link_of("tap0")


def neighbours_of(index: int) -> list[Neighbour]:
    with Netlink() as netlink:
        return [entry for entry in netlink.neighbours() if entry.index == index]


@pytest.mark.netns
@pytest.mark.parametrize("address", [ADDRESS4, ADDRESS6], ids=str)
def test_a_real_kernel_asks_again_for_whom_nobody_has_answered(namespace, address):
    silent, known = address.ip + 1, address.ip + 2
    device = open_tap(addresses=(address,))
    try:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (str(silent), 9))
            enter = f"ip neigh add {known} lladdr 02:00:00:00:00:07 dev {device.name}"
            subprocess.run(enter.split(), check=True)
            assert {each.address for each in neighbours_of(device.index)} >= {silent, known}
            device.ask_again()
            asked = {each.address for each in neighbours_of(device.index)}
            assert silent not in asked
            assert known in asked
            sender.sendto(b"x", (str(silent), 9))
            assert silent in {each.address for each in neighbours_of(device.index)}
    finally:
        device.close()


@pytest.mark.netns
@pytest.mark.parametrize("address", [ADDRESS4, ADDRESS6], ids=str)
def test_a_real_address_can_be_used_at_once(namespace, address):
    device = open_tap(addresses=(address,))
    try:
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.bind((str(address.ip), 0))
            sender.sendto(b"x", (str(address.ip + 1), 9))
    finally:
        device.close()


@pytest.mark.netns
def test_a_real_frame_comes_with_a_header_of_ten_bytes(namespace):
    device = open_tap()
    try:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind((device.name, 0x88B5))
            frame = b"\xff" * 6 + device.mac + b"\x88\xb5" + b"hello".ljust(50, b".")
            wire.send(frame)
            got = b""
            while not got.endswith(frame):  # the kernel's own multicast may come first
                got = os.read(device.fds[0], 2048)
            assert len(got) == 10 + len(frame)
            answer = device.mac + b"\x02\0\0\0\0\x02" + b"\x88\xb5" + b"reply".ljust(50, b".")
            assert os.write(device.fds[0], bytes(10) + answer) == 10 + len(answer)
    finally:
        device.close()


@pytest.mark.netns
def test_a_real_persistent_device_stays_and_opens_again(namespace):
    device = open_tap(persist=True)
    index = device.ifindex
    device.close()
    assert device.exists()
    assert addresses_of(index) == {ADDRESS4}
    again = open_tap(persist=True)
    assert again.ifindex == index
    again.close()


@pytest.mark.netns
def test_a_real_device_that_is_open_elsewhere_is_refused(namespace):
    device = open_tap()
    try:
        with pytest.raises(DeviceError, match="another process has it"):
            open_tap()
        assert device.is_up()
    finally:
        device.close()


@pytest.mark.netns
def test_a_real_device_with_four_queues_is_one_device(namespace):
    device = open_tap(queues=4)
    try:
        assert len(set(device.fds)) == 4
        assert link_of("tap0").tun_queues == 4
        assert link_of("tap0").queue_length == tap.QUEUE_LENGTH
        for queues in (1, 2):
            with pytest.raises(DeviceError, match="another process has it"):
                open_tap(queues=queues)
        assert link_of("tap0").tun_queues == 4
    finally:
        device.close()
    assert not device.exists()


@pytest.mark.netns
def test_a_real_persistent_device_keeps_the_kind_of_queues_it_was_made_with(namespace):
    open_tap(persist=True).close()
    assert link_of("tap0").tun_queues is None
    with pytest.raises(DeviceError, match="made for one"):
        open_tap(queues=2)
    device = open_tap(queues=None)
    assert len(device.fds) == 1
    device.close()
    with Netlink() as netlink:
        netlink._call(17, 4, struct.pack("=BxHiII", 0, 0, device.ifindex, 0, 0))  # RTM_DELLINK
    open_tap(persist=True, queues=2).close()
    assert link_of("tap0").tun_queues == 0
    for queues in (4, 1, 2):
        device = open_tap(queues=queues)
        assert link_of("tap0").tun_queues == queues == len(device.fds)
        device.close()


@pytest.mark.netns
def test_a_real_interface_that_is_no_tap_is_refused(namespace):
    with pytest.raises(DeviceError, match="not a TAP device"):
        open_tap(name="lo")


@pytest.mark.netns
def test_a_real_failure_leaves_no_device_behind(namespace):
    with pytest.raises(DeviceError, match="MTU 70000"):
        open_tap(mtu=70_000)
    with pytest.raises(OSError, match="no interface with this name"):
        link_of("tap0")


@pytest.mark.netns
def test_a_real_failure_puts_a_persistent_device_back(namespace):
    open_tap(persist=True).close()
    before = link_of("tap0")
    with pytest.raises(DeviceError, match="MTU 70000"):
        open_tap(mtu=70_000, addresses=(ip_interface("10.9.9.9/24"),))
    assert link_of("tap0") == before
    assert addresses_of(before.index) == {ADDRESS4}


@pytest.mark.netns
def test_switched_off_real_ipv6_is_explained(namespace):
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    with pytest.raises(DeviceError, match="IPv6 is switched off"):
        open_tap(addresses=(ADDRESS6,))


@pytest.mark.netns
def test_where_real_ipv6_is_switched_off_an_address_of_it_beside_ipv4_is_left_out(namespace):
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    device = open_tap(addresses=(ADDRESS4, ADDRESS6))
    try:
        assert device.left_out == (ADDRESS6,)
        assert addresses_of(device.index) == {ADDRESS4}
        both = {"mtu": device.mtu, "addresses": (ADDRESS4, ADDRESS6)}
        assert tap.misfit(device.fds[0], "tap0", **both) is None
    finally:
        device.close()


@pytest.mark.netns
def test_a_real_device_takes_offload_on_and_off(namespace):
    device = open_tap(offload=0)
    try:
        for flags in (tap.OFFLOAD_CHECKSUM, tap.OFFLOAD_TCP, ALL, 0):
            device.set_offload(flags)
    finally:
        device.close()
    with pytest.raises(DeviceError, match="it is closed"):
        device.set_offload(ALL)


@pytest.mark.netns
def test_a_real_device_deleted_under_us_is_noticed(namespace):
    device = open_tap()
    try:
        with Netlink() as netlink:
            netlink._call(17, 4, struct.pack("=BxHiII", 0, 0, device.ifindex, 0, 0))  # RTM_DELLINK
        assert not device.exists()
        assert not device.is_up()
    finally:
        device.close()
