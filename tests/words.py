"""What makes a text one that people can read: rules that a machine can check."""

from __future__ import annotations

import re

#: what only a program says
INSIDE = re.compile(
    r"\bNone\b|\bTrue\b|\bFalse\b|\[\]|\{\}|<\w+\.|Exception|Traceback|\bnat\.\*|\bself\b"
    r"|\b[A-Z]\w+Error\b|\b(?!CAP_|AF_|UDP_GRO|NOTIFY_)[A-Z]{3,}_[A-Z_]+\b|\[Errno|\[SSL\b|\bobject at 0x|b'|\bdict\("
)
#: "udp: UDP: ", "error: error: ", "the the"
TWICE = re.compile(r"\b(\w+): \1\b|\b([a-z]+) \2\b", re.IGNORECASE)
#: "1 probes"
ONE_OF_MANY = re.compile(r"\b1 (?:frame|probe|addresse|datagram|warning|fragment)s\b")
#: "60%" beside "0 %"
TIGHT_UNIT = re.compile(r"\d(?:%|KiB|MiB|GiB)(?!\w)")
#: "off (UDP (nat))"
NESTED = re.compile(r"\([^()]*\([^()]*\)")
#: one sentence, which goes on elsewhere: in a field, a remedy, a list
END = re.compile(r"[.!:;,]$")

#: a line of the log in its form for people, without the time or the priority
LINE = re.compile(r"(?P<level>DEBUG|INFO|WARN|ERROR) +[a-z_]+: (?P<text>.*)$")
QUOTED = re.compile(r'=("(?:[^"\\]|\\.)*")')


def faults(text: str) -> list[str]:
    """Return what is wrong with the words of a text."""
    rules = (INSIDE, TWICE, ONE_OF_MANY, TIGHT_UNIT, NESTED, END)
    found = [rule.pattern for rule in rules if rule.search(text)]
    if text != text.strip() or "  " in text or not text.isprintable():
        found.append("spaces")
    if text.count("((") or text.count("))"):
        found.append("brackets in brackets")
    return found


def faults_of_line(line: str) -> list[str]:
    """Return what is wrong with a line of the log that an operator is meant to read."""
    found = LINE.search(line)
    if found is None or found["level"] == "DEBUG":
        return []
    text = found["text"]
    parts = [QUOTED.sub("=x", text), *(quoted[1:-1] for quoted in QUOTED.findall(text))]
    return [fault for part in parts for fault in faults(part)]
