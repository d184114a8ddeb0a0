"""The command-line program `shadowmesh`: a thin client of the daemon's control API.

Owns: commands, options, exit codes, what is printed. Does not know: the inside of the daemon; it
loads no server, event loop or cryptography to ask for a status.

Exit codes: 0 done, 1 operation failed, 2 usage, 3 daemon not running, 4 not permitted, 5 not
connected or unreachable, 6 timeout, 7 configuration invalid. An error is one line on stderr: what
failed, why, what to do next; with --json a JSON object on stdout as well.
Source: interface, "Programs".
"""

from __future__ import annotations

from shadowmesh.cli.program import main

__all__ = ["main"]
