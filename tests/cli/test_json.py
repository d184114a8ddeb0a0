"""What the commands print with --json is what docs/json.md says, name by name and type by type."""
# ruff: noqa: F811

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from shadowmesh.cli import benchmark, evidence
from shadowmesh.cli.commands import bench
from shadowmesh.cli.group import NameOrCommands
from shadowmesh.cli.program import program
from shadowmesh.insight.capture import Captures
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.insight.pcapng import OUTBOUND
from shadowmesh.keys.identity import Identity, format_public_key
from shadowmesh.path import netcheck
from shadowmesh.wire.control import Endpoint
from shadowmesh.wire.nat.result import Filtering, Mapping, NatResult, NatType, Server, ServerReport
from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    SEED,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import CONNECTED, FDB, HOME, INVITATION, MESH, make_app, serving
from tests.control.test_openapi import validate
from tests.fakes import FakePlane

PAGE = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
#: described by the OpenAPI document
SNAPSHOTS = ("status", "connect", "disconnect", "wait")
#: so are these
ANSWERS = (
    "network create",
    "network show",
    "network restore",
    "network adopt",
    "network authority import",
    "cert request",
    "cert sign",
    "cert bundle",
    "cert install",
    "cert show",
    "cert renew",
    "cert crl",
    "peer rename",
    "peer tag",
    "peer rekey",
    "network secret rotate",
    "network authority replace",
    "network authority drop",
    "network compact",
    "relays",
    "invite",
    "invite list",
    "invite cancel",
    "peer remove",
)
#: runs another program instead of printing
FOREIGN = ("logs",)
#: members whose names are data
ANY_NAME = ("values", "paths", "dropped")

TYPES = {
    "text": str, "integer": int, "number": (int, float), "boolean": bool, "any": object,
}  # fmt: skip


