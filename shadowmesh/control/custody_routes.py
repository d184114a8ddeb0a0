"""The routes about the keys of a network and what lies in files of its operator.

Owns: that part of the table in `routes`. Does not know: Flask, what a route does. A file that is
larger than a body may be is sent before in pieces (`POST /files`); the route that takes it names its
digest.
"""

from __future__ import annotations

from typing import Final

from shadowmesh.base.errors import AlreadyInNetwork, IssuerRefused, NotInNetwork
from shadowmesh.control.rights import Right
from shadowmesh.control.route import Route
from shadowmesh.control.schema import Value

#: of a file that is sent in pieces, and of one piece: a body holds its base64
MAX_FILE_BYTES: Final = 32 << 20
MAX_PIECE_BYTES: Final = 40 << 10
MAX_PASSPHRASE_CHARS: Final = 1024
#: a recovery key has 61 characters; people write it with blanks
MAX_RECOVERY_CHARS: Final = 128

_PASSPHRASE: Final = {"type": "string", "maxLength": MAX_PASSPHRASE_CHARS}
_FILE: Final = Value(
    "file", {"type": "string", "format": "sha-256", "maxLength": 64},
    "SHA-256 of the file that was sent.", required=True,
)  # fmt: skip


def _bytes(most: int) -> dict[str, object]:
    return {"type": "string", "format": "byte", "maxLength": (most + 2) // 3 * 4}


CUSTODY_ROUTES: Final = (
    Route(
        "POST", "/files", "receive_file", Right.CHANGE, "Send a piece of a file for the next request", "Received",
        "One file is held at a time: a piece at offset 0 begins another. It is forgotten after a minute "
        "without a piece, and when it was used.",
        body=(
            Value("offset", {"type": "integer", "minimum": 0, "maximum": MAX_FILE_BYTES},
                  "How many bytes were sent before.", required=True),
            Value("data", _bytes(MAX_PIECE_BYTES), "The next bytes.", required=True),
        ),
    ),
    Route(
        "POST", "/network/backup", "back_up", Right.CHANGE, "Make a backup of the network", "Backup",
        "On the machine with the ledger: all that cannot be made again, in one file under a passphrase.",
        body=(
            Value("passphrase", _PASSPHRASE, "At least 12 characters: a secret.", required=True),
            Value("recovery_key", {"type": ["string", "null"], "maxLength": MAX_RECOVERY_CHARS},
                  "To be put in, as it was shown once: a secret; missing or null: it is left out."),
        ),
        errors=(NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/network/restore", "restore", Right.CHANGE, "Be the machine that a backup was made of", "Restored",
        "All invitations are void then. The daemon begins anew inside of its process: for some seconds nobody "
        "answers here.",
        body=(_FILE, Value("passphrase", _PASSPHRASE, "Of the backup: a secret.", required=True)),
        errors=(AlreadyInNetwork, IssuerRefused),
    ),
)  # fmt: skip
