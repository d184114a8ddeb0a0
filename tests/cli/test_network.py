"""The commands about networks: what is printed where, what is asked first, what is waited for."""
# ruff: noqa: F811

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete

from shadowmesh.base import errors
from shadowmesh.cli import asking, client, failures, qr, settling
from shadowmesh.cli.commands.invite import invite
from shadowmesh.cli.group import Command, NameOrCommands
from shadowmesh.cli.parameters import RESERVED_NAMES
from shadowmesh.cli.program import program
from shadowmesh.insight import peers, status
from shadowmesh.wire.mesh.token import Token
from tests.cli.test_program import (  # noqa: F401
    NOBODY,
    assert_failed,
    control,
    invoke,
    run,
    served,
    token_file,
)
from tests.control.fake_control import (
    CONNECTED,
    DOUBT,
    HOME,
    INVITATION,
    MESH,
    NOW,
    RECOVERY_KEY,
)


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    """Nobody waits for long here."""
    monkeypatch.setattr(settling, "RESTART_S", 0.3)
    monkeypatch.setattr(settling, "PEER_S", 0.3)
    monkeypatch.setattr(settling, "PAUSE_S", 0.01)


@pytest.fixture
def home(control):
    """A daemon that is in a network."""
    control.joined, control.mesh = HOME, MESH
    return control


REMINDER = (
    "it still knows the secret of the network, which opens nothing alone; `shadowmesh network secret"
    " rotate` replaces it"
)
#: as who has not made it is told of it
MEMBER = dataclasses.replace(HOME, issuer=False)


@pytest.fixture
def terminal(monkeypatch):
    """Somebody sits at standard input, and answers what `input` has."""
    monkeypatch.setattr(asking, "is_terminal", lambda: True)
    monkeypatch.setattr("shadowmesh.cli.commands.join.is_terminal", lambda: True)


def asked(control, name):
    return [call[1:] for call in control.calls if call[0] == name]


def assert_no_secret(result, *secrets):
    for secret in secrets or (INVITATION,):
        assert secret not in result.output


# --- network ----------------------------------------------------------------------------------


def test_a_new_network_is_told_with_its_recovery_key_and_what_comes_next(run, control):
    result = run("network", "create", "home")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[:7] == [
        "network   home",
        f"authority {'ab' * 32}",
        "subnet    10.77.0.0/24, fd42::/64",
        "own name  laptop",
        "address   10.77.0.2, fd42::2",
        f"recovery  {RECOVERY_KEY}",
        "          write this recovery key down now and keep it away from this machine: it is shown",
    ]
    assert lines[-2].startswith("made home, ")
    assert lines[-1] == "next: let a machine in with `shadowmesh invite NAME`"
    assert asked(control, "create_network") == [("home", "None", "", "None")]
    assert [line.split()[0] for line in result.stderr.splitlines()] == ["authority", "device"]


def test_a_new_network_is_as_it_was_asked_for(run, control):
    result = run("network", "create", "home", "--subnet", "10.1.0.0/16", "--subnet", "fd1::/64",
                 "--address", "vpn.example.com", "--as", "server")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert asked(control, "create_network") == [
        ("home", "server", "10.1.0.0/16,fd1::/64", "vpn.example.com:9001")
    ]


def test_the_recovery_key_is_shown_although_the_daemon_does_not_come_back(
    run, control, monkeypatch
):
    monkeypatch.setattr(client.ApiClient, "network", lambda *_: None)
    for more in ([], ["--json"]):
        control.joined = None
        result = run("network", "create", "home", *more)
        assert result.exit_code == 6
        assert RECOVERY_KEY in result.stdout
        assert "does not say within 0.3 s that it is in the network home" in result.stderr
    assert json.loads(result.stdout)["recovery_key"] == RECOVERY_KEY


def test_a_second_network_is_refused(run, home):
    assert_failed(run("network", "create", "two"), 1, "leave it first")


