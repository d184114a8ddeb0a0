"""What the options before the command and the configuration say.

Owns: which API and which token a command uses. Does not know: what commands do with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shadowmesh.base.constants import SYSTEM_CONFIG_FILE, TOKEN_FILE, USER_CONFIG_FILE
from shadowmesh.base.errors import KeyFileError, NotPermitted
from shadowmesh.cli.client import ApiClient, DaemonNotRunning

if TYPE_CHECKING:
    from shadowmesh.config import Config, HostPort, LoadedConfig


@dataclass(slots=True)
class Settings:
    """The options before the command; filled while the command line is read."""

    api: str | None = None
    token_file: Path | None = None
    config: Path | None = None
    json: bool = False

    def load_config(self) -> Config:
        """Return the daemon's configuration: `load` without sources and warnings."""
        return self.load().config

    def load(self) -> LoadedConfig:
        """Return the daemon's configuration, as the daemon would load it for this user.

        Raises:
            ConfigError: it is invalid.
            NotPermitted: there is a file and this user may not read it.
        """
        # Not at the top: a third of the start of a command that is told --api and --token-file.
        from shadowmesh.config import load

        for path in self._config_files():
            _refuse_unreadable(path)
        return load(self.config, {}, os.environ)

    def client(self) -> ApiClient:
        """Return a client with the token of the daemon.

        Raises:
            NotPermitted: the token cannot be read.
            DaemonNotRunning: there is no token and no daemon either.
            ConfigError, BadAddress: as for the configuration and --api.
        """
        url, path = self.api, self.token_file
        if url is None or path is None:
            daemon = self.load_config().daemon
            url = _local_url(daemon.listen_address) if url is None else url
            path = daemon.state_dir / TOKEN_FILE if path is None else path
        client = ApiClient(url, None)
        return ApiClient(url, self._token(path, client))

    def _config_files(self) -> Iterable[Path]:
        if self.config is not None:
            return (self.config,)
        # HOME only, unlike the loader: this is for advice, which a user without it can miss
        home = os.environ.get("HOME")
        return (Path(SYSTEM_CONFIG_FILE), *([Path(home) / USER_CONFIG_FILE] if home else ()))

    def _token(self, path: Path, client: ApiClient) -> str:
        from shadowmesh.keys.api_token import read_token

        try:
            return read_token(path)
        except KeyFileError as error:
            # Without a daemon a missing token is no wonder, and the daemon is what to start.
            if self.token_file is None and not client.is_running():
                raise DaemonNotRunning(
                    f"no daemon answers at {client.url}, and there is no token of one in {path};"
                    " start it with `systemctl start shadowmesh`"
                ) from None
            raise NotPermitted(
                f"no usable API token: {error}; run as the daemon's user or root, or name its"
                " token with --token-file"
            ) from None


def _local_url(listen: HostPort) -> str:
    """Return the URL of an API that listens there; "any address" is reached on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    bracketed = f"[{host}]" if ":" in host else host
    return f"http://{bracketed}:{listen.port}"


def _refuse_unreadable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except PermissionError:
        raise NotPermitted(
            f"{path} may not be read by this user; run as root, or name the daemon's API and"
            " token with --api and --token-file"
        ) from None
    except OSError:
        pass  # missing, or wrong in a way that the loader explains
