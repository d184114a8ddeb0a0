"""A place on this machine where hosts can be made without touching anything else.

Owns: network and mount namespaces for one process and its children. Does not know: what is done
in them.
"""

from __future__ import annotations

import os
import subprocess

from shadowmesh.netlab.namespaces import NetlabError


def unshare_command() -> list[str]:
    """Return the words in front of a command that give it namespaces of its own.

    Raises:
        NetlabError: this machine or this user cannot have them; in one line, with what to do.
    """
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        raise NetlabError("no access to /dev/net/tun: try `modprobe tun`, or run as root")
    unshare = ["unshare", "--net", "--mount"]
    if os.geteuid() != 0:
        unshare += ["--user", "--map-root-user"]
    probe = subprocess.run([*unshare, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        raise NetlabError(
            f"no right to make namespaces ({probe.stderr.strip()}): run as root, or allow it "
            "with `sysctl kernel.unprivileged_userns_clone=1` or "
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`"
        )
    return unshare


def settle_in() -> None:
    """Make the namespaces that this process was started in usable by `Net`; call it once."""
    # Namespaces are named below /run; a private one also works without root, and is gone with us.
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