def assert_failed_after_progress(result, exit_code, *words):
    """As any failure, but that steps before it are told, or a question."""
    *_, last = result.stderr.splitlines()
    assert last.startswith("error: ")
    assert result.exit_code == exit_code, result.output
    for word in words:
        assert word in last
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "more", [["--address", "vpn:x"], ["--as", "cancel"], ["--subnet"], ["home2"]]
)
def test_a_network_that_is_wrongly_described_is_asked_of_nobody(run, control, more):
    assert_failed(run("network", "create", "home", *more), 2)
    assert control.calls == []


def test_the_network_is_shown_with_all_that_is_known(run, home):
    home.joined = dataclasses.replace(HOME, problem="the disk is full")
    result = run("network", "show")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "network   home",
        f"          id {'ab' * 32}",
        f"authority {'ab' * 32}",
        "subnet    10.77.0.0/24, fd42::/64",
        "own name  laptop",
        "address   10.77.0.2, fd42::2",
        "roles     relay",
        "tags      factory",
        "valid     until 2045-12-28T03:04:05.678Z",
        "issuer    this machine: it makes invitations and puts members out",
        "relays    server at vpn.example.com:443",
        "          not known yet at [::1]:443",
        "members   3: laptop, nas, server",
        "revoked   2 certificates, list 3 of 2026-01-02T03:03:05.678Z",
        "problem   the disk is full",
    ]


def test_of_many_members_some_are_named(run, home):
    home.joined = dataclasses.replace(HOME, members=tuple(f"m{n}" for n in range(40)))
    [line] = [line for line in run("network", "show").stdout.splitlines() if line[:8] == "members "]
    assert line.endswith("m29 and 10 more")


def test_without_a_network_there_is_none_to_show(run):
    assert_failed(run("network", "show"), 1, "no network", "shadowmesh join")
    answer = json.loads(run("--json", "network", "show").stdout)
    assert answer["error"]["code"] == "no_network"


def test_what_a_network_says_cannot_move_the_cursor(run, home):
    evil = "\x1b[2Jgone\r\n"
    home.joined = dataclasses.replace(
        HOME, name=evil, own=evil, members=(evil,), problem=evil, subnets=(evil,), roles=(evil,)
    )
    output = run("network", "show").output
    assert "\x1b" not in output
    assert not any(line.startswith("gone") for line in output.splitlines())


# --- invite -----------------------------------------------------------------------------------


def test_the_invitation_is_the_one_line_of_standard_output(run, home):
    result = run("invite", "laptop")
    assert result.exit_code == 0
    assert result.stdout == f"{INVITATION}\n"
    assert result.stderr == (
        "valid for 1h 0m, for 1 machine, as laptop: type `shadowmesh join` and this line there\n"
    )
    assert home.calls == [("invite", "laptop", "3600", "1", "", "", "")]


@pytest.mark.parametrize("before", [True, False])
def test_options_of_an_invitation_may_stand_before_and_behind_the_name(run, home, before):
    options = ["--expires", "30d", "--uses", "3", "--tag", "a", "--tag", "b", "--role", "relay",
               "--ip", "10.77.0.9"]  # fmt: skip
    words = [*options, "laptop"] if before else ["laptop", *options]
    assert run("invite", *words).exit_code == 0
    assert home.calls == [("invite", "laptop", "2592000", "3", "relay", "a,b", "10.77.0.9")]


def test_an_invitation_needs_no_name(run, home):
    assert "as " not in run("invite").stderr
    assert home.calls == [("invite", "None", "3600", "1", "", "", "")]


@pytest.mark.parametrize(
    "more",
    [["--expires", "59s"], ["--expires", "366d"], ["--expires", "soon"], ["--expires", "-1d"],
     ["--expires", "9999999d"], ["--uses", "0"], ["--uses", "1001"], ["one", "two"], ["--nonsense"]],
)  # fmt: skip
def test_an_invitation_that_cannot_be_is_asked_of_nobody(run, home, more):
    assert_failed(run("invite", *more), 2, "shadowmesh invite --help")
    assert home.calls == []


def test_an_invitation_in_a_file_for_everybody_is_warned_about(served, home, token_file, tmp_path):
    path = tmp_path / "invitation"
    path.touch()
    path.chmod(0o644)
    with path.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "shadowmesh.cli", "--api", f"http://{served}", "--token-file",
             str(token_file), "invite"],
            stdout=file, stderr=subprocess.PIPE, text=True, check=True, timeout=30,
        )  # fmt: skip
    assert "warning: the invitation goes to a file that others may open" in done.stderr
    assert path.read_text() == f"{INVITATION}\n"


