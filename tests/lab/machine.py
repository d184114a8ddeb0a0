"""A whole machine as far as an installation is concerned: its own /etc, /opt, /usr/local and /var.

It has a network, a mount and a host name's namespace. The directories in `OWN_PLACES` are those of this machine
with a layer of their own on top (overlayfs), /run is empty and its own, so that commands from the
manual run as printed and leave nothing behind.

systemd cannot run there: it wants to be the first process and to own the control groups, which a
container that runs tests does not have to give. In its place stands `SYSTEMCTL`, which starts and
stops the service by the directives of its unit file. systemd-sysusers and systemd-tmpfiles are the
real ones, and `packaging/test-deb.sh` has the unit under a real systemd.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from shadowmesh.netlab import NetlabError, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from shadowmesh.netlab import Host, Net

#: the end of a question at a terminal, and what is typed then
YES = {"[y/N]: ": "y"}
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
OWN_PLACES = ("etc", "opt", "root", "usr/local", "var")

SETUP = """
echo "$3" >/proc/sys/kernel/hostname
mount -t tmpfs tmpfs "$1"
for place in {places}; do
    mkdir -p "$1/$place/new" "$1/$place/work"
    layers="lowerdir=/$place,upperdir=$1/$place/new,workdir=$1/$place/work"
    mount -t overlay overlay -o "$layers" "/$place"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system  # by this one knows that systemd is the first process
mount -t tmpfs -o mode=755 tmpfs /dev/net
mknod -m 666 /dev/net/tun c 10 200  # the mode is udev's, which a container need not have
chmod 755 /root  # the interpreter may live there, and the service runs as another user
! command -v git >/dev/null || git config --system safe.directory '*'  # whoever owns the checkout
install -m 755 "$2" /usr/local/bin/systemctl
touch /run/machine-is-ready
exec sleep infinity
"""

LEND = """
mkdir -p {root}/opt/lent {root}/opt/work-of-lent
layers="lowerdir={checkout},upperdir={root}/opt/lent,workdir={root}/opt/work-of-lent"
mount -t overlay overlay -o "$layers" {place}
"""

# What systemd does with the directives of the unit that a test can see from outside.
SYSTEMCTL = """#!{python}
import os, pathlib, pwd, shlex, signal, subprocess, sys, time

UNIT = pathlib.Path("/usr/local/lib/systemd/system/shadowmesh.service")
ADDED = pathlib.Path("/etc/systemd/system/shadowmesh.service.d")
PID, LOG = pathlib.Path("/run/service.pid"), pathlib.Path("/run/service.log")


def directives():
    found = {{}}
    for path in [UNIT, *sorted(ADDED.glob("*.conf"))]:
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


def runs():
    # It is a child of nobody who waits for it: gone means that its memory is.
    try:
        return not pathlib.Path(f"/proc/{{PID.read_text()}}/statm").read_text().startswith("0 ")
    except FileNotFoundError:
        return False


def stop():
    os.kill(int(PID.read_text()), signal.SIGTERM)
    while runs():
        time.sleep(0.05)


verb, unit = sys.argv[1], sys.argv[-1]
if verb != "daemon-reload":
    assert unit == "shadowmesh", unit
    if verb in ("status", "is-active"):
        sys.exit(0 if runs() else 3)
    if verb in ("stop", "restart") and runs():
        stop()
    if verb in ("enable", "start", "restart") and not runs():
        start()
"""


class Machine:
    """A host of the net on which commands run in directories of its own, until the net closes."""

    def __init__(self, net: Net, label: str, directory: Path) -> None:
        """Raises: NetlabError: the kernel has no overlayfs, or not for us."""
        self.host: Host = net.host(label)
        self._root = directory / label
        self._root.mkdir()
        systemctl = directory / f"{label}-systemctl"
        systemctl.write_text(SYSTEMCTL.format(python=sys.executable))
        log = directory / f"{label}.log"
        setup = SETUP.format(places=" ".join(OWN_PLACES))
        self._holder = self.host.popen(
            "unshare", "--mount", "--uts", "--propagation", "private",
            "sh", "-euc", setup, "sh", str(self._root), str(systemctl), label,
            log=log,
        )  # fmt: skip

        def ready() -> bool:
            if self._holder.poll() is not None:
                raise NetlabError(f"no machine {label}: {log.read_text().strip()}")
            with contextlib.suppress(OSError, subprocess.SubprocessError):
                return self._enter("test -e /run/machine-is-ready", 5).returncode == 0
            return False

        wait_until(ready, 10, f"the directories of {label}")

    def lend(self, checkout: Path, place: str) -> None:
        """Let a built checkout stand in for the clone at `place`; what is written stays here."""
        self.shell(LEND.format(root=self._root, checkout=checkout, place=place))

    def _command(self, script: str) -> list[str]:
        return [
            "nsenter", "--target", str(self._holder.pid), "--mount", "--net", "--uts", "--wd=/",
            "bash", "-euc", script,
        ]  # fmt: skip

    def _enter(self, script: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._command(script),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def exit_code(self, script: str, timeout_s: float = 30) -> int:
        return self._enter(script, timeout_s).returncode

    def succeeds(self, script: str) -> bool:
        return self.exit_code(script) == 0

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

    def terminal(self, script: str, timeout_s: float = 60, answers: Mapping[str, str] = YES) -> str:
        """Run a script as root at a terminal, answer what it asks, return what is to be seen.

        Colours are left out.

        Args: answers: by the end of the question.

        Raises:
            NetlabError: a command of it failed, or it did not end; the text has what was to be seen.
        """
        near, far = pty.openpty()
        typed = subprocess.Popen(
            self._command(script), stdin=far, stdout=far, stderr=far, start_new_session=True
        )
        os.close(far)
        seen = b""
        deadline = time.monotonic() + timeout_s
        with open(near, "r+b", buffering=0) as terminal:
            with contextlib.suppress(OSError):  # EIO: whoever had the other end is gone
                while select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
                    seen += terminal.read(4096)
                    for question, answer in answers.items():
                        if seen.endswith(question.encode()):
                            terminal.write(f"{answer}\n".encode())
            if time.monotonic() > deadline:
                typed.kill()
            code = typed.wait()
        shown = COLOUR.sub("", seen.replace(b"\r\n", b"\n").decode())
        if code != 0:
            raise NetlabError(f"on {self.host.label}, exit {code}:\n{script}\n--- seen:\n{shown}")
        return shown
