"""What the daemon serves over HTTP: the control API and the metrics port.

Owns: which application is served at which port, what each is given, the order in which they are
opened. Does not know: routes, what the daemon does when it is asked.

This brings Flask and prometheus-client, which take as long to load as all that a tunnel needs. So
`daemon` loads this module when the tunnel has been set off, and nothing else in the daemon loads
them before (`tests/service/test_start.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shadowmesh.base import log
from shadowmesh.config import HostPort
from shadowmesh.control.app import create_app
from shadowmesh.control.feed import Feed
from shadowmesh.control.metrics_port import make_metrics_app
from shadowmesh.control.ports import address_of, check_answer, listen, serve, serve_socket
from shadowmesh.insight.metrics import Sources, make_registry
from shadowmesh.service.optional_port import OptionalPort

if TYPE_CHECKING:
    from contextlib import ExitStack

    from gevent.socket import socket as Socket  # noqa: N812
    from prometheus_client.core import CollectorRegistry

    from shadowmesh.config import Config
    from shadowmesh.control.app import Control
    from shadowmesh.insight.capture import Captures
    from shadowmesh.insight.events import FlightRecorder
    from shadowmesh.service.hub_lag import HubLag
    from shadowmesh.service.view import View

#: who watches the daemon each second need not make it read /proc each second
RESOURCES_AGE_S: Final = 5.0

_log = log.get("daemon")


class HttpPorts:
    """The control API on its port and its Unix socket, and the metrics port."""

    def __init__(
        self,
        config: Config,
        control: Control,
        view: View,
        hub_lag: HubLag,
        recorder: FlightRecorder,
        captures: Captures,
    ) -> None:
        self._config = config
        self._control = control
        self._recorder = recorder
        self._captures = captures
        self._feed = feed = Feed(
            lambda: view.snapshot(resources_age_s=RESOURCES_AGE_S).to_dict(), recorder
        )
        self._registry: CollectorRegistry | None = None
        if config.monitoring.metrics_enabled:
            self._registry = make_registry(
                Sources(
                    view.snapshot,
                    hub_lag.histogram,
                    recorder.round_trips,
                    recorder.counts,
                    lambda: (feed.listening, feed.ended),
                    view.several,
                    view.table_size,
                )
            )
        self._metrics_port: OptionalPort | None = None

    @property
    def metrics_problem(self) -> str | None:
        """Why the metrics port is not open, None while it is or nobody wants it."""
        return None if self._metrics_port is None else self._metrics_port.problem

    def open(self, undo: ExitStack, token: str, listener: Socket) -> None:
        """Open all of them until undone; back when the API has answered.

        Args: listener: where `daemon.listen_address` listens already.

        Raises:
            ShadowMeshError: the API does not answer.
        """
        config = self._config
        application = create_app(
            self._control,
            token,
            config.daemon.listen_address,
            self._registry,
            recorder=self._recorder,
            feed=self._feed,
            captures=self._captures,
        )
        # Before the API: its first answer about health knows whether the port is open.
        if self._registry is not None and config.monitoring.prometheus_port:
            self._serve_metrics(undo, self._registry, config.monitoring.prometheus_port)
        serve(undo, listener, application)
        if config.daemon.api_socket is not None:
            serve_socket(undo, config.daemon.api_socket, application)
        undo.callback(self._feed.stop)
        undo.callback(self._captures.stop)
        check_answer(address_of(listener))
        _log.info("control API is open", address=config.daemon.listen_address)

    def _serve_metrics(self, undo: ExitStack, registry: CollectorRegistry, port: int) -> None:
        """Open the metrics port, which no frame needs: taken, it is no reason not to start."""
        key = "monitoring.prometheus_port"

        def open_port(stack: ExitStack) -> None:
            listener = listen(HostPort("127.0.0.1", port), key)
            serve(stack, listener, make_metrics_app(registry, address_of(listener)))

        self._metrics_port = OptionalPort(key, open_port)
        self._metrics_port.start()
        undo.callback(self._metrics_port.stop)