def test_a_qr_code_is_drawn_beside_it(run, home):
    result = run("invite", "--qr")
    assert result.stdout == f"{INVITATION}\n"
    drawing = result.stderr.splitlines()[1:]
    assert len({len(line) for line in drawing}) == 1
    assert set("".join(drawing)) == set("█▀▄ ")
    assert len(drawing[0]) < 80


def test_what_a_qr_code_says_is_understood():
    """In capitals, in which it is drawn."""
    assert Token.parse(INVITATION.upper()) == Token.parse(INVITATION)


def test_without_the_library_there_is_no_picture_and_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(qr.NoDrawing, match="segno"):
        qr.draw(INVITATION)


def test_invitations_are_listed(run, home):
    result = run("invite", "list")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ID                NAME    STATE  USED    EXPIRES                   ROLES  TAGS     ADDRESSES",
        "0123456789abcdef  laptop  open   0 of 1  2026-01-02T04:04:05.678Z  relay  factory  10.77.0.9",
        "fedcba9876543210  -       used   3 of 3  2026-01-02T02:04:05.678Z  -      -        -",
        "2 invitations, 1 open",
    ]
    home.invited = ()
    assert run("invite", "list").stdout.splitlines()[-1] == "0 invitations, 0 open"


@pytest.mark.parametrize(
    ("words", "said", "id_"),
    [(["0123456789ABCDEF"], "cancelled 1 invitation\n", "0123456789abcdef"),
     (["00000000000000aa"], "nothing to cancel: none of them was open\n", "00000000000000aa"),
     (["--all"], "cancelled 1 invitation\n", "None")],
)  # fmt: skip
def test_invitations_are_cancelled(run, home, words, said, id_):
    assert run("invite", "cancel", *words).stdout == said
    assert home.calls == [("cancel_invitation", id_)]


@pytest.mark.parametrize("words", [[], ["0123456789abcdef", "--all"], ["a", "b"]])
def test_what_to_cancel_has_to_be_said(run, home, words):
    assert_failed(run("invite", "cancel", *words), 2)
    assert home.calls == []


def test_an_id_that_is_none_is_told_by_the_daemon(run, home):
    assert_failed(run("invite", "cancel", "../peers/nas"), 1, "no such route")
    assert_failed(run("invite", "cancel", "nonsense"), 2, "16 hexadecimal digits")
    assert home.calls == []


# --- a name, or a command in its place ----------------------------------------------------------


def test_the_words_that_are_no_names_are_those_of_the_commands():
    assert set(RESERVED_NAMES) == invite.commands.keys()


@pytest.mark.parametrize("word", RESERVED_NAMES)
@pytest.mark.parametrize(
    "words",
    [["invite", "--", "{}"], ["invite", "--tag", "x", "{}"], ["invite", "--qr", "{}", "--all"],
     ["join", INVITATION, "--as", "{}"], ["network", "create", "home", "--as", "{}"]],
)  # fmt: skip
def test_who_wants_such_a_name_is_told(run, home, words, word):
    result = run(*[one.format(word) for one in words])
    assert result.exit_code == 2
    assert "cannot be a name" in result.stderr or "no member can be called" in result.stderr
    assert word in result.stderr
    assert home.calls == []


@pytest.mark.parametrize(
    "words", [["--json", "list"], ["list", "--json"], ["--color", "never", "list", "--json"]]
)
def test_options_of_the_program_may_stand_before_a_command(run, home, words):
    assert json.loads(run("invite", *words).stdout)["invitations"]
    assert home.calls == [("invitations",)]


def test_a_word_behind_an_option_that_takes_one_is_its_value(run, home):
    assert run("invite", "--tag", "list", "nas").exit_code == 0
    assert home.calls == [("invite", "nas", "3600", "1", "", "list", "")]


