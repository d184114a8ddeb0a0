"""A certificate, and what a bundle offers, as text for people.

Owns: which lines there are, their order and words. Does not know: HTTP, options, terminals.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from shadowmesh.base.units import count
from shadowmesh.cli.output import parse_time, text, texts
from shadowmesh.cli.render import lines_of

#: as the API answers them
Certificate = dict[str, Any]

_DAY_S: Final = 24 * 3600.0
#: days from which on an end is worth a colour
_SOON: Final = 30


def render_certificate(certificate: Certificate, now: float) -> str:
    """Return the lines about a certificate, without a final line break."""
    return "\n".join(lines_of(_rows(certificate, now)))


def render_installation(offer: dict[str, Any]) -> str:
    """Return the lines about what a bundle makes of this machine."""
    return "\n".join(
        lines_of(
            (
                ("network", text(offer.get("network"))),
                ("authority", text(offer.get("authority"))),
                ("subnet", _listed(offer, "subnets")),
                ("own name", text(offer.get("name"))),
                ("address", _listed(offer, "addresses")),
            )
        )
    )


def left(certificate: Certificate, now: float) -> str:
    """Say until when a certificate is valid, and how long that is."""
    told = text(certificate.get("expires_at"))
    end = parse_time(certificate.get("expires_at"))
    if end is None:
        return f"valid until {told}"
    days = int((end - now) // _DAY_S)
    if end <= now:
        return click.style(f"expired on {told}", fg="red")
    said = f"valid until {told}, {count(days, 'more day') if days else 'less than a day'}"
    return said if days >= _SOON else click.style(said, fg="yellow")


def _rows(certificate: Certificate, now: float) -> Iterator[tuple[str, str]]:
    yield "name", text(certificate.get("name"))
    yield "network", text(certificate.get("network"))
    yield "address", _listed(certificate, "addresses")
    for name in ("roles", "tags"):
        if certificate.get(name):
            yield name, _listed(certificate, name)
    yield "key", text(certificate.get("public_key"))
    yield "authority", text(certificate.get("authority") or "unknown")
    yield "serial", text(certificate.get("serial"))
    yield "since", text(certificate.get("begins_at"))
    yield "time", left(certificate, now)
    if certificate.get("problem"):
        yield "problem", click.style(text(certificate["problem"]), fg="red")


def _listed(whole: dict[str, Any], name: str) -> str:
    return ", ".join(texts(whole.get(name))) or "-"
