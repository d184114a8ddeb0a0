"""What pkg-config knows about the system's libraries."""

from __future__ import annotations

import subprocess


def pkg_config(*arguments: str) -> str:
    """Return the answer of pkg-config; empty when it knows nothing, or is not there."""
    try:
        done = subprocess.run(
            ["pkg-config", *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
