"""The token of the control API: what a client shows to the daemon of the same machine.

Owns: the form, 43 URL-safe characters (32 random bytes, base64url, no padding), and the file
``api.token`` from the daemon's side and from a client's. Does not know: HTTP, who is let in, how a
private file is written.
"""

from __future__ import annotations

import base64
import os
import string
from pathlib import Path
from typing import Final

from shadowmesh.base.constants import TOKEN_FILE
from shadowmesh.base.errors import KeyFileError, NotPermitted
from shadowmesh.keys import sodium
from shadowmesh.keys.private_file import read_bounded, read_or_create

TOKEN_LENGTH: Final = 43
_TOKEN_CHARACTERS: Final = frozenset((string.ascii_letters + string.digits + "-_").encode())


def load_or_create_token(state_dir: Path) -> str:
    """Return the API token in ``state_dir/api.token``, made on the first start.

    Raises:
        KeyFileError: the file is wrong or cannot be made; nothing was changed.
    """
    path = state_dir / TOKEN_FILE
    content = read_or_create(path, _new_token, "delete it to get a new token")
    return _parse_token(path, content)


def read_token(path: str | Path) -> str:
    """Return the API token in a file, for a client.

    Owner and mode are the daemon's concern: a client uses what it is allowed to read.

    Raises:
        NotPermitted: this user may not read the file.
        KeyFileError: there is no such file, or it holds no token.
    """
    path = Path(path)
    try:
        content = read_bounded(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except PermissionError:
        raise NotPermitted(
            f"{path}: may not be read by this user; run as the daemon's user or root,"
            " or name a token file with --token-file"
        ) from None
    except FileNotFoundError:
        raise KeyFileError(
            f"{path}: no such file; start shadowmesh-daemon once, or name the token file"
            " with --token-file"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    return _parse_token(path, content)


def _new_token() -> bytes:
    return base64.urlsafe_b64encode(sodium.random_bytes(32)).rstrip(b"=")


def _parse_token(path: Path, content: bytes) -> str:
    token = content.removesuffix(b"\n")
    if len(token) != TOKEN_LENGTH or not set(token) <= _TOKEN_CHARACTERS:
        raise KeyFileError(
            f"{path}: holds no API token ({TOKEN_LENGTH} URL-safe characters); delete it and"
            " restart the daemon to get a new one"
        )
    return token.decode("ascii")
