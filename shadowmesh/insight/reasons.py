"""What the counters of dropped frames and datagrams mean, and what to do about them.

Owns: one sentence and one remedy for each reason. Does not know: who counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something was dropped, as a sentence; `remedy` is empty where nothing is to be done."""

    meaning: str
    remedy: str = ""


#: frames and records; all names but the last are those of the data plane
DROPPED: Final[Mapping[str, Reason]] = {
    "not_connected": Reason(
        "the host sent while there was no tunnel; a few are normal, the kernel talks by itself"
    ),
    "link_stalled": Reason(
        "the WebSocket link took nothing for 1 s",
        "the way to the peer is interrupted or far too slow: `shadowmesh ping` shows it",
    ),
    "queue_full": Reason(
        "the WebSocket link carries less than comes, which is how senders learn to slow down"
    ),
    "link_lost": Reason("they waited for the link when the connection ended"),
    "key_expired": Reason(
        "the keys were older than 180 s and no rekey had succeeded",
        "look for `rekey` in the logs of both sides",
    ),
    "seal_refused": Reason("the counter of a key was at its end"),
    "udp_send": Reason(
        "this host would not send them over UDP",
        "a rule on its own output (`nft list ruleset`), if udp_errors in `shadowmesh --json status`"
        " has EPERM; a missing route, if it has ENETUNREACH",
    ),
    "tap_down": Reason("they came from the peer and the device is down", "ip link set DEVICE up"),
    "tap_gone": Reason(
        "they came from the peer and there is no device: it was deleted, or none is wanted here"
    ),
    "tap_full": Reason(
        "the kernel took frames slower than they came", "the machine is short of processor time"
    ),
    "tap_refused": Reason("the kernel did not want them"),
    "runt": Reason("shorter than an Ethernet header"),
    "too_long": Reason(
        "longer than the MTU of the receiving side allows", "set network.mtu alike on both sides"
    ),
    "bad_offload": Reason("the request to segment them made no sense"),
    "multicast_source": Reason("they came from a group address, which no card has"),
    "foreign_mac": Reason(
        "they had the address of another peer's device, or came from a peer with that of this host",
        "find the machine that has it: `shadowmesh fdb` names its owner, and two machines with one"
        " key have one address",
    ),
    "mac_limit": Reason(
        "a peer sent from more addresses than it may have, or from one that is not among them",
        "look at its allowed_macs in peers, and for a flood of addresses behind it",
    ),
    "mac_elsewhere": Reason(
        "their address was heard from another peer less than 30 s before",
        "find the loop between two bridges, or the machine that is there twice: `shadowmesh fdb`"
        " counts the moves",
    ),
    "flood_limit": Reason(
        "a peer sent more broadcasts and frames to unknown addresses than are passed on in a second",
        "look for a storm behind it: a loop between two bridges, or a program that broadcasts",
    ),
    "bad_vlan": Reason(
        "they had more than two VLAN tags, or half of one: nothing behind it can be checked"
    ),
    "reserved_address": Reason(
        "they were for bridges alone (spanning tree and the like), which a network of several peers"
        " does not pass on; a few are normal"
    ),
    "split_horizon": Reason(
        "a bridge on this side sent them, and the address that they were for is on this side too; a"
        " few are normal"
    ),
    "own_datagram": Reason(
        "they were the tunnel's own datagrams, led into the tunnel by a route or a bridge here or on"
        " the other side",
        "lead the way to the peer around DEVICE: `ip route get` with the peer's address shows it",
    ),
    "unjudged": Reason(
        "a member sent them before its certificate was looked at; a few at a start are normal"
    ),
}

#: UDP datagrams that were no record of the session
REFUSED: Final[Mapping[str, Reason]] = {
    "unknown": Reason("no record and no STUN answer: somebody else's traffic"),
    "key_id": Reason(
        "sealed under keys that are not known here: of an old session, or of one that the other side"
        " has already and this one not yet; a few at each start are normal"
    ),
    "expired": Reason("sealed under keys that have ended"),
    "replay": Reason("came twice, or too late; some are normal where the network doubles packets"),
    "forged": Reason("did not authenticate: altered on the way, or a stranger's"),
    "inner_type": Reason("of a kind that this version does not know"),
    "fragment": Reason("a part of a frame that fits no other"),
    "signals_full": Reason("more probes and answers than are handled at once"),
}