def test_a_shell_is_offered_the_commands_in_the_place_of_the_name():
    complete = ShellComplete(program, {}, "shadowmesh", "_SHADOWMESH_COMPLETE")
    assert [item.value for item in complete.get_completions(["invite"], "")] == ["cancel", "list"]
    assert [item.value for item in complete.get_completions(["invite"], "l")] == ["list"]
    assert [item.value for item in complete.get_completions(["invite", "cancel"], "--a")] == [
        "--all"
    ]


def test_such_a_command_is_one_for_itself_too():
    called = []

    @click.group(cls=NameOrCommands)
    @click.argument("name", required=False)
    @click.option("--size", default="1")
    @click.pass_context
    def both(ctx, size, name=None):
        called.append((ctx.invoked_subcommand, name, size))
        return 3

    @both.command(cls=Command)
    @click.argument("what")
    def inner(what):
        called.append(what)
        return 4

    assert both.main(["--size", "2", "x"], standalone_mode=False) == 3
    assert both.main(["inner", "y"], standalone_mode=False) == 4
    assert both.main([], standalone_mode=False) == 3
    assert called == [(None, "x", "2"), ("inner", None, "1"), "y", (None, None, "1")]


# --- join -------------------------------------------------------------------------------------


@pytest.fixture
def outside(control):
    """A daemon that is in no network, and will have a session as soon as it is in one."""
    control.mesh, control.snapshot = MESH, CONNECTED
    return control


def test_joining_asks_and_then_waits_for_the_first_peer(run, outside, terminal):
    result = run("join", INVITATION, input="y\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[:6] == [
        "network   home",
        f"authority {'ab' * 32}",
        "relay     vpn.example.com:443",
        "subnet    10.77.0.0/24, fd42::/64",
        "own name  laptop",
        "address   10.77.0.2, fd42::2",
    ]
    last = result.stdout.splitlines()[-1]
    assert last.startswith("joined home as laptop, 10.77.0.2, connected to 1 peer, ")
    assert last.endswith(" s")
    assert "join? [y/N]" in result.stderr
    for step in ("reaching the relay", "certificate", "device", "first peer"):
        assert step in result.stderr
    assert asked(outside, "join") == [
        (INVITATION, "None", "False"), (INVITATION, "None", "True"),
    ]  # fmt: skip


@pytest.mark.parametrize("answer", ["n\n", "\n", "no\n"])
def test_who_does_not_say_yes_does_not_join(run, outside, terminal, answer):
    result = run("join", INVITATION, input=answer)
    assert_failed_after_progress(result, 1, "not joined")
    assert asked(outside, "join") == [(INVITATION, "None", "False")]


def test_who_leaves_the_question_does_not_join(run, outside, terminal):
    result = run("join", INVITATION, input="")
    assert result.exit_code == 1
    assert len(asked(outside, "join")) == 1


def test_without_a_terminal_joining_needs_a_yes(run, outside):
    assert_failed(run("join", INVITATION), 2, "no terminal", "--yes")
    assert outside.calls == []


def test_what_speaks_against_it_is_a_warning(run, outside):
    outside.doubts = (DOUBT,)
    result = run("join", INVITATION, "--yes", "--as", "pc")
    assert f"warning: {DOUBT}" in result.stderr
    assert "joined home as pc" in result.stdout
    assert asked(outside, "join")[1] == (INVITATION, "pc", "True")


@pytest.mark.parametrize("end", ["", "\n", "\r\n\n"])
@pytest.mark.parametrize("words", [["-"], []])
def test_the_invitation_may_come_from_standard_input(run, outside, words, end):
    assert run("join", *words, "--yes", input=INVITATION + end).exit_code == 0
    assert asked(outside, "join")[0][0] == INVITATION


def test_the_invitation_may_come_from_a_file(run, outside, tmp_path):
    path = tmp_path / "invitation"
    path.write_text(f"{INVITATION}\n")
    assert run("join", "--file", path, "--yes").exit_code == 0
    assert asked(outside, "join")[0][0] == INVITATION


def test_an_invitation_is_taken_as_people_paste_it(run, outside):
    half = len(INVITATION) // 2
    result = run("join", INVITATION[:half].upper(), INVITATION[half:], "--yes")
    assert result.exit_code == 0, result.output
    assert asked(outside, "join")[0][0] == INVITATION


WRONG = INVITATION[:-1] + ("0" if INVITATION[-1] != "0" else "g")


