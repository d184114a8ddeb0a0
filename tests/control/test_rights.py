"""The Unix socket of the control API: who may do what there, and its place in the file system."""

from __future__ import annotations

import grp
import json
import os
import socket
import stat
import subprocess
import sys

import pytest

from shadowmesh.base.errors import ShadowMeshError
from shadowmesh.control import api_socket, callers, rights
from shadowmesh.control.rights import Credentials, Right, Rights
from shadowmesh.control.routes import ROUTES
from tests.control.fake_control import TOKEN, FakeControl, make_app, serving
from tests.control.strangers import NOBODY, as_nobody, common_place, flood, needs_root

VIEW, ADMIN, OTHER = 4001, 4002, 4003
#: nobody is root or the daemon in these tests, but by their number
RIGHTS = Rights(4000, {Right.LOOK: VIEW, Right.CHANGE: ADMIN})

# --- From credentials to a right --------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "gids", "right"),
    [
        (0, {0}, Right.CHANGE),
        (4000, {4000}, Right.CHANGE),
        (1000, {1000, ADMIN}, Right.CHANGE),
        (1000, {VIEW, ADMIN}, Right.CHANGE),
        (1000, {1000, VIEW}, Right.LOOK),
        (1000, {1000}, Right.NONE),
        (1000, {0, 4000}, Right.NONE),  # the group of root or of the service is no right
        (1000, set(), Right.NONE),
    ],
)
def test_credentials_give_a_right(uid, gids, right):
    assert RIGHTS.of(Credentials(uid, frozenset(gids))) is right


def test_a_group_that_there_is_not_gives_no_right(monkeypatch):
    def missing(name):
        raise KeyError(name)

    monkeypatch.setattr(grp, "getgrnam", missing)
    here = rights.rights_of_this_process()
    assert here.of(Credentials(os.geteuid(), frozenset())) is Right.CHANGE
    assert here.of(Credentials(NOBODY - 1, frozenset({NOBODY}))) is Right.NONE


@pytest.mark.parametrize("right", [Right.LOOK, Right.CHANGE])
def test_a_refusal_names_the_group_and_the_way_in(right):
    text = rights.refusal(right)
    assert text.count(rights.GROUPS[right]) == 2
    assert "usermod -aG" in text
    assert text.count(".") == 0  # one sentence, without its stop


_CONNECT = """
import json, socket, sys
answers = []
for request in json.load(sys.stdin):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(sys.argv[1])
        sock.sendall(request.encode())
        answers.append(b"".join(iter(lambda: sock.recv(65536), b"")).decode("latin-1"))
json.dump(answers, sys.stdout)
"""


