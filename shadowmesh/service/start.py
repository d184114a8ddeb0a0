"""The entry point of shadowmesh-daemon.

Owns: the moment before the daemon is loaded. Does not know: the daemon.
"""

from __future__ import annotations

import gc


def main() -> None:
    """Load the daemon and run it."""
    # What is being loaded stays: looking for garbage in it again and again is a tenth of the start.
    gc.disable()
    from shadowmesh.service.daemon import main as run_daemon

    gc.enable()
    run_daemon()
