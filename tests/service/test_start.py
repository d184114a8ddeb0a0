"""What the daemon loads and does before the tunnel is on its way, and what it leaves for later."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from shadowmesh.netlab import Daemon, Net, wait_until

#: what only the HTTP ports need; with what that brings, as heavy as everything else together
LATE = {
    "blinker", "flask", "itsdangerous", "jinja2", "prometheus_client", "psutil", "werkzeug",
    "shadowmesh.control.app", "shadowmesh.control.dashboard", "shadowmesh.control.openapi",
    "shadowmesh.control.routes", "shadowmesh.insight.metrics", "shadowmesh.service.http",
}  # fmt: skip
#: what no start needs, whatever it starts
NEVER = {
    "click", "h2", "hypothesis", "jsonschema", "mypy", "numpy", "pytest", "setuptools", "wsproto",
    "shadowmesh.cli", "shadowmesh.netlab",
}  # fmt: skip


def loaded_by(module: str) -> set[str]:
    """The modules, and the packages that they are in, of an interpreter that imports one."""
    # Measuring the child's coverage would load more into it.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, {module}; print(*sys.modules)"],
        env=environment, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    return set(done.stdout.split())


def test_what_the_http_ports_need_is_not_loaded_before_the_tunnel_is_set_off():
    assert loaded_by("shadowmesh.service.daemon") & (LATE | NEVER) == set()


def test_nobody_looks_for_garbage_while_the_daemon_is_loaded():
    code = (
        "import gc, sys\n"
        "from shadowmesh.service.start import main\n"
        "seen = []\n"
        "class Look:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        seen.append((name, gc.isenabled()))\n"
        "sys.meta_path.insert(0, Look)\n"
        "sys.argv = ['shadowmesh-daemon', '--version']\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    print(('shadowmesh.service.daemon', False) in seen, gc.isenabled())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.splitlines()[-1] == "True True"


def test_what_is_loaded_late_is_what_the_http_ports_need():
    loaded = loaded_by("shadowmesh.service.http")
    # The two documents and psutil wait for who asks for them; Flask has its commands from click.
    waiting = {"shadowmesh.control.dashboard", "shadowmesh.control.openapi", "psutil"}
    assert LATE - loaded == waiting
    assert loaded & NEVER == {"click"}


@pytest.mark.netns
def test_a_daemon_whose_api_port_is_taken_dials_nobody(tmp_path):
    with Net() as net:
        host = net.namespace("alone", 1)
        host.ip("link set lo up")
        peer = host.listen(("127.0.0.1", 9))
        taken = host.listen(("127.0.0.1", 9090))
        settings = {"peer.address": "127.0.0.1:9", "daemon.api_socket": ""}
        daemon = Daemon(host, tmp_path / "daemon", settings)
        with peer, taken:
            daemon.spawn()
            wait_until(lambda: not daemon.running, 20, "the daemon has ended")
            peer.setblocking(False)
            with pytest.raises(BlockingIOError):
                peer.accept()
        assert "port 9090 is taken" in daemon.log_path.read_text()
