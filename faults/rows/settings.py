"""Configuration and keys that are wrong, change, or cannot be read."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import stat
import time
from typing import TYPE_CHECKING

from shadowmesh.netlab import Daemon, Net, introduce
from tests.lab import faults
from tests.lab.pair import Pair, assert_log_clean, make_pair

from ..bench import Bench, assert_logs_clean, cpu_seconds, until
from ..catalogue import row

if TYPE_CHECKING:
    from pathlib import Path

#: the sample key of the first design document
SAMPLE_KEY = "0123456789abcdef" * 4
EXIT_CONFIG = 7
#: as the daemon writes it in last_seen
OLD_DATE = "2001-02-03T04:05:06.000Z\n"


@row(
    "wrong PSK, wrong pin, sample key, one side without",
    "a local cause, back-off, no hot loop",
    bound_s=180,
    short=(
        "netns/test_refusals.py::test_peers_with_other_keys_are_refused",
        "netns/test_refusals.py::test_a_refused_peer_is_not_dialled_in_a_hot_loop",
        "config/test_config.py::test_weak_keys_are_refused_without_being_shown",
    ),
)
def wrong_keys(bench: Bench) -> None:
    cases = {
        "PSK": ("left", {"encryption.key": secrets.token_hex(32)}),
        "none here": ("left", {"encryption.key": None}),
        "none there": ("right", {"encryption.key": None}),
        "pin here": ("left", {"peer.public_key": "stranger"}),
        "pin there": ("right", {"peer.public_key": "stranger"}),
    }
    watched_s = bench.amount(20, 300)
    for name, (side, settings) in cases.items():
        with Net() as net:
            pair = make_pair(net, bench.place())
            changed = getattr(pair, side)
            for key, value in settings.items():
                if value == "stranger":
                    changed.settings[key] = Daemon(net.host("x"), bench.place()).public_key
                elif value is None:
                    del changed.settings[key]
                else:
                    changed.settings[key] = value
            pair.left.settings["peer.auto_connect"] = True
            try:
                pair.start()
                began, before = time.monotonic(), cpu_seconds(pair.left)
                until("an error with a cause", lambda p=pair: p.left.status()["last_error"], 15)
                time.sleep(max(0.0, began + watched_s - time.monotonic()))
                tries = sum(pair.left.status()["handshakes"].values())
                busy = 100 * (cpu_seconds(pair.left) - before) / watched_s
                bench.figure(f"{name}: {tries} tries in {watched_s} s, CPU {busy:.0f} %")
                # 1, 2, 4 ... 30 s with jitter
                assert tries <= 6 + watched_s / 24, "it dials in a hot loop"
                cause = f"{pair.left.log()}{pair.right.log()}"
                assert "encryption.key" in cause or "peer.public_key" in cause
            finally:
                for daemon in pair:
                    daemon.kill()
            assert_logs_clean(pair)
    code, log = _exit_of(bench, lambda d: d.settings.update({"encryption.key": SAMPLE_KEY}))
    assert code == EXIT_CONFIG, f"the sample key gave exit {code}"
    assert SAMPLE_KEY not in log


def _exit_of(bench: Bench, spoil, raw: bytes | None = None) -> tuple[int | None, str]:
    """Start a daemon that is spoilt; return its exit code, None when it runs, and its log."""
    with Net() as net:
        daemon = Daemon(net.host("alone"), bench.place())
        introduce(daemon, Daemon(net.host("other"), bench.place()))
        spoil(daemon)
        if raw is not None:
            daemon.config_path.write_bytes(raw)
            daemon.config_path.chmod(0o600)
            daemon.write_config = lambda: None  # type: ignore[method-assign]
        daemon.spawn()
        try:
            until("the daemon ends", lambda: not daemon.running, 40)
        except AssertionError:
            return None, daemon.log()
        finally:
            daemon.kill()
        assert "Traceback" not in daemon.log(), daemon.log_tail(3)
        return daemon.process.returncode, daemon.log()


@row(
    "corrupted config",
    "exit 7 with line and key, quickly, in bounded memory",
    bound_s=300,
    short=(
        "config/test_config.py::test_hostile_files_cost_little_and_end_in_a_bounded_report",
        "config/test_config.py::test_any_bytes_end_in_content_or_problems",
        "netns/test_refusals.py::test_a_bad_configuration_exits_7_and_names_the_place",
    ),
)
def corrupted_config(bench: Bench) -> None:
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(9)
    )
    cases = {
        "truncated": b'network:\n  local_ip: "10.0.0.1/2',
        "wrong type": b"network:\n  mtu: [1500]\n",
        "NUL": b"network:\n  mtu: 1500\0\n",
        "10 MB": b"# " + b"x" * 10_000_000,
        "anchors": bomb,
        "twice": b"network:\n  mtu: 1500\n  mtu: 1400\n",
        "binary": os.urandom(5000),
        "deep": b"[" * 100_000,
        "python object": b"!!python/object/apply:os.system ['true']\n",
    }
    slowest = 0.0
    for name, raw in cases.items():
        began = time.monotonic()
        code, log = _exit_of(bench, lambda _: None, raw)
        slowest = max(slowest, time.monotonic() - began)
        assert code == EXIT_CONFIG, f"{name} gave exit {code}"
        assert len(log) < 20_000, f"{name}: a report of {len(log)} bytes"
    bench.figure(f"{len(cases)} files, slowest {slowest:.1f} s")


@row(
    "config reload with removed peer",
    "session closed at once, a wrong file changes nothing",
    bound_s=60,
    short=("netns/test_faults.py::a_reload_without_the_peer_ends_its_session_at_once",),
)
def reload_without_peer(bench: Bench) -> None:
    with bench.pair() as pair:
        right = pair.right
        key = right.settings["peer.public_key"]
        right.config_path.write_text("network: [\n")
        right.process.send_signal(signal.SIGHUP)
        until("refused", lambda: "configuration not reloaded" in right.log(), 5)
        assert pair.left.status()["state"] == "connected"
        right.settings["peer.public_key"] = right.public_key  # nobody: its own
        right.write_config()
        right.process.send_signal(signal.SIGHUP)
        took = until("the session ends", lambda: pair.left.status()["state"] != "connected", 5)
        right.settings["peer.public_key"] = key
        right.write_config()
        right.process.send_signal(signal.SIGHUP)
        bench.figure(f"closed after {took:.2f} s")
        assert took <= 2
        pair.await_connected(40)


@row(
    "key file faults",
    "never overwritten, never a new identity, nothing partial",
    bound_s=300,
    short=(
        "netns/test_refusals.py::test_a_spoilt_identity_stops_the_start_and_is_left_alone",
        "keys/test_keys.py::test_a_full_disk_leaves_nothing_behind",
        "keys/test_keys.py::test_a_symbolic_link_refuses_the_start_even_to_a_good_file",
    ),
)
def key_files(bench: Bench) -> None:
    def spoilt(change):
        def spoil(daemon: Daemon) -> None:
            daemon.public_key  # noqa: B018 - makes the file
            change(daemon.state_dir / "identity.key")

        return spoil

    def replace(path: Path, make) -> None:
        path.unlink()
        make(path)

    def link(path: Path) -> None:
        path.rename(path.with_name("elsewhere"))
        path.symlink_to(path.with_name("elsewhere"))

    cases = {
        "mode 0644": lambda path: path.chmod(0o644),
        "zero length": lambda path: path.write_bytes(b""),
        "31 bytes": lambda path: path.write_bytes(bytes(range(31))),
        "zeros": lambda path: path.write_bytes(bytes(32)),
        "symlink": link,
        "directory": lambda path: replace(path, os.mkdir),
        "fifo": lambda path: replace(path, os.mkfifo),
    }
    for name, change in cases.items():
        seen: dict[str, object] = {}

        def spoil(daemon: Daemon, change=change, seen=seen) -> None:
            spoilt(change)(daemon)
            seen["path"] = daemon.state_dir / "identity.key"
            seen["before"] = _look(seen["path"])

        code, log = _exit_of(bench, spoil)
        assert code not in (None, 0), f"{name}: it starts"
        assert "identity.key" in log, f"{name}: not named"
        assert _look(seen["path"]) == seen["before"], f"{name}: the file was touched"
    _full_disk(bench)
    bench.figure(f"{len(cases)} files and a full disk, all left alone")


def _look(path: Path) -> tuple[int, int, bytes]:
    status = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    return status.st_mode, status.st_ino, content


def _full_disk(bench: Bench) -> None:
    place = bench.place()
    with Net() as net, faults.small_disk(place / "state") as state:
        daemon = Daemon(net.host("alone"), place)
        daemon.settings["encryption.key"] = secrets.token_hex(32)
        with faults.full_disk(state):
            daemon.spawn()
            try:
                until("the daemon ends", lambda: not daemon.running, 40)
            finally:
                daemon.kill()
            assert_log_clean(daemon)
            left = [path.name for path in state.iterdir() if path.name != "ballast"]
            assert left == [], f"a full disk left {left}"


@row(
    "full disk at run time",
    "traffic goes on, lost lines are counted, no file is half",
    bound_s=120,
    short=(
        "netns/test_causes.py::test_a_full_disk_is_named_and_stops_no_frame",
        "peer/test_last_seen.py::test_a_full_disk_costs_the_new_date_and_not_the_old_one",
    ),
)
def full_disk(bench: Bench) -> None:
    with bench.pair() as pair:
        with faults.small_disk(bench.place() / "log") as small:
            left = pair.left
            left.kill()
            left.log_path = small / "daemon.log"
            left.start()
            left.connect()
            with faults.full_disk(small):
                for _ in range(20):
                    left.api("POST", "/connect")
                assert pair.left.host.ping(pair.right.tunnel_ip, count=10).complete
                health = left.api("GET", "/health")[1]["status"]
            bench.figure(f"log: 10 of 10 pings, health {health}")
            left.kill()
            left.log_path = left.directory / "daemon.log"
        with faults.small_disk(bench.place() / "state") as small:
            _full_state(bench, pair, small)
        left.start()
        left.connect()


def _full_state(bench: Bench, pair: Pair, small: Path) -> None:
    """The left keeps its state on that disk, which is full through two sessions and a restart."""
    left, elsewhere = pair.left, pair.left.state_dir
    # The peer was last here long ago, so that whatever is written now is another date.
    shutil.copytree(elsewhere, small, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
    (small / "last_seen").write_text(OLD_DATE)
    _move_state(left, small)
    with faults.full_disk(small):
        names = _names(small)
        for _ in range(2):
            left.start()
            left.connect()
            pair.await_pings(10)
            assert left.host.ping(pair.right.tunnel_ip, count=10).complete, "frames were lost"
            found = {check["code"] for check in left.api("GET", "/health")[1]["checks"].values()}
            left.terminate()
        assert "disk_full" in found, f"/health says {found}"
        assert "when the peer was last here cannot be written" in left.log(), "no warning"
        assert _names(small) == names, f"left behind: {_names(small) - names}"
        assert (small / "last_seen").read_text() == OLD_DATE, "the old date is gone"
    left.start()
    left.connect()
    left.terminate()
    assert (small / "last_seen").read_text() > OLD_DATE, "no date is written any more"
    bench.figure("state: 10 of 10 pings twice, a restart, the date of before is whole")
    _move_state(left, elsewhere)


def _move_state(daemon: Daemon, directory: Path) -> None:
    daemon.state_dir = directory
    daemon.settings["daemon.state_dir"] = str(directory)


def _names(directory: Path) -> set[str]:
    """The files there; a socket is the daemon's for as long as it runs."""
    return {path.name for path in directory.iterdir() if not path.is_socket()}
