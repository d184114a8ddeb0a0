"""Whether the peer port is open: as long as there is a key by which somebody could be accepted.

Owns: the listener, from the first key of the configuration to the last, and its socket's place in
the descriptor store. Does not know: what the listener does with connections, who reads the
configuration.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.device.fdstore import NO_STORE, PEER
from shadowmesh.link.bind import listen, misfit
from shadowmesh.link.known import KnownAddresses
from shadowmesh.link.listener import Listener
from shadowmesh.link.tls import load_renewed, server_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from shadowmesh.config import Config, HostPort
    from shadowmesh.device.fdstore import FdStore
    from shadowmesh.link.link import Upgraded
    from shadowmesh.link.tls import Certificate

#: What becomes of connections that take without giving: more than now and then is a flood.
TURNED_AWAY: Final = (
    "refused_rate",
    "silent",
    "evicted_accepted",
    "evicted_tls",
    "evicted_handshake",
    "tls_flood",
    "timed_out",
)

_log = log.get("listener")


class PeerPort:
    """The peer port of this daemon, open or not.

    Attributes:
        listener: None while closed.
        certificate: what is shown to those who connect from now on.
    """

    def __init__(
        self,
        certificate: Certificate,
        on_upgraded: Callable[[Upgraded], None],
        store: FdStore = NO_STORE,
        known: KnownAddresses | None = None,
    ) -> None:
        """Args: on_upgraded, known: as for `Listener`; follow() names the configured addresses.

        Raises:
            KeyFileError: the certificate cannot be served.
        """
        self.listener: Listener | None = None
        self._address: HostPort | None = None
        self.certificate = certificate
        self._context = server_context(certificate)
        self._on_upgraded = on_upgraded
        self._store = store
        self._known = known if known is not None else KnownAddresses()

    def follow(self, config: Config) -> None:
        """Open or close the port as this configuration wants it; nothing when it is so already.

        The address and the path of an open port stay what they are.

        Raises:
            ShadowMeshError: it cannot be opened.
        """
        self._known.name(peer.address.host for peer in config.peers if peer.address is not None)
        address = config.websocket.listen_address
        if config.mode == 0:
            # Why, and what to do, is a warning of the configuration.
            _log.info("peer port stays closed", cause="nobody could be accepted")
            self.stop()
        elif address is not None and self.listener is None:
            listener = Listener(
                address,
                config.websocket.path,
                self._context,
                self.certificate.sha256,
                self._on_upgraded,
                self._known,
            )
            held = self._of_the_last_run(address)
            listener.start(held)
            self._store.keep(PEER, listener.fd)
            self.listener, self._address = listener, address
            _log.info("peer port is open", address=address, taken_over=held is not None)

    def check(self, config: Config) -> None:
        """Find out whether the port that a configuration wants is ours, or could be opened.

        Raises:
            ShadowMeshError: it could not.
        """
        address = config.websocket.listen_address
        if address is None or (self.listener is not None and self._address == address):
            return
        listen(address).close()

    def renew_certificate(self) -> bool:
        """Serve what is in the certificate's files by now; False when it is the same.

        Who is connected stays so, under the certificate that was served then.

        Raises:
            KeyFileError: the files cannot be served; the old certificate stays.
        """
        before = self.certificate
        self.certificate, self._context = load_renewed(before)
        if self.listener is not None:
            self.listener.serve(self._context, self.certificate.sha256)
        return self.certificate != before

    def stop(self) -> None:
        """Close the port and what is not upgraded yet; idempotent."""
        listener, self.listener = self.listener, None
        if listener is not None:
            listener.stop()
            self._store.forget(PEER)
            _log.info("peer port is closed")

    def _of_the_last_run(self, address: HostPort) -> int | None:
        """Return the socket of the last run if it listens there still."""
        fd = self._store.take(PEER)
        if fd is None:
            return None
        why = misfit(fd, address)
        if why is None:
            return fd
        _log.info("the peer port of the last run does not fit, opening another", cause=why)
        os.close(fd)
        self._store.forget(PEER)
        return None
