"""What the options before the command and the configuration say.

Owns: which API and which token a command uses. Does not know: what commands do with them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from shadowmesh.base.constants import (
    SYSTEM_API_SOCKET,
    SYSTEM_CONFIG_FILE,
    TOKEN_FILE,
    USER_CONFIG_FILE,
)
from shadowmesh.base.errors import KeyFileError, NotPermitted, ShadowMeshError
from shadowmesh.base.services import service_of
from shadowmesh.cli.client import ApiClient
from shadowmesh.cli.endpoint import parse
from shadowmesh.cli.failures import REQUEST_TIMEOUT_S, DaemonNotRunning

if TYPE_CHECKING:
    from shadowmesh.config import Config, HostPort, LoadedConfig


class NoSuchFile(ShadowMeshError):
    """A file that the command line names is not there; the configuration has its own code."""

    exit_code: ClassVar[int] = 2


@dataclass(slots=True)
class Settings:
    """The options before the command; filled while the command line is read."""

    api: str | None = None
    token_file: Path | None = None
    config: Path | None = None
    json: bool = False
    #: None: where the output is a terminal
    color: bool | None = None

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

    def load_readable(self) -> tuple[Config, Path | None]:
        """Return the daemon's configuration, or what it would be without a file.

        Returns:
            The configuration, and the file that this user may not read, None when it is all there.
        Raises:
            ConfigError: it is invalid.
            NotPermitted: the command line names a file that this user may not read.
        """
        try:
            return self.load_config(), None
        except NotPermitted:
            if self.config is not None:
                raise
            from shadowmesh.config import load

            hidden = next(path for path in self._config_files() if not _is_readable(path))
            return load(Path(os.devnull), {}, os.environ).config, hidden

    def client(self) -> ApiClient:
        """Return a client of the daemon.

        Unless the command line says which API: over the Unix socket, where no token is needed, if
        somebody listens there, and else over TCP with the token.

        Raises:
            NotPermitted: the token cannot be read.
            DaemonNotRunning: there is no token and no daemon either.
            ConfigError, BadAddress: as for the configuration and --api.
        """
        if self.api is not None and self.api.startswith("unix:"):
            return ApiClient(self.api, None)
        if self.api is None and self.token_file is None:
            for path in self._sockets():
                if _listens(path):
                    return ApiClient(f"unix:{path}", None)
        return self.token_client()

    def token_client(self) -> ApiClient:
        """Return a client that uses TCP and the token of the daemon. Raises as `client`."""
        url, path = self.api, self.token_file
        if url is None or path is None:
            daemon = self.load_readable()[0].daemon
            url = _local_url(daemon.listen_address) if url is None else url
            path = daemon.state_dir / TOKEN_FILE if path is None else path
        # Whoever owns the file knows the token already.
        owner = () if (found := _owner(path)) is None else (found,)
        return ApiClient(parse(url, *owner), self._token(path, ApiClient(url, None)))

    def _sockets(self) -> list[Path]:
        """Return where a Unix socket of the daemon may be, the likeliest first."""
        found = self.load_readable()[0].daemon.api_socket
        system = Path(SYSTEM_API_SOCKET)
        places = [] if found is None else [found]
        # A user's own daemon, which there mostly is not, has its socket in the home directory.
        if self.config is None and found is not None and found != system:
            places.append(system)
        return places

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
        except (KeyFileError, NotPermitted) as error:
            # Without a daemon a missing token is no wonder, and the daemon is what to start.
            if self.token_file is None and not client.is_running():
                raise self._not_running(client.url) from None
            if self.token_file is None and os.geteuid() != 0:
                raise NotPermitted(
                    f"the API token of the daemon at {client.url} may be read by root and the"
                    " daemon's own user only; run as one of them, or name it with --token-file"
                ) from None
            if self.token_file is not None and not os.path.lexists(path):
                raise NoSuchFile(
                    f"there is no file {path}; name the daemon's api.token with --token-file"
                ) from None
            if isinstance(error, NotPermitted):
                raise
            raise NotPermitted(
                f"no usable API token: {error}; run as the daemon's user or root, or name its"
                " token with --token-file"
            ) from None

    def _not_running(self, url: str) -> DaemonNotRunning:
        places = [url]
        if self.api is None:
            places = [*(f"unix:{path}" for path in self._sockets()), url]
        return DaemonNotRunning(
            f"no daemon answers at {' or '.join(places)}; start it with"
            f" `systemctl start {service_of(self.config)}`"
        )


def _local_url(listen: HostPort) -> str:
    """Return the URL of an API that listens there; "any address" is reached on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(listen.host, listen.host)
    bracketed = f"[{host}]" if ":" in host else host
    return f"http://{bracketed}:{listen.port}"


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:
        return None


def _listens(path: Path) -> bool:
    """Whether somebody listens at a Unix socket; that this user may not try is a no."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(REQUEST_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except TimeoutError:
            return True  # it is there, and slow
        except OSError:
            return False
    return True


def _is_readable(path: Path) -> bool:
    try:
        with path.open("rb"):
            return True
    except PermissionError:
        return False
    except OSError:
        return True  # missing, or wrong in a way that the loader explains


def _refuse_unreadable(path: Path) -> None:
    if not _is_readable(path):
        raise NotPermitted(
            f"{path} may not be read by this user, for it can hold a key; run as root, or name a"
            " file of your own"
        )
