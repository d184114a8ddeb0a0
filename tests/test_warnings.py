"""Every warning in the log says what to do, so that nobody has to know the program."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "shadowmesh"
LEVELS = {"warning", "error"}
#: their cause is an error of ours, whose text says it
CAUSE_SAYS_IT = {
    "cannot connect",
    "configuration not reloaded",
    "no UDP path: the tunnel stays on WSS",
    "peer refused",
    "the WSS link is not back yet",
}


def is_level(node: ast.expr) -> bool:
    """Whether this is `_log.warning`, `_log.limited(60).warning` or the like."""
    if not isinstance(node, ast.Attribute) or node.attr not in LEVELS:
        return False
    names = [part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)]
    return "_log" in names


def warnings() -> Iterator[tuple[str, ast.expr, set[str]]]:
    """Place, message and names of the fields of every call that may log a warning or an error."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            place = f"{path.relative_to(PACKAGE)}:{call.lineno}"
            fields = {keyword.arg or "**" for keyword in call.keywords}
            if is_level(call.func):
                yield place, call.args[0], fields
            elif ast.unparse(call).startswith(("self._tell(say,", "self._tell(_log.warning,")):
                yield place, call.args[1], fields


#: what is handed through comes from the configuration, and is looked at in test_config
WARNINGS = [case for case in warnings() if ast.unparse(case[1]) != "warning"]


def test_there_are_warnings_to_look_at():
    assert len(WARNINGS) > 25


@pytest.mark.parametrize(
    ("message", "fields"), [case[1:] for case in WARNINGS], ids=[case[0] for case in WARNINGS]
)
def test_a_warning_is_a_constant_message_that_says_what_to_do(message, fields):
    assert isinstance(message, ast.Constant), "the message must be constant, facts are fields"
    text = message.value
    error_says_it = text in CAUSE_SAYS_IT and fields & {"cause", "problem"}
    assert "remedy" in fields or ";" in text or error_says_it, text
