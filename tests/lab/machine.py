"""A whole machine as far as an installation is concerned: its own /etc, /opt, /usr/local and /var.

The directories are those of this machine with a layer of their own on top (overlayfs), so that
commands from the manual run as printed and leave nothing behind. In place of systemd stands a
program that starts and stops the service by its unit file.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

from shadowmesh.netlab import NetlabError, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from shadowmesh.netlab import Host, Net

OWN_PLACES = ("etc", "opt", "root", "usr/local", "var")

SETUP = """
mount -t tmpfs tmpfs "$1"
for place in {places}; do
    mkdir -p "$1/$place/new" "$1/$place/work"
    layers="lowerdir=/$place,upperdir=$1/$place/new,workdir=$1/$place/work"
    mount -t overlay overlay -o "$layers" "/$place"
done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /dev/net
mknod -m 666 /dev/net/tun c 10 200  # the mode is udev's, which a container need not have
chmod 755 /root  # the interpreter may live there, and the service runs as another user
mkdir -p /opt/shadowmesh
mount --bind "$2" /opt/shadowmesh
install -m 755 "$3" /usr/local/bin/systemctl
touch /run/machine-is-ready
exec sleep infinity
"""

# What systemd does with the directives of the unit that a test can see from outside.
SYSTEMCTL = """#!{python}
import os, pathlib, pwd, shlex, signal, subprocess, sys, time

UNITS = pathlib.Path("/etc/systemd/system")
PID, LOG = pathlib.Path("/run/service.pid"), pathlib.Path("/run/service.log")


def directives():
    found = {{}}
    for path in [UNITS / "shadowmesh.service", *sorted(UNITS.glob("shadowmesh.service.d/*.conf"))]:
        for line in path.read_text().splitlines():
            key, equals, value = line.partition("=")
            if equals and not line.startswith("#"):
                found.setdefault(key, []).append(value)
    return found


def start():
    unit = directives()
    user = pwd.getpwnam(unit["User"][0])
    for kind, parent in dict(State="/var/lib", Runtime="/run").items():
        path = pathlib.Path(parent, unit[f"{{kind}}Directory"][0])
        path.mkdir(exist_ok=True)
        path.chmod(int(unit[f"{{kind}}DirectoryMode"][0], 8))
        os.chown(path, user.pw_uid, user.pw_gid)
    caps = " ".join(unit["AmbientCapabilities"]).lower().replace("cap_", "+").replace(" ", ",")
    os.umask(int(unit["UMask"][0], 8))
    environment = dict(line.split("=", 1) for line in unit["Environment"])
    service = subprocess.Popen(
        ["setpriv", "--reuid", user.pw_name, "--regid", user.pw_name, "--init-groups",
         "--inh-caps", caps, "--ambient-caps", caps, "--bounding-set", "-all," + caps,
         "--no-new-privs", *shlex.split(unit["ExecStart"][0])],
        env={{"PATH": "/usr/bin:/bin", "STATE_DIRECTORY": "/var/lib/shadowmesh", **environment}},
        cwd="/", stdin=subprocess.DEVNULL, stdout=LOG.open("ab"), stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    PID.write_text(str(service.pid))
    # Type=notify: systemctl comes back when the daemon has said that it is ready.
    deadline = time.monotonic() + 20
    while subprocess.run(["shadowmesh", "status"], capture_output=True).returncode not in (0, 5):
        if service.poll() is not None or time.monotonic() > deadline:
            sys.exit("the service did not start:\\n" + LOG.read_text())
        time.sleep(0.1)


def stop():
    pid = int(PID.read_text())
    os.kill(pid, signal.SIGTERM)
    # It is a child of nobody who waits for it: gone means that its memory is.
    while pathlib.Path(f"/proc/{{pid}}/statm").exists():
        if pathlib.Path(f"/proc/{{pid}}/statm").read_text().startswith("0 "):
            break
        time.sleep(0.05)


verb, unit = sys.argv[1], sys.argv[-1]
if verb != "daemon-reload":
    assert unit == "shadowmesh", unit
    if verb in ("stop", "restart"):
        stop()
    if verb in ("enable", "start", "restart"):
        start()
"""


class Machine:
    """A host of the net on which commands run in directories of its own, until the net closes."""

    def __init__(self, net: Net, label: str, directory: Path, checkout: Path) -> None:
        """Raises: NetlabError: the kernel has no overlayfs, or not for us."""
        self.host: Host = net.host(label)
        root = directory / label
        root.mkdir()
        systemctl = directory / f"{label}-systemctl"
        systemctl.write_text(SYSTEMCTL.format(python=sys.executable))
        log = directory / f"{label}.log"
        setup = SETUP.format(places=" ".join(OWN_PLACES))
        self._holder = self.host.popen(
            "unshare", "--mount", "--propagation", "private",
            "sh", "-euc", setup, "sh", str(root), str(checkout), str(systemctl),
            log=log,
        )  # fmt: skip

        def ready() -> bool:
            if self._holder.poll() is not None:
                raise NetlabError(f"no machine {label}: {log.read_text().strip()}")
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                return self._enter("test -e /run/machine-is-ready", 5).returncode == 0
            return False

        wait_until(ready, 10, f"the directories of {label}")

    def _enter(self, script: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", "--target", str(self._holder.pid), "--mount", "--net", "--wd=/",
             "bash", "-euc", script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )  # fmt: skip

    def succeeds(self, script: str) -> bool:
        return self._enter(script, 30).returncode == 0

    def shell(self, script: str, timeout_s: float = 60) -> str:
        """Run a script as root of this machine and return what it printed.

        Raises:
            NetlabError: a command of it failed; the text has all that was printed, and the log.
        """
        done = self._enter(script, timeout_s)
        if done.returncode != 0:
            log = self._enter("cat /run/service.log", 5).stdout
            raise NetlabError(
                f"on {self.host.label}, exit {done.returncode}:\n{script}\n"
                f"--- printed:\n{done.stdout}{done.stderr}\n--- log of the service:\n{log}"
            )
        return done.stdout
