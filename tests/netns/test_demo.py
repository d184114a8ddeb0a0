"""`make demo` as a newcomer runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shadowmesh import netlab

pytestmark = pytest.mark.netns

COMMAND = [sys.executable, "-m", "shadowmesh.netlab.demo"]


def daemons_below(directory: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if directory.encode() in line and b"shadowmesh-daemon" in line:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("way", ["as root", "without root"])
def test_the_demo_pings_all_through_tunnels_and_leaves_nothing(way, tmp_path):
    wrapper = [] if way == "as root" else ["unshare", "--user", "--map-root-user"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*wrapper, *COMMAND],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for word in (
        "2 of 2 peers connected", "post-quantum yes", "Gbit/s", "readable in 0 of them",
    ):  # fmt: skip
        assert word in done.stdout
    # each pair, and once more the two that go on when the third has left
    assert done.stdout.count("20 of 20 answered") == 3 + 1
    assert not list(tmp_path.iterdir())
    assert not daemons_below(str(tmp_path))


def test_a_demo_that_cannot_work_says_why_and_exits_1(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if 'shadowmesh-daemon' in ' '.join(sys.orig_argv): sys.exit('broken on purpose')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 1
    assert "broken on purpose" in done.stderr
    assert "demo: failed" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_no_daemon(number, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        COMMAND, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as demo:
        netlab.wait_until(lambda: daemons_below(str(tmp_path)), 30, "a daemon runs")
        demo.send_signal(number)
        assert demo.wait(30) != 0
    netlab.wait_until(lambda: not daemons_below(str(tmp_path)), 15, "no daemon is left")
    if number is not signal.SIGKILL:
        assert not list(tmp_path.iterdir())
