"""What people read is plain sentences: nothing of the program's inside, and each fact once."""

from __future__ import annotations

import re

import pytest

from shadowmesh.insight.reasons import DROPPED, REFUSED
from shadowmesh.wire.nat.result import Filtering, Mapping, describe
from tests.insight import test_explain, test_health

#: what only a program says
INSIDE = re.compile(
    r"\bNone\b|\bTrue\b|\bFalse\b|\[\]|\{\}|<\w+\.|Exception|Traceback|\bnat\.\*|\bself\b"
    r"|\b[A-Z]\w+Error\b|\b[A-Z]{3,}_[A-Z_]+\b"
)
#: "udp: UDP: ", "error: error: "
TWICE = re.compile(r"\b(\w+): \1\b", re.IGNORECASE)
#: "1 probes"
ONE_OF_MANY = re.compile(r"\b1 (?:frame|probe|addresse|datagram|warning|fragment)s\b")


def faults(text: str) -> list[str]:
    """Return what is wrong with the words of a text."""
    found = [rule.pattern for rule in (INSIDE, TWICE, ONE_OF_MANY) if rule.search(text)]
    if text != text.strip() or "  " in text or not text.isprintable():
        found.append("spaces")
    if text.count("((") or text.count("))"):
        found.append("brackets in brackets")
    return found


def every_text():
    for check in [*test_health.PASSING, *(case[0] for case in test_health.FAILING)]:
        yield from (check.text, check.remedy)
    for reason in [*DROPPED.values(), *REFUSED.values()]:
        yield from (reason.meaning, reason.remedy)
    for told, *_ in test_explain.TABLE:
        yield told.summary
        for step in told.steps:
            yield from (step.text, step.remedy, *step.details)
    for mapping in Mapping:
        for filtering in Filtering:
            yield describe(mapping, filtering)


@pytest.mark.parametrize("text", sorted(set(every_text())))
def test_a_text_says_nothing_of_the_inside_and_nothing_twice(text):
    assert faults(text) == []


@pytest.mark.parametrize(
    "text",
    ["over udp: UDP: 192.0.2.1 answers", "applied=[] restart=[]", "the peer is None", "1 probes",
     "nat.* was changed", "off (UDP (nat))", "error: error: no"],
)  # fmt: skip
def test_a_text_that_does_would_be_noticed(text):
    assert faults(text) != []
