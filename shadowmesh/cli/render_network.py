"""A network, its invitations and what an invitation offers as text for people.

Owns: which lines there are, their order and words. Does not know: HTTP, options, terminals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from shadowmesh.base.units import count
from shadowmesh.cli.output import text, texts
from shadowmesh.cli.render import lines_of
from shadowmesh.cli.render_peers import rtt, table

#: as the API answers them
Network = dict[str, Any]
Offer = dict[str, Any]

#: of the names of members so many are shown
SHOWN_NAMES: Final = 30

_RELAY_COLUMNS: Final = ("NAME", "ADDRESS", "SESSION", "RTT", "HOME")
_COLUMNS: Final = ("ID", "NAME", "STATE", "USED", "EXPIRES", "ROLES", "TAGS", "ADDRESSES")


def render_network(network: Network) -> str:
    """Return the lines about the network that this machine is in, without a final line break."""
    return "\n".join(lines_of(_rows(network)))


def render_founded(network: Network, recovery_key: object) -> str:
    """Return the lines about a network that was just made."""
    return "\n".join(lines_of(_founded(network, recovery_key)))


def render_offer(offer: Offer) -> str:
    """Return the lines about what an invitation offers."""
    return "\n".join(
        lines_of(
            (
                ("network", text(offer.get("network"))),
                ("authority", text(offer.get("authority"))),
                ("relay", text(offer.get("relay"))),
                ("subnet", _listed(offer, "subnets")),
                ("own name", text(offer.get("name"))),
                ("address", _listed(offer, "addresses")),
            )
        )
    )


def render_invitations(invitations: Sequence[Any]) -> str:
    """Return a line for each invitation and one that sums up."""
    known = [one for one in invitations if isinstance(one, dict)]
    rows = [
        [
            text(one.get("id")),
            text(one.get("name")),
            text(one.get("state")),
            f"{text(one.get('used'))} of {text(one.get('uses'))}",
            text(one.get("expires_at")),
            *(_listed(one, name) for name in ("roles", "tags", "addresses")),
        ]
        for one in known
    ]
    number = sum(one.get("state") == "open" for one in known)
    return "\n".join([*table(_COLUMNS, rows), f"{count(len(known), 'invitation')}, {number} open"])


def render_relays(relays: Sequence[Any], reason: object) -> str:
    """Return a line for each relay, and one that says which is home and why."""
    known = [one for one in relays if isinstance(one, dict)]
    home = next((one for one in known if one.get("home")), None)
    end = (
        f"home is {text(home.get('name'))}: {text(reason)}" if home else f"no home: {text(reason)}"
    )
    if not known:
        return f"no other relay is known\n{end}"
    rows = [
        [
            text(one.get("name")),
            text(one.get("address")),
            "yes" if one.get("session") else "no",
            rtt(one),
            "home" if one is home else "-",
        ]
        for one in known
    ]
    return "\n".join([*table(_RELAY_COLUMNS, rows), end])


def _rows(network: Network) -> Iterator[tuple[str, str]]:
    yield "network", text(network.get("name"))
    yield "", f"id {text(network.get('network_id'))}"
    yield from _under("authority", texts(network.get("authorities")))
    yield "subnet", _listed(network, "subnets")
    yield "own name", text(network.get("own"))
    yield "address", _listed(network, "addresses")
    if network.get("roles"):
        yield "roles", _listed(network, "roles")
    if network.get("tags"):
        yield "tags", _listed(network, "tags")
    yield "valid", f"until {text(network.get('expires_at'))}"
    if network.get("issuer"):
        yield "issuer", "this machine: it makes invitations and puts members out"
    relays = [one for one in network.get("relays") or () if isinstance(one, dict)]
    yield from _under("relays", [_relay(one) for one in relays])
    yield "members", _members(texts(network.get("members")))
    lists = [one for one in network.get("lists") or () if isinstance(one, dict)]
    yield from _under("revoked", [_list(one) for one in lists])
    if network.get("problem"):
        yield "problem", click.style(text(network["problem"]), fg="red")


def _founded(network: Network, recovery_key: object) -> Iterator[tuple[str, str]]:
    yield "network", text(network.get("name"))
    yield from _under("authority", texts(network.get("authorities")))
    yield "subnet", _listed(network, "subnets")
    yield "own name", text(network.get("own"))
    yield "address", _listed(network, "addresses")
    yield "recovery", click.style(text(recovery_key), bold=True)
    yield "", "write this recovery key down now and keep it away from this machine: it is shown"
    yield "", "this once and kept nowhere, and only with it can a lost authority be replaced"


def _under(label: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Give a label with its lines below one another; nothing without any."""
    for at, line in enumerate(lines):
        yield "" if at else label, line


def _listed(whole: dict[str, Any], name: str) -> str:
    return ", ".join(texts(whole.get(name))) or "-"


def _relay(relay: dict[str, Any]) -> str:
    return f"{text(relay.get('name') or 'not known yet')} at {text(relay.get('address'))}"


def _members(names: Sequence[str]) -> str:
    more = len(names) - SHOWN_NAMES
    shown = ", ".join(names[:SHOWN_NAMES])
    return f"{len(names)}: {shown}{f' and {more} more' if more > 0 else ''}"


def _list(one: dict[str, Any]) -> str:
    entries = one.get("entries")
    number = count(entries, "certificate") if isinstance(entries, int) else "-"
    return f"{number}, list {text(one.get('number'))} of {text(one.get('issued_at'))}"
