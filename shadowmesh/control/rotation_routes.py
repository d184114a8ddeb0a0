"""The routes that replace what a network rests on: its secret and its authorities.

Owns: that part of the table in `routes`. Does not know: Flask, what a route does.
"""

from __future__ import annotations

from typing import Final

from shadowmesh.base.errors import IssuerRefused, NotInNetwork
from shadowmesh.control.rights import Right
from shadowmesh.control.route import Route
from shadowmesh.control.schema import Value

#: a recovery key has 61 characters; people write it with blanks
MAX_RECOVERY_CHARS: Final = 128

_RECOVERY_KEY: Final = Value(
    "recovery_key", {"type": "string", "maxLength": MAX_RECOVERY_CHARS},
    "As it was shown once, when the network was made: a secret.", required=True,
)  # fmt: skip

ROTATION_ROUTES: Final = (
    Route(
        "POST", "/network/secret", "rotate_secret", Right.CHANGE, "Give the network another secret", "Rotated",
        "The one before counts beside it until the next rotation. Members get it from their relays; who "
        "has missed two asks for it when it is back.",
        body=(), errors=(NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/network/authority/replace", "replace_authority", Right.CHANGE,
        "Make a new authority, and give every member a certificate of it", "Replaced",
        "Those before are trusted until they are dropped. Open invitations name one of them, and are "
        "cancelled.",
        body=(_RECOVERY_KEY,), errors=(NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/network/authority/drop", "drop_authorities", Right.CHANGE,
        "Trust the authority of this machine alone", "Dropped",
        "Whoever has no certificate of it is out, and comes back with a new invitation only.",
        body=(_RECOVERY_KEY,), errors=(NotInNetwork, IssuerRefused),
    ),
)  # fmt: skip
