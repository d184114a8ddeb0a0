"""The services of this machine by their names: the ordinary one and that of a relay.

Owns: which of them a daemon is by the file that it goes by. Does not know: systemd, what is in the
files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shadowmesh.base.constants import RELAY_CONFIG_FILE

_SERVICE: Final = "shadowmesh"
_RELAY_SERVICE: Final = "shadowmesh-relay"


def service_of(config: Path | None) -> str:
    """Return the name of the service, as `systemctl` takes it.

    Args:
        config: the file of the daemon; None: the usual one, or none.
    """
    return _RELAY_SERVICE if config == Path(RELAY_CONFIG_FILE) else _SERVICE