@pytest.mark.parametrize(
    ("typed", "word"),
    [(WRONG, "mistyped"), (INVITATION[:-20], "cut"), (INVITATION + "abcd", "mistyped"),
     ("hunter2hunter2", "no invitation"), ("sm2-" + INVITATION[4:], "newer version"),
     ("sm1-" + "a" * 5000, "5004 characters")],
)  # fmt: skip
def test_a_mistyped_invitation_is_told_before_anybody_is_asked(run, outside, typed, word):
    result = run("join", typed, "--yes")
    assert_failed(result, 2, word)
    assert_no_secret(result, typed, typed[4:30])
    assert json.loads(run("--json", "join", typed).stdout)["error"]["code"] == "bad_token"
    assert outside.calls == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe" * 50, b"x" * 100_000, b"\x00" * 9])
def test_a_file_that_holds_none_is_told(run, outside, tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    assert_failed(run("join", "--file", path, "--yes"), 2, "no invitation")
    assert_failed(run("join", "-", "--yes", input=content), 2, "no invitation")


def test_a_file_that_cannot_be_read_is_told(run, tmp_path, monkeypatch):
    path = tmp_path / "none"
    assert_failed(run("join", "--file", path), 2, "there is no file", "--file")
    assert_failed(run("join", "--file", tmp_path), 1, "cannot be read")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:
        patched.setattr("shadowmesh.cli.commands.join.Path.open", refuse)
        result = run("join", "--file", path)
    assert_failed(result, 4, str(path))


def test_an_invitation_is_wanted_once(run, outside, terminal, tmp_path):
    assert_failed(run("join", INVITATION, "--file", tmp_path / "x"), 2, "twice")
    result = run("join")
    assert_failed(result, 2, "an invitation is missing")


@pytest.mark.parametrize(
    ("error", "code"),
    [(errors.PeerUnreachable("vpn.example.com:443 does not answer"), 5),
     (errors.ConnectTimeout("no answer in 10 s"), 6), (errors.PeerRefused("it was used"), 1),
     (errors.IssuerRefused("the name laptop is taken"), 1), (errors.BadRequest("no name"), 2)],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_an_invitation_that_does_not_help_changes_nothing(run, outside, error, code):
    outside.error = error
    result = run("join", INVITATION, "--yes")
    assert_failed(result, code, str(error))
    assert_no_secret(result)
    assert len(outside.calls) == 1


def test_joining_again_does_no_harm(run, home):
    result = run("join", INVITATION, "--yes")
    assert result.exit_code == 0
    assert result.stdout == "this machine is in home already, as laptop, 10.77.0.2\n"
    assert home.joined is HOME


def test_joining_another_network_is_refused_and_names_the_one_there_is(run, home):
    home.joined = dataclasses.replace(HOME, network_id="cd" * 32)
    assert_failed(run("join", INVITATION, "--yes"), 1, "home", "shadowmesh leave")


def test_why_a_machine_without_a_network_cannot_join_is_the_daemon_s_to_say(run, outside):
    refused = errors.AlreadyInNetwork("this machine has peers of its own; take them out first")

    def before():
        outside.error = refused if outside.calls[-1][0] == "join" else None

    outside.before = before
    assert_failed(run("join", INVITATION, "--yes"), 1, str(refused))


@pytest.mark.parametrize(
    ("network_id", "code"), [(HOME.network_id, 0), ("cd" * 32, 1)], ids=["same", "another"]
)
def test_a_network_that_somebody_else_has_joined_meanwhile_is_looked_at(
    run, outside, network_id, code
):
    def before():
        if outside.calls[-1][0] == "join" and outside.calls[-1][-1] == "True":
            outside.joined = dataclasses.replace(HOME, network_id=network_id)

    outside.before = before
    result = run("join", INVITATION, "--yes")
    assert result.exit_code == code, result.output
    assert ("another one" in result.stderr) == bool(code)


# --- the daemon begins anew ---------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch):
    """What GET /network is answered with in turn, before it is what the daemon says."""
    real, answers = client.ApiClient.network, []

    def network(self, *rest):
        if not answers:
            return real(self, *rest)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(client.ApiClient, "network", network)
    return answers


AWAY = (
    failures.DaemonNotRunning("no daemon answers"), failures.NoAnswer("late"),
    errors.NotPermitted("who listens has changed"), failures.ForeignAnswer("no JSON"),
    errors.DaemonStopping("the daemon is stopping"), None, {"name": "other"}, {},
)  # fmt: skip


def test_the_api_may_be_away_for_a_while(run, outside, looks):
    looks.extend(AWAY)
    result = run("join", INVITATION, "--yes")
    assert result.exit_code == 0, result.output
    assert "joined home" in result.stdout
    assert looks == []


def test_a_daemon_that_begins_anew_before_it_has_answered_has_joined(run, outside, monkeypatch):
    real = client.ApiClient.join

    def join(self, *words, accept):
        answer = real(self, *words, accept=accept)
        if accept:
            raise failures.DaemonNotRunning("the connection was closed without an answer")
        return answer

    monkeypatch.setattr(client.ApiClient, "join", join)
    assert "joined home" in run("join", INVITATION, "--yes").stdout


@pytest.mark.parametrize(
    ("words", "where"),
    [(["join", INVITATION, "--yes"], "the network home"), (["leave", "--yes"], "no network")],
)
def test_a_daemon_that_does_not_come_back_is_told(run, control, monkeypatch, words, where):
    control.joined = HOME if words[0] == "leave" else None
    first = [HOME.to_dict()]

    def network(self, *_):
        if first and words[0] == "leave":
            return first.pop()
        raise failures.DaemonNotRunning("no daemon answers at x: refused; start it")

    monkeypatch.setattr(client.ApiClient, "network", network)
    result = run(*words)
    assert_failed_after_progress(result, 6, f"0.3 s that it is in {where}: ", "refused")


LONELY = (
    peers.PeerStatus("server", "error", NOW - 4, None, "a:1", wanted=True, last_error="no route"),
)


@pytest.mark.parametrize(
    ("mesh", "words"), [(LONELY, "server: no route"), ((), "no peer is known yet"),
                        (MESH[2:], "nobody has been reached yet")]
)  # fmt: skip
def test_a_member_without_a_session_has_joined_and_is_told_what_is_missing(
    run, outside, mesh, words
):
    outside.mesh = mesh
    result = run("join", INVITATION, "--yes")
    assert result.exit_code == 0
    assert f"warning: no peer has a session after 0.3 s: {words}" in result.stderr
    assert "connected to 0 peers" in result.stdout


def test_a_device_that_is_wrong_is_told_after_joining(run, outside):
    failed = status.Check("tap", False, "error", "tap0 cannot be made", "load the module", "no_tun")
    outside.snapshot = dataclasses.replace(CONNECTED, health=(failed,))
    assert (
        "warning: tap0 cannot be made; load the module" in run("join", INVITATION, "--yes").stderr
    )


def test_a_daemon_that_is_not_asked_again_in_time_has_joined_all_the_same(
    run, outside, monkeypatch
):
    def away(_self):
        raise failures.NoAnswer("late")

    monkeypatch.setattr(client.ApiClient, "status", away)
    assert run("join", INVITATION, "--yes").exit_code == 0


def test_with_json_there_is_one_object_and_no_progress(run, outside):
    result = run("--json", "join", INVITATION, "--yes")
    answer = json.loads(result.stdout)
    assert (answer["taken"], answer["again"], answer["connected"]) == (True, False, 1)
    assert result.stderr == ""
    again = json.loads(run("--json", "join", INVITATION, "--yes").stdout)
    assert (again["again"], again["name"]) == (True, "laptop")


def test_with_json_the_question_is_on_standard_error(run, outside, terminal):
    result = run("--json", "join", INVITATION, input="y\n")
    assert json.loads(result.stdout)["taken"] is True
    assert "network   home" in result.stderr


@pytest.mark.parametrize("fails", [False, True])
def test_on_a_terminal_a_step_is_told_while_it_goes_on(monkeypatch, capsys, fails):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = settling.Progress(shown=True)
    with contextlib.suppress(errors.ShadowMeshError), progress.step("certificate"):
        assert capsys.readouterr().err == "certificate         "
        if fails:
            raise errors.ShadowMeshError("no")
    assert capsys.readouterr().err == ("\n" if fails else "0.0 s\n")


# --- leave and peer remove ----------------------------------------------------------------------


def test_leaving_asks_and_says_when_it_is_done(run, home, terminal):
    home.joined = MEMBER
    result = run("leave", input="y\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("left home, ")
    assert home.joined is None


def test_who_does_not_say_yes_stays(run, home, terminal):
    home.joined = MEMBER
    assert_failed_after_progress(run("leave", input="n\n"), 1, "still in home")
    assert home.joined is MEMBER


def test_leaving_needs_a_network_and_a_yes(run, home):
    assert_failed(run("leave"), 2, "--yes")
    home.joined = None
    assert_failed(run("leave", "--yes"), 1, "no network")
    assert asked(home, "leave") == []


def test_a_daemon_that_leaves_may_be_away_and_say_the_old_for_a_while(run, home, looks):
    looks.extend([HOME.to_dict(), HOME.to_dict(), failures.DaemonNotRunning("x")])
    assert run("leave", "--yes").exit_code == 0
    assert looks == []


def test_a_member_is_put_out_after_a_question(run, home, terminal):
    result = run("peer", "remove", "nas", input="y\n")
    assert result.stdout.splitlines() == [
        "nas is out of the network",
        REMINDER,
    ]
    assert home.calls == [("remove_peer", "nas")]


def test_who_does_not_say_yes_keeps_the_member(run, home, terminal):
    assert_failed_after_progress(run("peer", "remove", "nas", input="\n"), 1, "still a member")
    assert home.calls == []


def test_putting_out_needs_a_yes_and_a_member(run, home):
    assert_failed(run("peer", "remove", "nas"), 2, "--yes")
    assert_failed(run("peer", "remove", "nobody", "--yes"), 1, "nobody", "shadowmesh peers")
    assert_failed(run("peer", "remove", "", "--yes"), 1, "no such route")


@pytest.mark.parametrize(
    ("removed", "said"),
    [(["nas", "old-nas"], "nas and old-nas are out of the network"), ([], "nobody was put out")],
)
def test_all_that_are_out_are_named(run, home, monkeypatch, removed, said):
    monkeypatch.setattr(home, "remove_peer", lambda _name: removed)
    told = run("peer", "remove", "nas", "--yes").stdout.splitlines()
    assert told[0] == said
    assert ["secret rotate" in line for line in told[1:]] == [True] * bool(removed)


# --- what answers is not a daemon of ours --------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["network", "show"], {"schema": 1}),
        (["network", "show"], {"schema": 1, "network": "home"}),
        (["invite"], {"schema": 1, "token": 5}),
        (["invite"], {"schema": 1}),
        (["invite", "list"], {"schema": 1, "invitations": None}),
        (["invite", "cancel", "--all"], {"schema": 1, "cancelled": "1"}),
        (["peer", "remove", "nas", "--yes"], {"schema": 1, "removed": 1}),
        (["network", "create", "home"], {"schema": 1, "network": {}}),
    ],
)
def test_an_answer_of_another_form_is_told_in_one_sentence(run, monkeypatch, words, answer):
    payload = json.dumps(answer).encode()
    monkeypatch.setattr(client.ApiClient, "_exchange", lambda *_: (200, payload))
    assert_failed(run(*words), 1, "not a ShadowMesh daemon")


@pytest.mark.parametrize(
    "network",
    [{}, {"name": None, "members": 5, "relays": ["x"], "lists": [None], "authorities": 1}],
)
def test_a_network_with_holes_is_shown_all_the_same(run, monkeypatch, network):
    monkeypatch.setattr(client.ApiClient, "network", lambda *_: network)
    assert run("network", "show").stdout.startswith("network   -")


def test_an_invitation_is_handed_over_in_a_body_and_never_in_a_path(monkeypatch, outside, run):
    sent, real = [], client.ApiClient._request

    def request(self, method, path, body):
        sent.append(path)
        return real(self, method, path, body)

    monkeypatch.setattr(client.ApiClient, "_request", request)
    assert run("join", INVITATION, "--yes").exit_code == 0
    assert all(INVITATION not in path for path in sent)
