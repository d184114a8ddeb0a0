"""Slow, obvious twin of the offload code: frames as values, cut and joined as values.

The oracle for the C code. A frame is taken to pieces once, changed as a value and built again from
nothing: no length, checksum or offset is ever carried over. Two frames may be joined when cutting
the result gives the two frames back; there is no list of fields to compare.

Owns nothing but the text of RFC 791, 8200, 9293, 768 and 1071 and of virtio 1.2 section 5.1.6.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

VNET = struct.Struct("<BBHHHH")
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 4, 5, 0x80
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
TAGS = (0x8100, 0x88A8)
EXTENSIONS = (0, 43, 60)
TCP, UDP = 6, 17
MAX_IP_BYTES = 65535
MAX_HEADERS = 256
MAX_JOINED = {TCP: 128, UDP: 64}

Frame = tuple[bytes, bytes]
"""A virtio header and the frame behind it."""


def ones_sum(data: bytes) -> int:
    """Add the 16-bit words of `data`, each carry going round to the other end."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total > 0xFFFF:
        total = (total >> 16) + (total & 0xFFFF)
    return total


def checksum(data: bytes) -> int:
    return ones_sum(data) ^ 0xFFFF


@dataclass(frozen=True, slots=True)
class Ipv4:
    source: bytes
    target: bytes
    tos: int = 0
    id: int = 0
    flags: int = 0x4000  # and fragment offset
    ttl: int = 64
    options: bytes = b""  # a multiple of 4, at most 40 bytes

    def build(self, protocol: int, content: bytes) -> bytes:
        size = 20 + len(self.options)
        header = struct.pack(
            "!BBHHHBBH4s4s",
            0x40 | size // 4,
            self.tos,
            size + len(content),
            self.id,
            self.flags,
            self.ttl,
            protocol,
            0,
            self.source,
            self.target,
        )
        header += self.options
        return header[:10] + checksum(header).to_bytes(2) + header[12:] + content


@dataclass(frozen=True, slots=True)
class Ipv6:
    source: bytes
    target: bytes
    class_and_label: int = 0  # 28 bits
    hop_limit: int = 64
    extensions: tuple[tuple[int, bytes], ...] = ()  # type; all of it but its "next header"

    def build(self, protocol: int, content: bytes) -> bytes:
        following = protocol
        for kind, rest in reversed(self.extensions):
            content = bytes([following]) + rest + content
            following = kind
        return (
            struct.pack(
                "!IHBB",
                6 << 28 | self.class_and_label,
                len(content),
                following,
                self.hop_limit,
            )
            + self.source
            + self.target
            + content
        )