def somebody(path, *requests, gids=()):
    """Return what a process of another user, in these groups, is answered to each request."""
    done = subprocess.run(
        [*as_nobody(*gids), sys._base_executable, "-I", "-c", _CONNECT, str(path)],
        input=json.dumps(requests), text=True, check=False, capture_output=True, timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    parts = [answer.partition("\r\n\r\n") for answer in json.loads(done.stdout)]
    return [(int(head.split()[1]), body) for head, _, body in parts]


def ask(method, path, more=""):
    return f"{method} {path} HTTP/1.0\r\nHost: localhost\r\n{more}\r\n"


@pytest.fixture
def place():
    with common_place() as directory:
        yield directory


@pytest.fixture
def control():
    return FakeControl()


@pytest.fixture
def path(control, place):
    path = place / "api.sock"
    with serving(lambda address: make_app(control, address), path=path, rights=RIGHTS):
        yield path


@needs_root
@pytest.mark.parametrize(("gids", "right"), [([], 0), ([VIEW], 1), ([ADMIN], 2), ([OTHER], 0)])
def test_every_route_wants_its_right(path, control, gids, right):
    """The kernel's word counts: the groups of these processes are in no group database."""
    # the two that go on are asked below
    routes = [route for route in ROUTES if route.name not in ("capture", "events")]
    answers = somebody(path, *(ask(one.method, one.path) for one in routes), gids=gids)
    for route, (status, body) in zip(routes, answers, strict=True):
        if right >= route.right:
            # /metrics is off here; some want a body, and a network
            assert status in (200, 400, 404, 409), route.path
        else:
            assert status == 403, route.path
            error = json.loads(body)["error"]
            assert error["code"] == "not_permitted"
            assert rights.GROUPS[route.right] in error["message"]


@needs_root
@pytest.mark.parametrize("path_of", ["/{}", "//{}", "///{}"])
def test_no_way_to_write_a_path_needs_less_than_its_route(path, control, path_of):
    """The framework takes away slashes at the beginning, so that more paths than one are a route's."""
    changing = [one for one in ROUTES if one.right is Right.CHANGE]
    asked = [ask(one.method, path_of.format(one.path[1:])) for one in changing]
    for route, (status, body) in zip(changing, somebody(path, *asked, gids=[VIEW]), strict=True):
        assert (status, json.loads(body)["error"]["code"]) == (403, "not_permitted"), route.path
        assert rights.GROUPS[Right.CHANGE] in body
    assert control.calls == []


@needs_root
@pytest.mark.parametrize(("gid", "wanted"), [(VIEW, 403), (ADMIN, 200)])
def test_frames_are_for_who_may_change(path, gid, wanted):
    ((status, body),) = somebody(path, ask("GET", "/capture?duration_ms=10"), gids=[gid])
    assert status == wanted
    assert body


@needs_root
@pytest.mark.parametrize(("gids", "texts"), [([], False), ([VIEW], True)])
def test_texts_of_health_are_for_who_may_look(path, gids, texts):
    ((_, body),) = somebody(path, ask("GET", "/health"), gids=gids)
    assert ("tap0 is up" in body) is texts


@needs_root
def test_the_token_works_there_too_and_a_wrong_one_or_a_page_does_not(path):
    right = f"Authorization: Bearer {TOKEN}\r\n"
    wrong = right.replace("tok", "x")
    answers = somebody(
        path,
        ask("GET", "/status", right),
        ask("GET", "/status", wrong),
        ask("GET", "/status", f"{right}Origin: http://localhost\r\n"),
        gids=[VIEW],
    )
    assert [status for status, _ in answers] == [200, 401, 403]


def test_the_daemon_s_own_user_may_do_everything(control, place):
    path = place / "own.sock"
    own = Rights(os.geteuid(), {})
    with (
        serving(lambda address: make_app(control, address), path=path, rights=own),
        socket.socket(socket.AF_UNIX) as sock,
    ):
        sock.connect(str(path))
        sock.sendall(b"POST /disconnect HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in sock.recv(65536)
    assert control.calls == [("disconnect",)]


@needs_root
def test_a_crowd_of_another_user_keeps_nobody_out_of_the_socket(path):
    with flood(str(path)):
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(20)
                sock.connect(str(path))
                sock.sendall(b"GET /status HTTP/1.0\r\nHost: localhost\r\n\r\n")
                assert b" 200 " in sock.recv(65536)


def test_credentials_come_from_the_kernel():
    one, other = socket.socketpair()
    with one, other:
        found = callers.credentials_of(one)
    assert found.uid == os.geteuid()
    assert found.gids == {os.getegid(), *os.getgroups()}


# --- Its place --------------------------------------------------------------------------------


def test_everybody_may_connect_and_nobody_may_replace_it(tmp_path):

    before = os.umask(0o077)
    try:
        found = api_socket.listen(tmp_path / "run" / "api.sock")
    finally:
        os.umask(before)
    with found.sock:
        assert stat.S_IMODE(found.path.stat().st_mode) == 0o666
        assert stat.S_IMODE(found.path.parent.stat().st_mode) == 0o755
        assert [entry.name for entry in found.path.parent.iterdir()] == ["api.sock"]
    found.remove()
    assert list(found.path.parent.iterdir()) == []
    found.remove()


def test_a_name_that_a_killed_daemon_has_left_is_used_again(tmp_path):
    path = tmp_path / "api.sock"
    first = api_socket.listen(path)
    first.sock.close()
    second = api_socket.listen(path)
    first.remove()  # late: the name is not its own any more
    assert path.exists()
    with second.sock:
        second.remove()


def test_another_daemon_s_socket_is_left_alone(tmp_path):
    path = tmp_path / "api.sock"
    first = api_socket.listen(path)
    with first.sock, pytest.raises(ShadowMeshError, match="another daemon"):
        api_socket.listen(path)
    assert path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
def test_what_is_no_socket_is_left_alone(tmp_path, kind):
    path = tmp_path / "api.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    else:
        os.mkfifo(path)
    with pytest.raises(ShadowMeshError, match="no socket"):
        api_socket.listen(path)
    assert path.lstat()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o775])
def test_a_directory_in_which_others_may_put_theirs_is_refused(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(ShadowMeshError, match="others may replace"):
        api_socket.listen(tmp_path / "api.sock")


@needs_root
def test_a_directory_of_somebody_else_is_refused(tmp_path):
    os.chown(tmp_path, NOBODY, NOBODY)
    with pytest.raises(ShadowMeshError, match="others may replace"):
        api_socket.listen(tmp_path / "api.sock")


def test_a_place_that_is_not_ours_is_told(tmp_path):
    with pytest.raises(ShadowMeshError, match="cannot make the socket"):
        api_socket.listen(tmp_path / "missing" / "too" / "api.sock")
    with pytest.raises(ShadowMeshError, match="cannot make the socket"):
        api_socket.listen(tmp_path / ("x" * 300))
