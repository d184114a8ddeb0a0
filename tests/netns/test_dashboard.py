"""The dashboard in a real Chromium, beside a live tunnel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shadowmesh.netlab import API_PORT, wait_until
from tests.lab.browser import browser, find_chromium
from tests.lab.pair import connected_pair

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(find_chromium() is None, reason="needs chromium (Debian: chromium)"),
]

URL = f"http://127.0.0.1:{API_PORT}/"
#: pictures for whoever wants to look: `make test` leaves them here
PICTURES = Path(__file__).parents[2] / "build" / "screenshots"
STATE = "document.querySelector('#state-text').textContent"
CONNECTED = f"{STATE} === 'Connected'"
SCREENS = {
    "desktop-light": (1280, 900, "light", False),
    "desktop-dark": (1280, 900, "dark", False),
    "tablet-light": (834, 1112, "light", False),
    "phone-dark": (390, 844, "dark", True),
    "phone-small-light": (320, 640, "light", True),
}


@pytest.fixture(scope="module")
def pair(directory):
    with connected_pair(directory, {"nat.enabled": True, "nat.stun_server": []}) as pair:
        yield pair


@pytest.fixture(scope="module")
def chromium(pair, directory):
    PICTURES.mkdir(parents=True, exist_ok=True)
    wrapper = ["ip", "netns", "exec", pair.left.host.namespace]
    with browser(directory / "profile", wrapper) as one:
        yield one


@pytest.fixture(scope="module")
def board(pair, chromium):
    """The page of a connected daemon, opened by the link that the CLI prints, and kept open."""
    page = chromium.page()
    page.show_as(1280, 900)
    page.open(pair.left.cli("dashboard").stdout.strip())
    page.wait_for(CONNECTED)
    yield page
    page.ask("Page.close")


@pytest.fixture
def fresh(chromium):
    """An empty tab, which knows no token."""
    page = chromium.page()
    page.show_as(1280, 900)
    yield page
    page.ask("Page.close")


def test_the_cli_prints_the_link(pair):
    done = pair.left.cli("--json", "dashboard")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"schema": 1, "url": f"{URL}#token={pair.left.token()}"}


def test_the_page_shows_the_live_tunnel(pair, board):
    status = pair.left.status()
    assert status["peer"]["name"] in board.text("#peer")
    wait_until(lambda: board.text("#path") == "UDP", 10, "the page shows UDP")
    # rounded for people, and smoothed anew with each probe
    board.wait_for("document.querySelector('#rtt').textContent.endsWith(' ms')")
    security = board.text("#security")
    assert status["cipher"] in security
    assert "yes, ML-KEM-768" in security
    assert pair.right.public_key in security
    assert "direct" in security
    # a better candidate may still take over: the page follows within one refresh
    wait_until(
        lambda: pair.left.status()["path_reason"].split()[0] in board.text("#path-reason"),
        10,
        "the page names the path that the status names",
    )
    assert "no STUN server is configured" in board.text("#nat")
    assert "tap0 is up" in board.text("#health")
    assert board.text("#feed") == "live"
    assert status["version"] in board.text("#foot")
    assert board.run("document.title").startswith("✓ Connected")


def test_the_charts_move_with_the_traffic(pair, board):
    board.wait_for("document.querySelector('#chart-thr .trace')")
    pair.left.host.ping(pair.right.tunnel_ip, count=200, size=1400)
    board.wait_for("/[kM]bit/.test(document.querySelector('#rate-out').textContent)")
    label = board.run("document.querySelector('#chart-thr').getAttribute('aria-label')")
    assert "now in" in label
    assert "out" in label
    board.wait_for("document.querySelector('#chart-rtt .trace')")
    board.wait_for("document.querySelector('#chart-drop .trace')")
    assert "frames" in board.text("#totals")


def test_a_hand_on_a_chart_shows_the_value_there(board):
    board.wait_for("document.querySelector('#chart-thr .trace')")
    at = board.run(
        "(() => { const box = document.querySelector('#chart-thr').getBoundingClientRect();"
        " return [box.right - 10, box.y + 60]; })()"
    )
    board.ask("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": at[0], "y": at[1]})
    board.wait_for("document.querySelector('#chart-thr .cursor')")


def test_a_click_shows_the_events_of_one_kind(board):
    board.wait_for("document.querySelectorAll('#log li').length >= 3")
    board.click("#filters button[data-kind=path]")
    shown = "[...document.querySelectorAll('#log li')].filter((item) => !item.hidden)"
    kinds = board.run(f"{shown}.map((item) => item.dataset.kind)")
    assert set(kinds) == {"path"}
    assert "path changed" in board.text("#log")
    pressed = "document.querySelector('#filters [aria-pressed=true]').textContent"
    assert board.run(pressed) == "path"
    board.click("#filters button[data-kind=config]")
    assert board.run(f"{shown}.length") == 0
    assert "Nothing of this kind" in board.text("#log-empty")
    board.click("#filters button")
    assert board.run(f"{shown}.length") >= 3


def test_a_click_shows_all_known_paths(pair, board):
    wait_until(lambda: board.text("#path") == "UDP", 10, "the page shows UDP")
    board.click("#all-paths summary")
    assert pair.right.host.peer_endpoint in board.text("#paths")
    assert "in use" in board.text("#paths")


def test_a_path_that_does_not_answer_any_more_is_not_said_to_work(pair, board):
    """Made up: a real one would take the tunnel with it."""
    board.click("#all-paths summary")
    status = pair.left.status()
    one = {**status["paths"][0], "path": "udp", "active": False, "proven": True}
    status["paths"] = [{**one, "unanswered": count} for count in (0, 3)]
    status["paths"].append({**one, "proven": False, "unanswered": 3})
    tags = f"(showPath({json.dumps(status)}), [...document.querySelectorAll('#paths .tag')])"
    assert board.run(f"{tags}.map((tag) => tag.textContent)") == [
        "works",
        "silent now",
        "no answer",
    ]


def test_the_table_of_paths_is_not_cut(board):
    for width in (1280, 390):
        board.show_as(width, 900)
        board.run("document.querySelector('#all-paths').open = true")
        table = "document.querySelector('#all-paths table')"
        assert board.run(f"{table}.scrollWidth <= {table}.parentElement.clientWidth"), width
    board.show_as(1280, 900)
    board.run("document.querySelector('#all-paths').open = false")


def test_the_last_hour_is_there_when_the_page_is_opened(pair, fresh):
    fresh.open(pair.left.cli("dashboard").stdout.strip())
    fresh.wait_for(CONNECTED)
    seconds = (1, 15)
    for number, interval_s in enumerate(seconds, 1):
        fresh.click(f"#ranges button:nth-child({number})")
        fresh.wait_for("charts.rtt.points.length >= 1")
        code, told = pair.left.api("GET", "/history")
        assert code == 200
        [stretch] = [one for one in told["stretches"] if one["interval_s"] == interval_s]
        shown = fresh.run("charts.rtt.points.length")
        assert abs(len(stretch["rtt_ms"]) - shown) <= 20 / interval_s + 1
    assert fresh.run("document.querySelector('#host').textContent") == pair.left.status()["host"]


def test_the_page_fits_every_screen(board):
    board.wait_for("document.querySelector('#chart-thr .trace')")
    board.run("document.querySelector('#all-paths').open = false, scrollTo(0, 0)")
    for name, (width, height, scheme, phone) in SCREENS.items():
        board.show_as(width, height, scheme=scheme, phone=phone)
        board.wait_for("Number(document.querySelector('#chart-thr .grid').getAttribute('x2')) > 0")
        assert board.run("document.documentElement.scrollWidth <= window.innerWidth"), name
        dark = board.run("matchMedia('(prefers-color-scheme: dark)').matches")
        assert dark == (scheme == "dark")
        board.screenshot(PICTURES / f"{name}.png")
    board.show_as(1280, 900)


def test_the_page_follows_the_tunnel_down_and_up(pair, board):
    pair.disconnect()
    board.wait_for(f"{STATE} === 'Disconnected'")
    assert "There is no session" in board.text("#path-reason")
    pair.connect()
    board.wait_for(CONNECTED)
    assert "disconnected by the operator" in board.text("#log")


def test_the_token_leaves_the_address_bar_and_outlives_a_reload(board):
    assert board.run("location.href") == URL
    assert board.run("history.length") <= 3
    board.ask("Page.reload")
    board.wait_for(CONNECTED)
    assert board.run("location.href") == URL


def test_the_page_asks_its_daemon_only_and_the_browser_finds_no_fault_in_it(board):
    own = (URL, URL.replace("http:", "ws:") + "events", "data:")
    assert board.requests
    assert [url for url in board.requests if not url.startswith(own)] == []
    assert board.problems == []


def test_the_policy_keeps_the_page_from_asking_anybody_else(pair, fresh):
    fresh.open(URL)
    fresh.run(
        f"fetch('http://{pair.right.host.ipv4}/').catch(() => {{}}),"
        f" new Image().src = 'http://{pair.right.host.ipv4}/x.png'"
    )
    wait_until(lambda: fresh.run("1") and len(fresh.problems) >= 2, 5, "two violations")
    assert all("Content Security Policy" in problem for problem in fresh.problems)


def test_without_a_token_the_page_says_how_to_get_one(pair, fresh):
    fresh.open(URL)
    fresh.wait_for("!document.querySelector('#gate').hidden")
    assert "shadowmesh dashboard" in fresh.text("#gate")
    assert fresh.run("document.querySelector('#board').hidden")
    assert fresh.problems == []
    fresh.screenshot(PICTURES / "no-token.png")
    fresh.run("document.querySelector('#gate-token').focus()")
    fresh.type("x" * 43)
    fresh.click("#gate button")
    refused = "document.querySelector('#gate-why').textContent.includes('refused the token')"
    fresh.wait_for(refused)
    fresh.run("document.querySelector('#gate-token').focus()")
    fresh.type(pair.left.token())
    fresh.click("#gate button")
    fresh.wait_for(CONNECTED)
    assert fresh.run("document.querySelector('#gate').hidden")


def test_the_page_can_only_look(pair, board):
    token = pair.left.token()
    for method, path in (("POST", "/disconnect"), ("POST", "/connect")):
        options = json.dumps({"method": method, "headers": {"Authorization": f"Bearer {token}"}})
        assert board.run(f"fetch('{path}', {options}).then((answer) => answer.status)") == 403
    assert pair.left.status()["state"] == "connected"


def test_a_page_that_lost_the_daemon_says_so_and_comes_back(pair, board):
    pair.left.kill()
    board.wait_for("document.querySelector('#feed').classList.contains('lost')")
    assert "does not answer" in board.text("#feed")
    # what it showed last may not be true any more
    assert board.text("#state-text") == "No answer"
    assert "UDP" not in board.text("#path")
    assert "Connected" not in board.run("document.title")
    icons = board.run("[...document.querySelectorAll('#health .icon')].map((i) => i.textContent)")
    assert set(icons) == {"?"}, "no tick is green"
    assert "how it was then" in board.text("#trouble")
    board.screenshot(PICTURES / "lost.png")
    pair.left.start()
    board.wait_for("document.querySelector('#feed').textContent === 'live'", 30)
    pair.connect()
    board.wait_for(CONNECTED)
