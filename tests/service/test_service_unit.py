"""init/shadowmesh.service: what was promised is in it, systemd accepts it, and it stays hardened."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shadowmesh.base.constants import SYSTEM_API_SOCKET
from shadowmesh.control.rights import GROUPS

UNIT = Path(__file__).parents[2] / "init" / "shadowmesh.service"

PROMISED = """
Description=ShadowMesh Daemon - Post-Quantum P2P VPN
After=network-online.target
Wants=network-online.target
ExecStart=/usr/local/bin/shadowmesh-daemon --config /etc/shadowmesh/daemon.yaml
Restart=on-failure
RestartSec=5s
NoNewPrivileges=yes
PrivateTmp=yes
WantedBy=multi-user.target
"""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def directives() -> list[str]:
    lines = UNIT.read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "["))]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("line", PROMISED.split("\n")[1:-1])
def test_the_unit_has_the_line(line):
    assert line in directives()


# The first design ran it as root and without a watchdog.
@pytest.mark.parametrize(
    "line", ["Type=notify", "WatchdogSec=30s", "User=shadowmesh", "Group=shadowmesh"]
)
def test_the_unit_does_better_than_promised(line):
    assert line in directives()


def test_the_unit_leaves_the_daemon_two_capabilities_and_one_device():
    assert "AmbientCapabilities=CAP_NET_ADMIN CAP_NET_BIND_SERVICE" in directives()
    assert "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_BIND_SERVICE" in directives()
    assert "DeviceAllow=/dev/net/tun rw" in directives()
    assert not any(line.startswith("PrivateDevices") for line in directives())


def test_the_unit_lets_threads_have_the_least_real_time_priority_and_not_keep_a_core():
    assert "LimitRTPRIO=1" in directives()
    assert "LimitRTTIME=500ms:infinity" in directives()
    assert not any(line.startswith("RestrictRealtime") for line in directives())
    filters = [line for line in directives() if line.startswith("SystemCallFilter=")]
    # In this order: what comes later is added to what is left of what came before.
    assert filters[-1] == "SystemCallFilter=sched_setscheduler"
    assert "@resources" in filters[-2]


def test_everybody_may_reach_the_socket_of_the_api_and_nobody_else_may_put_one_there():
    assert "RuntimeDirectory=shadowmesh" in directives()
    assert "RuntimeDirectoryMode=0755" in directives()
    assert Path(SYSTEM_API_SOCKET).parent == Path("/run/shadowmesh")
    families = next(line for line in directives() if line.startswith("RestrictAddressFamilies="))
    assert {"AF_UNIX", "AF_NETLINK"} <= set(families.partition("=")[2].split())


@pytest.mark.parametrize("group", sorted(GROUPS.values()))
def test_the_groups_of_the_rights_are_made_empty_and_purged(group):
    made = (UNIT.parent / "shadowmesh.sysusers").read_text().splitlines()
    assert f"g {group} -" in made
    assert not any(line.startswith("m ") for line in made)  # nobody is put into one
    purged = (UNIT.parents[1] / "packaging" / "debian" / "postrm").read_text()
    assert f" {group}" in purged.partition('"$1" = purge')[2]


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path):
    # verify wants the program to exist, and this machine need not have it installed.
    text, count = re.subn(r"(?m)^(Exec\w+)=/\S+", r"\1=/bin/true", UNIT.read_text())
    assert count == 3
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = analyze("verify", "--man=no", str(copy))
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_unit_scores_two_or_better():
    done = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT))
    assert done.returncode == 0, [*done.stdout.splitlines()[-1:], done.stderr]


# What the unit takes away and can be taken away without systemd: memory that is writable and
# executable (prctl PR_SET_MDWE, Linux 6.3), /proc beyond processes, all capabilities but two.
CONFINED = """
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0) != 0:
    sys.exit(77 if ctypes.get_errno() == errno.EINVAL else f"prctl: {os.strerror(ctypes.get_errno())}")
os.execvp("setpriv", ["setpriv", "--bounding-set", "-all,+net_admin,+net_bind_service", "--no-new-privs",
                      sys.executable, "-c", sys.argv[1]])
"""
WORK = """
import mmap
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
except PermissionError:
    pass
else:
    raise SystemExit("memory is not confined")
import flask, gevent.pywsgi, gevent.ssl, prometheus_client, psutil, pysodium
from cryptography.hazmat.primitives.asymmetric import mlkem
from ipaddress import ip_interface
from shadowmesh import _fastpath
from shadowmesh.device import tap
_fastpath.build_info()
pysodium.crypto_sign_keypair()
mlkem.MLKEM768PrivateKey.generate()
psutil.Process().memory_info()
address = ip_interface("fd00::1/64")
tap.open_tap("t0", mtu=1400, addresses=(address,), persist=False, offload=0).close()
"""


@pytest.mark.netns
def test_the_parts_of_the_daemon_work_with_what_the_unit_leaves():
    confined = [sys.executable, "-c", CONFINED, WORK]
    inside = 'mount -t proc -o subset=pid proc /proc && exec "$@"'
    done = subprocess.run(
        ["unshare", "--net", "--mount", "sh", "-c", inside, "sh", *confined],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert done.returncode == 0, done.stderr