@dataclass(frozen=True, slots=True)
class Tcp:
    source: int
    target: int
    sequence: int = 0
    acknowledgement: int = 0
    reserved: int = 0  # 4 bits, the last of which is AE
    flags: int = ACK
    window: int = 0
    urgent: int = 0
    options: bytes = b""  # a multiple of 4, at most 40 bytes

    protocol = TCP
    checksum_at = 16

    def build(self, payload: bytes) -> bytes:
        return (
            struct.pack(
                "!HHIIBBHHH",
                self.source,
                self.target,
                self.sequence,
                self.acknowledgement,
                (5 + len(self.options) // 4) << 4 | self.reserved,
                self.flags,
                self.window,
                0,
                self.urgent,
            )
            + self.options
            + payload
        )


@dataclass(frozen=True, slots=True)
class Udp:
    source: int
    target: int

    protocol = UDP
    checksum_at = 6

    def build(self, payload: bytes) -> bytes:
        return struct.pack("!HHHH", self.source, self.target, 8 + len(payload), 0) + payload


@dataclass(frozen=True, slots=True)
class Packet:
    ip: Ipv4 | Ipv6
    l4: Tcp | Udp
    payload: bytes
    macs: bytes = bytes(12)
    tags: tuple[bytes, ...] = ()  # 4 bytes each

    @property
    def l4_at(self) -> int:
        """Where the TCP or UDP header begins in the frame."""
        return len(self.build()) - len(self.l4.build(self.payload))

    @property
    def header_bytes(self) -> int:
        return len(self.build()) - len(self.payload)

    @property
    def ip_bytes(self) -> int:
        return len(self.ip.build(0, self.l4.build(self.payload)))

    @property
    def gso_type(self) -> int:
        if isinstance(self.l4, Udp):
            return GSO_UDP_L4
        return GSO_TCPV4 if isinstance(self.ip, Ipv4) else GSO_TCPV6

    def build(self, *, finished: bool = False) -> bytes:
        """Return the frame, with its TCP or UDP checksum or, as a stack leaves it, without."""
        content = self.l4.build(self.payload)
        pseudo = (
            self.ip.source + self.ip.target + struct.pack("!II", len(content), self.l4.protocol)
        )
        value = (checksum(pseudo + content) or 0xFFFF) if finished else ones_sum(pseudo)
        at = self.l4.checksum_at
        content = content[:at] + value.to_bytes(2) + content[at + 2 :]
        ethertype = b"\x08\x00" if isinstance(self.ip, Ipv4) else b"\x86\xdd"
        packet = self.ip.build(self.l4.protocol, content)
        return self.macs + b"".join(self.tags) + ethertype + packet

    def plain_vnet(self) -> bytes:
        return VNET.pack(NEEDS_CSUM, GSO_NONE, 0, 0, self.l4_at, self.l4.checksum_at)

    def plain(self) -> Frame:
        """Return the packet as a frame whose checksum is left to the device."""
        return self.plain_vnet(), self.build()

    def super_frame(self, segment_bytes: int) -> Frame:
        """Return the packet as a super-frame."""
        ecn = GSO_ECN if isinstance(self.l4, Tcp) and self.l4.flags & CWR else 0
        vnet = VNET.pack(
            NEEDS_CSUM,
            self.gso_type | ecn,
            self.header_bytes,
            segment_bytes,
            self.l4_at,
            self.l4.checksum_at,
        )
        return vnet, self.build()


def take_apart(frame: bytes) -> Packet | None:
    """Return the packet that a frame with an unfinished checksum is; None when it is not one.

    Reads the fields where they should be. Whatever is wrong with them shows when the frame is
    built again and differs.
    """
    try:
        packet = read(frame)
    except (IndexError, struct.error):
        return None
    if packet is None or packet.build() != frame or packet.header_bytes > MAX_HEADERS:
        return None
    return packet


def read(frame: bytes) -> Packet | None:
    """Return what the fields of a frame say; None for what is neither TCP nor UDP.

    Raises:
        IndexError, struct.error: a header does not end within the frame.
    """
    macs, at = frame[:12], 12
    tags = []
    while len(tags) < 2 and int.from_bytes(frame[at : at + 2]) in TAGS:
        tags.append(frame[at : at + 4])
        at += 4
    ethertype, packet = int.from_bytes(frame[at : at + 2]), frame[at + 2 :]
    ip: Ipv4 | Ipv6
    if ethertype == 0x0800:
        size = (packet[0] & 15) * 4
        _, tos, _, id_, flags, ttl, protocol, _, source, target = struct.unpack_from(
            "!BBHHHBBH4s4s", packet
        )
        if flags & 0x3FFF:
            return None
        ip = Ipv4(source, target, tos, id_, flags, ttl, packet[20:size])
        content = packet[size:]
    elif ethertype == 0x86DD:
        word, _, protocol, hop_limit = struct.unpack_from("!IHBB", packet)
        content, extensions = packet[40:], []
        while protocol in EXTENSIONS:
            size = 8 + content[1] * 8
            extensions.append((protocol, content[1:size]))
            protocol, content = content[0], content[size:]
        ip = Ipv6(packet[8:24], packet[24:40], word & 0x0FFFFFFF, hop_limit, tuple(extensions))
    else:
        return None
    l4: Tcp | Udp
    if protocol == TCP:
        source, target, sequence, acknowledgement, offset, flags, window, _, urgent = (
            struct.unpack_from("!HHIIBBHHH", content)
        )
        size = (offset >> 4) * 4
        l4 = Tcp(
            source,
            target,
            sequence,
            acknowledgement,
            offset & 15,
            flags,
            window,
            urgent,
            content[20:size],
        )
    elif protocol == UDP:
        size = 8
        l4 = Udp(*struct.unpack_from("!HH", content))
    else:
        return None
    if len(content) < size:
        return None
    return Packet(ip, l4, content[size:], macs, tuple(tags))


# --- Cutting ----------------------------------------------------------------------------------


def cut(packet: Packet, segment_bytes: int) -> list[Packet]:
    """Return the packets that the kernel would make of a super-frame."""
    starts = range(0, len(packet.payload), segment_bytes) or range(1)
    packets = []
    for index, start in enumerate(starts):
        ip, l4 = packet.ip, packet.l4
        if isinstance(ip, Ipv4):
            ip = replace(ip, id=(ip.id + index) % 2**16)
        if isinstance(l4, Tcp):
            flags = l4.flags
            if index > 0:
                flags &= ~CWR
            if index < len(starts) - 1:
                flags &= ~(PSH | FIN)
            l4 = replace(l4, sequence=(l4.sequence + start) % 2**32, flags=flags)
        payload = packet.payload[start : start + segment_bytes]
        packets.append(replace(packet, ip=ip, l4=l4, payload=payload))
    return packets


def segment(
    packet: Packet, segment_bytes: int, max_frame_bytes: int, *, finished: bool = False
) -> list[Frame] | None:
    """Return a super-frame as frames of at most `max_frame_bytes`; None without room for payload.

    Datagrams of UDP keep their size.
    """
    if isinstance(packet.l4, Tcp):
        segment_bytes = min(segment_bytes, max_frame_bytes - packet.header_bytes)
        if segment_bytes <= 0:
            return None
    return [
        (bytes(10), part.build(finished=True)) if finished else part.plain()
        for part in cut(packet, segment_bytes)
    ]


# --- Joining ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Train:
    """Frames that came one after the other; packets only if the train may be longer than one."""

    frames: tuple[Frame, ...]
    packets: tuple[Packet, ...] = ()

    @property
    def merged(self) -> Packet:
        first, last = self.packets[0], self.packets[-1]
        l4 = first.l4
        if isinstance(l4, Tcp) and isinstance(last.l4, Tcp):
            l4 = replace(l4, flags=l4.flags | (last.l4.flags & (PSH | FIN)))
        return replace(first, l4=l4, payload=b"".join(packet.payload for packet in self.packets))

    def is_sound(self) -> bool:
        """Whether cutting the merged packet gives the packets back, and it is small enough."""
        merged = self.merged
        return (
            len(self.packets) <= MAX_JOINED[merged.l4.protocol]
            and merged.ip_bytes <= MAX_IP_BYTES
            and cut(merged, len(self.packets[0].payload)) == list(self.packets)
        )

    def result(self) -> tuple[bytes, bytes, int]:
        """Return virtio header, frame and number of frames."""
        if len(self.frames) == 1:
            return *self.frames[0], 1
        vnet, frame = self.merged.super_frame(len(self.packets[0].payload))
        return self.frames[0][0][:1] + vnet[1:], frame, len(self.frames)


def _joinable(frame: Frame, join_udp: bool) -> Packet | None:
    vnet, packet = VNET.unpack(frame[0]), take_apart(frame[1])
    if packet is None or not packet.payload or (isinstance(packet.l4, Udp) and not join_udp):
        return None
    if isinstance(packet.l4, Tcp) and packet.l4.flags & (SYN | RST | URG):
        return None
    flags, gso, _, _, start, offset = vnet
    if flags & ~DATA_VALID != NEEDS_CSUM or gso != GSO_NONE:
        return None
    if (start, offset) != (packet.l4_at, packet.l4.checksum_at):
        return None
    return packet


def join(frames: Iterable[Frame], *, join_udp: bool = True) -> list[tuple[bytes, bytes, int]]:
    """Return the trains that frames come to, each as virtio header, frame, number of frames."""
    trains: list[Train] = []
    for frame in frames:
        packet = _joinable(frame, join_udp)
        alone = Train((frame,), () if packet is None else (packet,))
        if trains and trains[-1].packets and packet is not None:
            last = trains[-1]
            longer = Train((*last.frames, frame), (*last.packets, packet))
            if last.frames[0][0][0] == frame[0][0] and longer.is_sound():
                trains[-1] = longer
                continue
        trains.append(alone)
    return [train.result() for train in trains]
