"""The units in init/: what was promised is in them, systemd accepts them, and they stay hardened."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shadowmesh.base.constants import SYSTEM_API_SOCKET
from shadowmesh.control.rights import GROUPS

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "init" / "shadowmesh.service"
RELAY = UNIT.with_name("shadowmesh-relay.service")
BOTH = pytest.mark.parametrize("unit", [UNIT, RELAY], ids=lambda unit: unit.stem)
DEBIAN = ROOT / "packaging" / "debian"

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


def directives(unit: Path = UNIT) -> list[str]:
    lines = unit.read_text().splitlines()
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
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert f"{name}=CAP_NET_ADMIN CAP_NET_BIND_SERVICE" in directives()
    assert "DeviceAllow=/dev/net/tun rw" in directives()
    assert not any(line.startswith("PrivateDevices") for line in directives())


def test_the_relay_has_the_ports_below_1024_and_neither_device_nor_anything_else():
    found = [line for line in directives(RELAY) if "Capabilit" in line]
    assert found == [
        "AmbientCapabilities=CAP_NET_BIND_SERVICE", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE",
    ]  # fmt: skip
    assert "PrivateDevices=yes" in directives(RELAY)
    assert not any(line.startswith("Device") for line in directives(RELAY))


#: what a daemon without a device and with other files is to have in another way
_OF_ITS_OWN = {
    "Description", "ExecStart", "ExecReload", "FileDescriptorStoreMax", "User", "Group",
    "AmbientCapabilities", "CapabilityBoundingSet", "StateDirectory", "RuntimeDirectory", "Environment",
    "DevicePolicy", "DeviceAllow", "PrivateDevices",
}  # fmt: skip


def test_the_relay_is_hardened_as_the_other_unit_is():
    ordinary, relay = (
        [line for line in directives(unit) if line.partition("=")[0] not in _OF_ITS_OWN]
        for unit in (UNIT, RELAY)
    )
    assert relay == ordinary


def test_the_relay_shares_no_user_directory_or_file_with_the_other_service():
    values = {
        line.partition("=")[2]
        for unit in (UNIT, RELAY)
        for line in directives(unit)
        if line.startswith(("User=", "Group=", "StateDirectory=", "RuntimeDirectory="))
    }
    assert values == {"shadowmesh", "shadowmesh-relay"}
    assert "--config /etc/shadowmesh-relay/relay.yaml" in RELAY.read_text()
    assert not re.search(r"/(etc|run|var/lib)/shadowmesh/", "\n".join(directives(RELAY)))


def test_the_package_brings_the_relay_switched_off_and_purges_all_of_it():
    installed, purged = (DEBIAN / "postinst").read_text(), (DEBIAN / "postrm").read_text()
    assert "debian-installed shadowmesh-relay.service" in installed
    started = [line for line in installed.splitlines() if "invoke" in line and "relay" in line]
    assert ["[ -n " in line and "restart" in line for line in started] == [True]
    assert "shadowmesh-relay.service" in (DEBIAN / "prerm").read_text()
    for what in (
        "/var/lib/shadowmesh-relay",
        "/etc/shadowmesh-relay",
        "userdel",
        "shadowmesh-relay.service",
    ):
        assert what in purged.partition('"$1" = purge')[2]
    assert "/etc/shadowmesh-relay/relay.yaml" in (ROOT / "packaging" / "deb.sh").read_text()
    assert (
        "d /etc/shadowmesh-relay 0755 root root -"
        in (ROOT / "init" / "shadowmesh.tmpfiles").read_text()
    )
    users = (ROOT / "init" / "shadowmesh.sysusers").read_text()
    assert 'u shadowmesh-relay - "ShadowMesh relay" /var/lib/shadowmesh-relay\n' in users


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
    purged = (DEBIAN / "postrm").read_text()
    assert f" {group}" in purged.partition('"$1" = purge')[2]


@BOTH
@needs_systemd
def test_systemd_accepts_the_unit(unit, tmp_path):
    # verify wants the program to exist, and this machine need not have it installed.
    text, count = re.subn(r"(?m)^(Exec\w+)=/\S+", r"\1=/bin/true", unit.read_text())
    assert count == 3
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = analyze("verify", "--man=no", str(copy))
    assert (done.returncode, done.stderr) == (0, "")


@BOTH
@needs_systemd
def test_the_unit_scores_two_or_better(unit):
    done = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(unit))
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
