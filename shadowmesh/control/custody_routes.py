"""The routes about the keys of a network and what lies in files of its operator.

Owns: that part of the table in `routes`. Does not know: Flask, what a route does. A file that is
larger than a body may be is sent before in pieces (`POST /files`); the route that takes it names its
digest.
"""

from __future__ import annotations

from typing import Final

from shadowmesh.base.errors import (
    AlreadyConnecting,
    AlreadyInNetwork,
    ConfigurationWrong,
    ConnectTimeout,
    FileNotSent,
    FileRefused,
    IssuerRefused,
    NotInNetwork,
    PeerRefused,
    PeerUnreachable,
)
from shadowmesh.control.rights import Right
from shadowmesh.control.route import Route
from shadowmesh.control.schema import Schema, Value

#: of a file that is sent in pieces, and of one piece: a body holds its base64
MAX_FILE_BYTES: Final = 32 << 20
MAX_PIECE_BYTES: Final = 40 << 10
MAX_PASSPHRASE_CHARS: Final = 1024
#: a recovery key has 61 characters; people write it with blanks
MAX_RECOVERY_CHARS: Final = 128

#: of a name: a DNS label; of an address in the tunnel; of host:port; of an IPv6 network
MAX_NAME_CHARS: Final = 63
MAX_TARGET_CHARS: Final = 45
MAX_PEER_CHARS: Final = 260
MAX_SUBNET_CHARS: Final = 43
MAX_FAMILIES: Final = 2
MAX_LABELS: Final = 32
MAX_LABEL_CHARS: Final = 64
#: of a certificate: an hour, 20 years
MIN_LIFETIME_S: Final = 3600
MAX_LIFETIME_S: Final = 20 * 365 * 24 * 3600
#: what openssl writes as text before it included
_CERTIFICATE_BYTES: Final = 12 << 10
_LIST_BYTES: Final = 20 << 10

_PASSPHRASE: Final = {"type": "string", "maxLength": MAX_PASSPHRASE_CHARS}
_FILE: Final = Value(
    "file", {"type": "string", "format": "sha-256", "maxLength": 64},
    "SHA-256 of the file that was sent.", required=True,
)  # fmt: skip