def documented() -> dict[str, dict[str, str]]:
    """Types by name, by command; a heading may name several commands."""
    found: dict[str, dict[str, str]] = {}
    for heading, body in re.findall(
        r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL
    ):
        rows = dict(re.findall(r"^\| `(.+?)` \| (\S+) \|", body, re.MULTILINE))
        found |= dict.fromkeys(heading.split(", "), rows)
    return found


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Name and value of everything that holds no more names."""
    if isinstance(value, dict):
        wild = name in ANY_NAME or name.endswith((".paths", ".dropped"))
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{'*' if wild else key}".lstrip("."))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{name}[]")
    else:
        yield name, value


def disagreements(command: str, answer: dict) -> list[str]:
    """Where an answer is not what the page says."""
    known = documented()[command]
    found = [] if answer.get("schema") == 1 else ["schema is not 1"]
    for name, value in leaves({k: v for k, v in answer.items() if k != "schema"}):
        kind = known.get(name)
        if value is None and kind is None and any(each.startswith(f"{name}[") for each in known):
            continue  # a list that is null
        if kind is None:
            found.append(f"{name} is not documented")
        elif value is None:
            found += [] if kind.endswith("?") or kind == "any" else [f"{name} is null"]
        elif not isinstance(value, TYPES[kind.removesuffix("?")]) or (
            isinstance(value, bool) and kind.removesuffix("?") not in ("boolean", "any")
        ):
            found.append(f"{name} is {value!r} and not {kind}")
    return found


def names_in(*answers: dict) -> set[str]:
    return {name for answer in answers for name, _ in leaves(answer)} - {"schema"}


def judge(command: str, *answers: dict) -> None:
    """Every answer fits the page, and everything on the page was in one of them."""
    for answer in answers:
        assert disagreements(command, answer) == []
    assert set(documented()[command]) - names_in(*answers) == set()


# --- The page -----------------------------------------------------------------------------------


def runnable(group=program, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command that is no group."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from runnable(command, (*path, name))
        else:
            yield (*path, name)


def test_every_command_is_documented():
    commands = {" ".join(words) for words in runnable()} | {
        name for name, command in program.commands.items() if isinstance(command, NameOrCommands)
    }
    elsewhere = {*SNAPSHOTS, *ANSWERS, *FOREIGN, "explain"}
    assert set(documented()) | elsewhere == commands
    for name in elsewhere:
        assert f"`{name}`" in PAGE.partition("\n## ")[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, "summary.surprise is not documented"),
        ({"sent": "3"}, "summary.sent is '3' and not integer"),
        ({"sent": True}, "summary.sent is True and not integer"),
        ({"answered": None}, "summary.answered is null"),
    ],
)
def test_a_name_or_type_that_is_not_documented_would_be_found(change, words):
    summary = {"sent": 1, "answered": 0, "min_ms": None, **change}
    assert disagreements("ping", {"schema": 1, "summary": summary}) == [words]
    assert disagreements("ping", {"summary": {}}) == ["schema is not 1"]


# --- The commands -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["status"], ["connect", "a:1"], ["wait", "--timeout", "1s"], ["disconnect"]]
)
def test_snapshots_are_those_of_the_api(run, control, arguments):
    control.snapshot = CONNECTED
    validate(json.loads(run("--json", *arguments).stdout), "Snapshot")


def test_an_explanation_is_that_of_the_api(run):
    for arguments in (["explain"], ["explain", "10.0.0.2"]):
        validate(json.loads(run("--json", *arguments).stdout), "Explanation")


def test_peers_and_fdb(run, control):
    control.mesh, control.fdb = MESH, FDB
    answer = json.loads(run("--json", "peers").stdout)
    one = json.loads(run("--json", "peers", "nas").stdout)
    validate(answer, "Peers")
    validate(one, "PeerAnswer")
    # The page has the names that both share once.
    more = {name: one["peer"].pop(name) for name in ("paths", "macs")}
    judge("peers", answer, {"schema": 1, "now": one["now"], "peers": [one["peer"]], "peer": more})
    table = json.loads(run("--json", "fdb").stdout)
    validate(table, "Table")
    judge("fdb", table)
    waited = json.loads(run("--json", "wait", "--peer", "nas", "--timeout", "1s").stdout)
    validate(waited, "PeerAnswer")


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [(["network", "create", "home"], "Founded"), (["network", "show"], "NetworkAnswer"),
     (["invite", "laptop"], "Invited"), (["invite", "list"], "Invitations"),
     (["invite", "cancel", "--all"], "Cancelled"), (["peer", "remove", "nas", "--yes"], "Removed")],
)  # fmt: skip
def test_what_is_told_of_a_network_is_that_of_the_api(run, control, arguments, schema):
    control.joined, control.mesh = None if "create" in arguments else HOME, MESH
    validate(json.loads(run("--json", *arguments).stdout), schema)


def test_what_lies_in_files(run, control, tmp_path):
    file, secret = tmp_path / "backup", tmp_path / "secret"
    secret.write_text("correct horse battery")
    control.joined, control.kept.lacking = HOME, ("the recovery key",)
    asked = ("--passphrase-file", secret)
    judge("network backup", json.loads(run("--json", "network", "backup", file, *asked).stdout))
    control.joined = None
    restored = run("--json", "network", "restore", file, *asked, "--yes")
    validate(json.loads(restored.stdout), "Restored")
    key = tmp_path / "key"
    exported = run("--json", "network", "authority", "export", key, *asked, "--yes")
    judge("network authority export", json.loads(exported.stdout))


@pytest.mark.parametrize(
    ("arguments", "schema"),
    [("network adopt FILE --certificate FILE --crl FILE --subnet 10.0.0.0/8", "Founded"),
     ("network authority import FILE --passphrase-file FILE", "NetworkAnswer"),
     ("cert request", "CertificateRequest"), ("cert sign FILE --name nas", "Signed"),
     ("cert bundle FILE", "Signed"), ("cert install FILE --authority ab --yes", "Installation"),
     ("cert show", "CertificateAnswer"), ("cert renew", "Renewal"), ("cert crl FILE", "Removed"),
     ("peer rename nas box", "Renewal"), ("peer tag nas --add x", "Renewal"),
     ("peer rekey nas --yes", "Invited")],
)  # fmt: skip
def test_what_is_told_of_certificates_is_that_of_the_api(run, control, tmp_path, arguments, schema):
    control.joined = None if arguments.split()[1] in ("adopt", "install", "request") else HOME
    file = tmp_path / "file"
    file.write_bytes(b"what is given\n")
    words = [file if word == "FILE" else word for word in arguments.split()]
    validate(json.loads(run("--json", *words).stdout), schema)


@pytest.mark.parametrize(
    ("words", "schema"),
    [("relays", "Relays"), ("network secret rotate --yes", "Rotated"),
     ("network compact --yes --recovery-key-file -", "Replaced"),
     ("network authority replace --yes --recovery-key-file -", "Replaced"),
     ("network authority drop --yes --recovery-key-file -", "Dropped")],
)  # fmt: skip
def test_what_a_network_rests_on_is_told_as_the_api_does(run, control, words, schema):
    control.joined, control.mesh, control.rotating.trusted = HOME, MESH, 2
    validate(json.loads(run("--json", *words.split(), input="smr1-a").stdout), schema)


def test_join_and_leave(run, control):
    control.mesh, control.doubts = MESH, ("one",)
    asked = ("--json", "join", INVITATION, "--yes")
    judge("join", *(json.loads(run(*asked).stdout) for _ in range(2)))
    judge("leave", json.loads(run("--json", "leave", "--yes").stdout))
    control.joined = HOME
    judge("network delete", json.loads(run("--json", "network", "delete", "--yes").stdout))


def test_ping(run):
    judge("ping", json.loads(run("--json", "ping", "-c", "1").stdout))


def test_capture(control, token_file, tmp_path):
    plane = FakePlane()
    captures = Captures(plane, lambda: "tap0", FlightRecorder())
    with serving(lambda address: make_app(control, address, captures=captures)) as address:
        answers = []
        for more in ([], ["-w", tmp_path / "file"]):
            plane.add((1, OUTBOUND, 42, 0, bytes(12) + b"\x81\x00\x00\x0c\x08\x06" + bytes(24)))
            result = invoke("--api", f"http://{address}", "--token-file", token_file, "--json",
                            "capture", "-c", "1", *more)  # fmt: skip
            answers += map(json.loads, result.stdout.splitlines())
    judge("capture", *answers)


NOBODY_ANSWERED = NatResult(
    NatType.UDP_BLOCKED, Mapping.UNKNOWN, Filtering.UNKNOWN, None, None, (),
    (ServerReport(Server("a", Endpoint(ip_address("192.0.2.1"), 1)), detail="silent"),), 1.0, "x",
)  # fmt: skip
SEEN = Endpoint(ip_address("198.51.100.4"), 9001)
ONE_ANSWERED = NatResult(
    NatType.FULL_CONE, Mapping.ENDPOINT_INDEPENDENT, Filtering.ENDPOINT_INDEPENDENT, SEEN,
    Endpoint(ip_address("10.1.1.1"), 9001), (SEEN,),
    (ServerReport(Server("a", Endpoint(ip_address("192.0.2.1"), 1)), SEEN, 1.5),), 1.0, "x",
)  # fmt: skip


def test_netcheck(monkeypatch):
    answers = []
    for result in (NOBODY_ANSWERED, ONE_ANSWERED):
        report = netcheck.Report(result, 9001, 9001, (("b", "has no address"),), 0.5)
        monkeypatch.setattr(netcheck, "check", lambda *_, report=report: report)
        answers.append(json.loads(invoke("--json", "netcheck", "--server", "a:1").stdout))
    judge("netcheck", *answers)


def test_the_three_of_config(tmp_path):
    made, broken = tmp_path / "made.yaml", tmp_path / "broken.yaml"
    judge("config init", json.loads(invoke("--json", "config", "init", made).stdout))
    broken.write_text("network: {mtu: 1}\nnonsense: 1\n")
    judge(
        "config check",
        *(json.loads(invoke("--json", "config", "check", path).stdout) for path in (made, broken)),
    )
    several = tmp_path / "several.yaml"
    keys = [format_public_key(Identity.from_seed(SEED[n:] + SEED[:n]).public_key) for n in (1, 2)]
    several.write_text(
        f"peers:\n  - {{name: a, public_key: {keys[0]}, tunnel_ips: [10.0.0.9]}}\n"
        f"  - {{name: b, public_key: {keys[1]}, allowed_macs: [52:54:00:12:34:56]}}\n"
    )
    shown = [invoke("--json", "config", "show", path) for path in (made, several)]
    judge("config show", *[json.loads(answer.stdout) for answer in shown])


def test_version(run, token_file):
    without = invoke("--api", NOBODY, "--token-file", token_file, "--json", "version")
    judge("version", json.loads(run("--json", "version").stdout), json.loads(without.stdout))


def test_bugreport(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "run", lambda command: "")
    done = run("--json", "bugreport", "-o", tmp_path / "report.tar.gz")
    judge("bugreport", json.loads(done.stdout))


TUNNEL = {
    "path": "udp", "cipher": "aegis-256", "tcp_bits_per_second": 1000, "round_trip_ms": 0.1,
    "detail": None,
}  # fmt: skip


def test_bench(monkeypatch):
    monkeypatch.setattr(benchmark, "ROUND_S", 0.0005)
    monkeypatch.setattr(bench, "_tunnel", lambda *_: [TUNNEL])
    judge(
        "bench",
        json.loads(invoke("--json", "bench", "--quick").stdout),
        json.loads(invoke("--json", "bench", "--quick", "--tunnel").stdout),
    )


def test_dashboard_completion_and_help(run):
    judge("dashboard", json.loads(run("--json", "dashboard").stdout))
    judge("completion", json.loads(run("--json", "completion", "zsh").stdout))
    judge("help", json.loads(run("help", "ping", "--json").stdout))


def test_reload(run, tmp_path, monkeypatch):
    config = tmp_path / "daemon.yaml"
    config.touch(0o600)
    monkeypatch.setattr(os, "kill", lambda *_what: None)
    asked = ("--config", config, "--json", "reload")
    answers = [run(*asked, *more) for more in ([], ["--pid", "9999999"])]
    judge("reload", *[json.loads(answer.stdout) for answer in answers])


def test_keys():
    answers = [
        json.loads(invoke("--json", name, input=base64.b64encode(SEED)).stdout)
        for name in ("genkey", "pubkey", "genpsk")
    ]
    judge("genkey", *answers)
