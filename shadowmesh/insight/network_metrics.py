"""Prometheus metrics of a member of a network.

Owns: their names, units and help texts. Does not know: where the numbers come from. Labels are words
of the program: neither a member's name nor a key is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, Metric

from shadowmesh.insight.families import gauge, labelled

if TYPE_CHECKING:
    from shadowmesh.insight.network import NetworkStatus


def network_families(network: NetworkStatus, now: float | None) -> Iterator[Metric]:
    """Give the metrics of a network. Args: now: when it was so, unix time."""
    yield from gauge(
        "members", "Members of the network that are known, with this one.", network.members_known
    )
    yield from gauge(
        "members_attached",
        "Sessions with members that get the directory from here.",
        network.attached,
    )
    yield from gauge(
        "directory_version",
        "Changes of the directory that this relay has kept since its start.",
        network.directory_version,
    )
    yield from gauge(
        "certificate_expiry_seconds",
        "Until the end of this machine's certificate of the network; below zero behind it.",
        None if now is None else network.expires_at - now,
    )
    newest = network.newest_list
    if newest is not None:
        yield from gauge(
            "revocation_list_number",
            "Number of the revocation list that was made last.",
            newest.number,
        )
        yield from gauge(
            "revocation_list_age_seconds",
            "Since the newest revocation list was made.",
            None if now is None else now - newest.issued_at,
        )
    yield labelled(
        CounterMetricFamily,
        "network_messages_refused",
        "What members have said about the network and what did not count, by one word.",
        "reason",
        sorted(network.refused.items()),
    )
    yield labelled(
        CounterMetricFamily,
        "join_answers",
        "Answers to machines that want to join: joined, or the reason of a refusal.",
        "answer",
        sorted(network.join_answers.items()),
    )
