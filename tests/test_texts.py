"""What people read is plain sentences: nothing of the program's inside, and each fact once."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import shadowmesh
from shadowmesh.base import errors
from shadowmesh.cli.program import program
from shadowmesh.insight.reasons import DROPPED, REFUSED
from shadowmesh.wire.nat.result import Filtering, Mapping, describe
from tests.insight import test_explain, test_health
from tests.words import faults, faults_of_line

#: warnings whose remedy stands in what varies, which is a sentence of its own
REMEDY_INSIDE = {
    "cannot connect": "the cause, the text of a ControlError",
    "configuration not reloaded": "the problem, which says what was wanted",
    None: "a warning of the configuration, which `config check` prints too",
}
#: a message begins with a small letter, or with one of these
NAMES = {"TAP", "UDP", "WSS", "NAT", "API"}


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
     "nat.* was changed", "off (UDP (nat))", "error: error: no", "[Errno 2] No such file", "60% lost",
     "the the peer", "it ends here.", "off (UDP (nat) answers)"],
)  # fmt: skip
def test_a_text_that_does_would_be_noticed(text):
    assert faults(text) != []


@pytest.mark.parametrize(
    ("line", "good"),
    [('2026-11-30T12:00:00.000Z INFO  tap: TAP device is up addresses="10.0.0.1/24, fd00::1/64"', True),
     ("<6>INFO  tap: TAP device is up addresses=[]", False),
     ('<4>WARN  api: not opened cause="[Errno 13] Permission denied"', False),
     ("<7>DEBUG api: records=[]", True)],
)  # fmt: skip
def test_a_line_of_the_log_is_judged_by_its_parts(line, good):
    assert (faults_of_line(line) == []) == good


# --- What the code says --------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """A call that tells somebody something."""

    where: str
    level: str
    text: str | None
    fields: dict[str, ast.expr]


def said(node: ast.expr | None) -> str | None:
    """Return a text as it will be read, with a number for what varies; None for a variable."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(
                f"v{at}" if isinstance(part, ast.FormattedValue) else part.value
                for at, part in enumerate(parts)
            )
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return f"{said(left) or 'v'}{said(right) or 'v'}"
    return None


def calls() -> Iterator[tuple[str, ast.Call]]:
    package = Path(shadowmesh.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(package)}:{node.lineno}", node


def log_calls() -> Iterator[Said]:
    for where, call in calls():
        if not isinstance(call.func, ast.Attribute):
            continue
        level, owner, arguments = call.func.attr, ast.unparse(call.func.value), list(call.args)
        tells = level == "tell" and owner.endswith("common")
        if tells or (level == "_tell" and len(arguments) > 1):
            # The level is given first, perhaps as a variable that can be a warning.
            level = "info" if ast.unparse(arguments.pop(0)) == "_log.info" else "warning"
        elif not owner.startswith("_log"):
            continue
        if level in {"info", "warning", "error", "exception"}:
            fields = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            yield Said(where, level, said(arguments[0]), fields)


LOG_CALLS = list(log_calls())


def test_the_walk_finds_what_the_daemon_logs():
    found = {call.text for call in LOG_CALLS}
    assert {"cannot connect", "connected", "path changed", "daemon is ready"} <= found
    assert set(REMEDY_INSIDE) <= found


@pytest.mark.parametrize("call", LOG_CALLS, ids=lambda call: call.where)
def test_a_log_line_is_a_plain_text_with_a_remedy_where_something_is_wrong(call):
    if call.text is not None:
        assert faults(call.text) == []
        assert call.text[0].islower() or call.text.split()[0] in NAMES
    if call.level in {"warning", "error"}:
        assert ("remedy" in call.fields) != (call.text in REMEDY_INSIDE), call.text
        if call.text is not None:
            assert ";" not in call.text, "what to do is a field"
    for name, value in call.fields.items():
        text = ast.unparse(value)
        assert "!r" not in text, name
        # The log knows how an exception is told; str() of an OSError begins with "[Errno 2]".
        assert text not in {"str(error)", "error.strerror"}, name
        assert faults(said(value) or "") == [], name


def kinds_of_errors() -> set[str]:
    found, waiting = {"Problem", "NoLog"}, [errors.ShadowMeshError]
    while waiting:
        kind = waiting.pop()
        found.add(kind.__name__)
        waiting += kind.__subclasses__()
    # Bugs of ours, which say to us what was called how.
    return found - {"LocalProtocolError"}


#: what a person is told by other means than an error: health, explain, drops, answers of the API
TELLERS = {"Check", "Step", "Reason", "refuse", "error_answer", "UsageError", "MissingCommand"}


def test_an_error_is_one_plain_sentence():
    kinds, count = kinds_of_errors() | TELLERS, 0
    for where, call in calls():
        name = ast.unparse(call.func).rpartition(".")[2]
        if name not in kinds:
            continue
        for argument in call.args:
            text = said(argument)
            if text is not None and " " in text:
                count += 1
                assert faults(text) == [], where
            # click, too, puts what somebody typed between single quotes
            assert name == "UsageError" or "!r}" not in ast.unparse(argument), where
    assert count > 250


def test_a_check_that_fails_says_what_to_do():
    failing = 0
    for where, call in calls():
        name, *arguments = map(ast.unparse, (call.func, *call.args))
        if name.rpartition(".")[2] == "Check" and arguments[1:2] == ["False"]:
            failing += 1
            assert len(arguments) == 6, where
            assert said(call.args[4]) != "", where
    assert failing > 20


def commands(group, *above):
    for name, command in group.commands.items():
        yield " ".join((*above, name)), command
        if hasattr(command, "commands"):
            yield from commands(command, *above, name)


@pytest.mark.parametrize(("name", "command"), list(commands(program)))
def test_the_help_of_a_command_is_whole_sentences(name, command):
    paragraphs = [" ".join(text.split()) for text in inspect.cleandoc(command.help).split("\n\n")]
    # The last one may be an example, to type as it is.
    sentences = [text for text in paragraphs if f": shadowmesh {name} " not in text]
    options = [option.help for option in command.params if getattr(option, "help", None)]
    sentences += [text.partition("  [default: ")[0] for text in options]
    for text in sentences:
        assert text.endswith("."), name
        assert faults(text.removesuffix(".")) == [], text