def _bytes(most: int) -> Schema:
    return {"type": "string", "format": "byte", "maxLength": (most + 2) // 3 * 4}


def _texts(longest: int, most: int, *, null: bool = False) -> Schema:
    return {
        "type": ["array", "null"] if null else "array",
        "items": {"type": "string", "maxLength": longest},
        "maxItems": most,
    }


_LABEL: Final = {"type": "string", "maxLength": MAX_NAME_CHARS}
_NAME: Final = {"type": ["string", "null"], "maxLength": MAX_NAME_CHARS}
_WHO: Final = Value("name", _LABEL, "Name of the member.", example="nas")
_KEPT_KEY: Final = (
    Value("key", {"type": "string", "maxLength": 8192}, "PEM, as it was exported.", required=True),
    Value("passphrase", _PASSPHRASE, "Of the key: a secret.", required=True),
)

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
        errors=(FileNotSent,),
    ),
    Route(
        "POST", "/network/backup", "back_up", Right.CHANGE, "Make a backup of the network", "Backup",
        "On the machine with the ledger: all that cannot be made again, in one file under a passphrase.",
        body=(
            Value("passphrase", _PASSPHRASE, "At least 12 characters: a secret.", required=True),
            Value("recovery_key", {"type": ["string", "null"], "maxLength": MAX_RECOVERY_CHARS},
                  "To be put in, as it was shown once: a secret; missing or null: it is left out."),
        ),
        errors=(AlreadyConnecting, NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/network/restore", "restore", Right.CHANGE, "Be the machine that a backup was made of", "Restored",
        "All invitations are void then. The daemon begins anew inside of its process: for some seconds nobody "
        "answers here.",
        body=(_FILE, Value("passphrase", _PASSPHRASE, "Of the backup: a secret.", required=True)),
        errors=(AlreadyConnecting, AlreadyInNetwork, IssuerRefused, FileNotSent, ConfigurationWrong),
    ),
    Route(
        "POST", "/network/adopt", "adopt", Right.CHANGE, "Make a network whose authority is a CA of yours",
        "Founded",
        "This machine vouches for the network's secret, so its certificate has role:issuer, and with an address "
        "role:relay. The recovery key is told this once. The daemon begins anew.",
        body=(
            Value("authority", _bytes(_CERTIFICATE_BYTES), "The CA's certificate, PEM or DER.", required=True),
            Value("certificate", _bytes(_CERTIFICATE_BYTES), "For the key of `/certificate/request`.",
                  required=True),
            Value("revoked", _bytes(_LIST_BYTES), "The CA's revocation list.", required=True),
            Value("subnets", _texts(MAX_SUBNET_CHARS, MAX_FAMILIES), "Networks of the tunnel.", required=True,
                  example=["10.77.0.0/24"]),
            Value("address", {"type": ["string", "null"], "format": "host:port", "maxLength": MAX_PEER_CHARS},
                  "Where others reach this machine; missing or null: nowhere."),
        ),
        errors=(AlreadyConnecting, AlreadyInNetwork, IssuerRefused, FileRefused, FileNotSent,
                ConfigurationWrong),
    ),
    Route(
        "POST", "/network/lists", "take_list", Right.CHANGE, "Let a revocation list of another CA count", "Removed",
        "It goes on to all members.",
        body=(_FILE,), errors=(AlreadyConnecting, NotInNetwork, FileNotSent, FileRefused),
    ),
    Route(
        "POST", "/network/authority/export", "export_authority", Right.CHANGE, "Tell the authority's key",
        "ExportedKey", "Under a passphrase. It stays here until `/network/authority/release`.",
        body=(Value("passphrase", _PASSPHRASE, "At least 12 characters: a secret.", required=True),),
        errors=(AlreadyConnecting, NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/network/authority/release", "release_authority", Right.CHANGE,
        "Remove the authority's key from this machine", "NetworkAnswer",
        "What was exported has to be shown, and to open. This machine can remove members then, and issue nothing. "
        "The daemon begins anew.",
        body=_KEPT_KEY, errors=(AlreadyConnecting, NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/network/authority/import", "import_authority", Right.CHANGE,
        "Bring the authority's key back to this machine", "NetworkAnswer", "The daemon begins anew.",
        body=_KEPT_KEY, errors=(AlreadyConnecting, NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/certificate/request", "request_certificate", Right.CHANGE, "Make a request for a certificate",
        "CertificateRequest",
        "For the key of this machine in its network, or in none for a new one; asked again it is the same.",
        body=(Value("name", _NAME, "To stand in it, which nobody has to believe; missing or null: the host's name.",
                    example="laptop"),),
        errors=(AlreadyConnecting, IssuerRefused),
    ),
    Route(
        "POST", "/certificates", "sign_certificate", Right.CHANGE, "Sign a request by hand", "Signed",
        "Of the request nothing but its key is believed. Of a key that is a member already roles, tags and addresses "
        "stay when they are not given.",
        body=(
            Value("request", _bytes(_CERTIFICATE_BYTES), "PEM or DER.", required=True),
            Value("name", _LABEL, "Of the member.", required=True, example="nas"),
            Value("roles", _texts(MAX_LABEL_CHARS, MAX_LABELS, null=True), "Roles of the member.", example=["relay"]),
            Value("tags", _texts(MAX_LABEL_CHARS, MAX_LABELS, null=True), "Tags of the member.", example=["factory"]),
            Value("addresses", _texts(MAX_TARGET_CHARS, MAX_FAMILIES),
                  "Of the member in the tunnel; missing or empty: they are chosen.", default=(),
                  example=["10.77.0.9"]),
            Value("expires_s", {"type": ["integer", "null"], "minimum": MIN_LIFETIME_S, "maximum": MAX_LIFETIME_S},
                  "How many seconds it is valid; missing or null: as long as the authority."),
        ),
        errors=(AlreadyConnecting, NotInNetwork, IssuerRefused, FileRefused),
    ),
    Route(
        "POST", "/certificates/bundle", "bundle_certificate", Right.CHANGE,
        "Make the file for a machine whose certificate another CA has signed", "Signed",
        body=(Value("certificate", _bytes(_CERTIFICATE_BYTES), "PEM or DER.", required=True),),
        errors=(AlreadyConnecting, NotInNetwork, FileRefused),
    ),
    Route(
        "POST", "/certificate", "install_certificate", Right.CHANGE, "Take a bundle, or find out what is in it",
        "Installation",
        "A machine in no network is a member then, and its daemon begins anew.",
        body=(
            _FILE,
            Value("authority", {"type": ["string", "null"], "maxLength": 64},
                  "Fingerprint that the authority must have, in hexadecimal digits; to take a bundle of a network "
                  "that this machine is not in, it has to be given."),
            Value("accept", {"type": "boolean"}, "Take it; else nothing changes.", default=False),
        ),
        errors=(AlreadyConnecting, AlreadyInNetwork, IssuerRefused, FileRefused, FileNotSent,
                ConfigurationWrong),
    ),
    Route(
        "GET", "/certificate", "certificate", Right.LOOK, "The certificate of this machine", "CertificateAnswer",
        "`certificate` is null when this machine is in no network.",
    ),
    Route(
        "POST", "/certificate/renew", "renew_certificate", Right.CHANGE, "Ask the issuer for the certificate of today",
        "Renewal", body=(),
        errors=(AlreadyConnecting, NotInNetwork, IssuerRefused, PeerUnreachable, PeerRefused, ConnectTimeout),
    ),
    Route(
        "POST", "/peers/{name}/reissue", "reissue", Right.CHANGE, "Give a member another name or other tags", "Renewal",
        "It gets its new certificate by itself; the old one counts until then, at most for a week.",
        within=(_WHO,),
        body=(
            Value("new_name", _NAME, "Missing or null: it stays.", example="desk"),
            Value("add_tags", _texts(MAX_LABEL_CHARS, MAX_LABELS), "Tags that it gets.", default=()),
            Value("drop_tags", _texts(MAX_LABEL_CHARS, MAX_LABELS), "Tags that it loses.", default=()),
            Value("at_once", {"type": "boolean"}, "The old certificate does not count from now on.", default=False),
        ),
        errors=(AlreadyConnecting, NotInNetwork, IssuerRefused),
    ),
    Route(
        "POST", "/peers/{name}/rekey", "rekey", Right.CHANGE, "Put a member's key out, and invite its machine anew",
        "Invited", "Name, roles, tags and addresses stay. The text of the invitation is a secret, and told this once.",
        within=(_WHO,), body=(), errors=(AlreadyConnecting, NotInNetwork, IssuerRefused),
    ),
)  # fmt: skip
