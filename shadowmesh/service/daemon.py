"""The daemon: puts the parts together, listens to signals, leaves nothing behind.

Owns: the command line of shadowmesh-daemon, the order of start and stop, what a signal does. Does
not know: HTTP routes, states, frames.

::

    configuration -> log -> keys, certificate -> data plane -> connection manager
                  -> peer port -> dialling -> control API, metrics; stopping goes the other way
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gevent
from gevent.event import Event

from shadowmesh import __version__
from shadowmesh._fastpath import DataPlane, build_info
from shadowmesh.base import log, stdio
from shadowmesh.base.errors import (
    ConfigError,
    ConfigurationWrong,
    DaemonStopping,
    KeyFileError,
    Problem,
    ShadowMeshError,
)
from shadowmesh.base.services import service_of
from shadowmesh.base.units import count, listed
from shadowmesh.base.words import nearest
from shadowmesh.config import (
    diff,
    flag_names,
    in_force,
    load,
    redacted,
)
from shadowmesh.control.ports import listen
from shadowmesh.device.device import Device
from shadowmesh.device.fdstore import NO_STORE, FdStore
from shadowmesh.device.tap import check_permission
from shadowmesh.device.underlay import Underlay
from shadowmesh.insight.capture import Captures
from shadowmesh.insight.events import FlightRecorder
from shadowmesh.insight.status import Reloaded
from shadowmesh.insight.vitals import Vitals
from shadowmesh.keys.api_token import load_or_create_token
from shadowmesh.keys.identity import format_public_key, load_or_create_identity
from shadowmesh.keys.mac import stable_mac
from shadowmesh.link.dial import dial
from shadowmesh.link.known import KnownAddresses
from shadowmesh.link.peer_port import PeerPort
from shadowmesh.link.tls import client_context, load_or_create_certificate
from shadowmesh.path.traversal import Traversal
from shadowmesh.peer.manager import ConnectionManager
from shadowmesh.service import switches
from shadowmesh.service.hardening import allow_descriptors, forbid_core_dumps
from shadowmesh.service.hub_errors import report_errors_of
from shadowmesh.service.hub_lag import HubLag
from shadowmesh.service.operator import ENDING, Operator
from shadowmesh.service.pid_file import pid_file
from shadowmesh.service.systemd import Notifier
from shadowmesh.service.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import ModuleType

    from gevent.socket import socket as Socket  # noqa: N812

    from shadowmesh.config import LoadedConfig
    from shadowmesh.service.http import HttpPorts
    from shadowmesh.service.member import Member

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
_OPTIONS: Final = ("--config", "--check", "--version", "--help")

USAGE: Final = """\
usage: shadowmesh-daemon [--config FILE] [--section.key VALUE ...] [--check]

  --config FILE        configuration; otherwise the first of /etc/shadowmesh/daemon.yaml
                       and ~/.shadowmesh/config.yaml that exists
  --section.key VALUE  any key of the configuration, such as --network.mtu 1400; stronger than
                       the environment (SHADOWMESH_NETWORK_MTU), which is stronger than the file;
                       `peers:` stands in the file only
  --check              load the configuration, print it with the source of each value, exit
  --version, -h, --help

conf/daemon.yaml describes every key. The command line `shadowmesh` controls a running daemon.
"""

_log = log.get("daemon")


class UsageError(ShadowMeshError):
    """The command line is wrong."""

    exit_code = EXIT_USAGE


def main() -> None:
    """Entry point of shadowmesh-daemon."""
    stdio.guard()
    sys.exit(run(sys.argv[1:], os.environ))


def run(argv: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the daemon until a signal ends it; return the exit code."""
    try:
        options, flags = parse_command_line(argv)
        if "help" in options:
            print(USAGE, end="", flush=True)
            return 0
        if "version" in options:
            print(
                f"shadowmesh-daemon {__version__}, libsodium {build_info()['libsodium']}",
                flush=True,
            )
            return 0
        path = Path(options["config"]) if "config" in options else None
        loaded = load(path, flags, environ)
        if "check" in options:
            print(redacted(loaded), end="", flush=True)
            for warning in loaded.warnings:
                print(f"warning: {warning}", file=sys.stderr)
            return 0
        without = switches.read(environ)
        notifier = Notifier(environ)
        store = FdStore(environ, notifier)
        Daemon(loaded, lambda: load(path, flags, environ), notifier, store, without).run()
    except ConfigError as error:
        print(error.report(), file=sys.stderr)
        return error.exit_code
    except KeyFileError as error:
        print(f"shadowmesh-daemon: {error}", file=sys.stderr)
        # It does not mend itself: the unit does not start us again for these exit codes.
        return ConfigError.exit_code
    except ShadowMeshError as error:
        print(f"shadowmesh-daemon: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return EXIT_FAILED  # whoever read what we print has had enough
    return 0


def parse_command_line(argv: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split arguments into options and configuration flags; both `--x V` and `--x=V` are taken.

    Raises:
        UsageError: unknown, repeated or without its value.
    """
    options: dict[str, str] = {}
    flags: dict[str, str] = {}
    known = set(flag_names())
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        word = "--help" if word == "-h" else word
        if word in ("--help", "--version", "--check"):
            options[word.removeprefix("--")] = ""
            continue
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (name != "config" and name not in known):
            raise UsageError(_unknown(word, known))
        if not equals:
            if not rest:
                raise UsageError(f"--{name} needs a value; see `shadowmesh-daemon --help`")
            value = rest.pop(0)
        target = options if name == "config" else flags
        if name in target:
            raise UsageError(f"--{name} is given twice")
        target[name] = value
    return options, flags


def _unknown(word: str, known: Iterable[str]) -> str:
    """Return what to say of an argument that there is not."""
    flag = word.partition("=")[0]
    near = nearest(flag, [*(f"--{name}" for name in known), *_OPTIONS])
    return f'unknown argument "{flag}"' + (
        "; see `shadowmesh-daemon --help`" if near is None else f"; did you mean {near}?"
    )


class Daemon:
    """One daemon process."""

    def __init__(
        self,
        loaded: LoadedConfig,
        load_again: Callable[[], LoadedConfig],
        notifier: Notifier,
        store: FdStore = NO_STORE,
        without: frozenset[str] = frozenset(),
    ) -> None:
        """Args: without: optimisations that are off, see `switches`."""
        self._without = without
        self._loaded = loaded
        self._load_again = load_again
        self._config = loaded.config
        #: as the file has it, without what a network makes of it
        self._file = loaded
        self._member: Member | None = None
        self._stopping = Event()
        #: the daemon ends, or begins anew
        self._turn = Event()
        #: all parts are started, and none is being ended
        self._settled = False
        #: a SIGHUP has come meanwhile
        self._hung_up = False
        self._notifier = notifier
        self._store = store
        self._recorder = FlightRecorder()
        self._http: HttpPorts | None = None

    def run(self) -> None:
        """Start everything, wait for SIGTERM or SIGINT, undo everything.

        Raises:
            ShadowMeshError: something cannot be started; what was started is undone.
        """
        config = self._config
        log.configure(config.daemon.log_level, config.daemon.log_format)
        _warn(self._loaded)
        if self._without:
            _log.warning(
                "optimisations are off",
                without=sorted(self._without),
                remedy=f"unset {switches.VARIABLE} for full speed",
            )
        forbid_core_dumps()
        allow_descriptors()
        report_errors_of(gevent.get_hub())
        # The watchdog ends a stuck daemon by SIGABRT: then the log says where it was.
        faulthandler.enable()
        with ExitStack() as undo:
            self._watch_signals(undo)
            undo.enter_context(pid_file(config.daemon.pid_file))
            udp_super_frames = check_permission(config.network.tap_device)
            while not self._stopping.is_set():
                self._turn.clear()
                self._live(udp_super_frames)
            _log.info("daemon stops")

    def _live(self, udp_super_frames: bool) -> None:
        """Be who the disk says that we are, until that changes or the daemon ends."""
        with ExitStack() as undo:
            try:
                self._member = _load_member(self._file)
                self._loaded = self._as_member(self._file)
                self._config = self._loaded.config
                self._start(undo, udp_super_frames)
                self._store.drop_unclaimed()
                _leave_out_of_collections()
                _log.info("daemon is ready", version=__version__, pid=os.getpid())
                self._notifier.ready(self._view.summary())
                self._settled = True
                if self._hung_up:
                    self._on_hangup()
                self._turn.wait()
            finally:
                self._settled = False
                if self._stopping.is_set() or sys.exc_info()[0] is not None:
                    # Whoever ends us decides whether we come back, and empties the store if not.
                    self._store.leave()
            if self._stopping.is_set():
                self._notifier.stopping()
            else:
                _log.info("the daemon begins anew, as a network or its end wants it")
                self._notifier.reloading()

    def _begin_again(self) -> None:
        """This machine is somebody else from now on: end everything, and start it as that."""
        self._manager.forget_disconnect()
        self._turn.set()

    def _end(self) -> None:
        """SIGTERM, SIGINT."""
        self._stopping.set()
        self._turn.set()

    # --- reload -------------------------------------------------------------------------------

    def reload(self) -> Reloaded:
        """Read the configuration again, for who asks over the API.

        Raises:
            ConfigurationWrong: it is invalid, and nothing has changed.
            DaemonStopping: too late for that.
        """
        if self._turn.is_set():
            raise DaemonStopping(ENDING)
        self._notifier.reloading()
        try:
            return self._load_and_apply()
        except ConfigError as error:
            first, *more = map(str, error.problems)
            rest = f"; {count(len(more), 'more mistake')}, see `shadowmesh logs`" if more else ""
            raise ConfigurationWrong(f"not reloaded: {first}{rest}") from None
        finally:
            self._notifier.ready(self._view.summary())

    # --- start and stop -----------------------------------------------------------------------

    def _start(self, undo: ExitStack, udp_super_frames: bool) -> None:
        """Start the parts in order; each leaves its undoing in `undo`."""
        config = self._config
        member = self._member
        identity = (
            load_or_create_identity(config.daemon.state_dir)
            if member is None
            else member.membership.identity
        )
        self._public_key = identity.public_key
        _refuse_own_key(self._loaded, identity.public_key)
        token = load_or_create_token(config.daemon.state_dir)
        certificate = load_or_create_certificate(
            config.websocket.tls_cert, config.websocket.tls_key
        )
        built = build_info()
        _log.info(
            "identity loaded",
            public_key=format_public_key(identity.public_key),
            libsodium=built["libsodium"],
            aegis256=built["aegis256"],
        )
        self._hub_lag = HubLag(self._beat)
        plane = DataPlane(self._without, realtime=config.network.realtime)
        if config.network.realtime:
            # LimitRTTIME: a thread of ours kept its core to itself. Nobody else sends this signal.
            undo.callback(gevent.signal_handler(signal.SIGXCPU, self._end_realtime, plane).cancel)
        device = Device(
            config.network,
            stable_mac(identity.public_key),
            plane,
            store=self._store,
            udp_super_frames=udp_super_frames,
        )
        device.adopt()
        undo.callback(self._let_go_of, device)
        known = KnownAddresses()

        def tunnel_device() -> str | None:
            return config.network.tap_device or None if device.tap is None else device.tap.name

        underlay = Underlay(tunnel_device)
        undo.callback(underlay.close)
        traversal = Traversal(plane, config.nat, self._store, underlay)
        traversal.tunnel_device = tunnel_device
        self._manager = ConnectionManager(
            config,
            identity,
            plane,
            device,
            client_context(),
            dial=partial(dial, refuses=underlay.refuses_dial),
            traversal=traversal,
            recorder=self._recorder,
            known=known,
            membership=None if member is None else member.membership,
            desk=None if member is None else member.desk,
            meet=None if member is None else member.meeting.meet,
            on_out_of_date=None if member is None else member.may_be_out_of_date,
        )
        self._peer_port = PeerPort(certificate, self._manager.take_incoming, self._store, known)
        traversal.recorder = self._recorder
        self._captures = Captures(
            plane,
            traversal.tunnel_device,
            self._recorder,
            port_of=lambda name: self._manager.peer_named(name).port,
        )
        self._view = View(
            self._manager,
            self._hub_lag,
            Vitals(self._recorder, no_news=("tap_gone",) if config.network.headless else ()),
            certificate,
            self._captures.report,
            self._peer_port,
            self._metrics_problem,
            underlay,
            None if member is None else member.view,
        )
        self._hub_lag.start()
        undo.callback(self._hub_lag.stop)
        undo.callback(traversal.stop)
        if member is not None:
            # Behind all sessions: who is being answered as a joiner needs the ledger.
            undo.callback(member.stop)
        undo.callback(self._manager.stop)
        traversal.start()
        undo.callback(self._peer_port.stop)
        self._peer_port.follow(config)
        # Bound before anything is dialled: where it is taken, another daemon runs.
        api = listen(config.daemon.listen_address, "daemon.listen_address")
        undo.callback(api.close)
        self._manager.start()
        if member is not None:
            member.start(
                self._manager.ask_to_join,
                self._manager.round_trips,
                self._members_changed,
                self._recorder,
            )
        self._start_http(undo, token, api)

    def _let_go_of(self, device: Device) -> None:
        """Leave no address of ours on a device that outlives us, where we become somebody else."""
        if self._turn.is_set() and not self._stopping.is_set():
            device.disown()

    def _beat(self) -> None:
        if not self._stopping.is_set():
            self._view.beat()
            self._manager.beat()
            self._notifier.beat(self._view.summary())

    def _start_http(self, undo: ExitStack, token: str, listener: Socket) -> None:
        operator = Operator(
            self._manager,
            self._view,
            self._member,
            self._peer_port,
            self._recorder,
            in_force=lambda: self._loaded,
            file=lambda: self._file,
            reload=self.reload,
            begin_again=self._begin_again,
            is_ending=self._turn.is_set,
        )
        # In a thread: the hub is answering the peer meanwhile.
        http = gevent.get_hub().threadpool.apply(_load_http)
        self._http = http.HttpPorts(
            self._config, operator, self._view, self._hub_lag, self._recorder, self._captures
        )
        self._http.open(undo, token, listener)

    def _metrics_problem(self) -> str | None:
        return None if self._http is None else self._http.metrics_problem

    def _end_realtime(self, plane: DataPlane) -> None:
        """SIGXCPU: without this the kernel would end us, or go on keeping others from their work."""
        plane.end_realtime()
        _log.warning(
            "a thread that carries frames did not rest: all of them have ordinary priority now",
            remedy="none until a restart; with load like this set network.realtime: false",
        )
        self._recorder.record("device", "the threads have ordinary priority now")

    def _watch_signals(self, undo: ExitStack) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            undo.callback(gevent.signal_handler(number, self._end).cancel)
        undo.callback(gevent.signal_handler(signal.SIGHUP, self._on_hangup).cancel)

    def _on_hangup(self) -> None:
        """SIGHUP: apply what can be applied; the log has what came of it."""
        # What is being closed would be opened again, and what is not there yet cannot be reloaded.
        self._hung_up = not self._settled or self._turn.is_set()
        if self._hung_up:
            return
        with contextlib.suppress(ConfigurationWrong, DaemonStopping):
            self.reload()

    def _load_and_apply(self) -> Reloaded:
        """Raises ConfigError: nothing has changed."""
        try:
            file = self._load_again()
            loaded = self._as_member(file)
            _refuse_own_key(loaded, self._public_key)
        except ConfigError as error:
            for problem in error.problems:
                _log.error("configuration not reloaded", problem=str(problem))
            self._recorder.record(
                "config", "configuration not reloaded", problems=len(error.problems)
            )
            raise
        applied, restart = diff(self._config, loaded.config)
        _log.info("configuration reloaded", applied=listed(applied) or "nothing")
        _warn(loaded)
        if restart:
            _log.warning(
                "some keys have changed and wait for a restart",
                keys=listed(restart),
                remedy=f"`systemctl restart {service_of(loaded.path)}`",
            )
        # What needs a restart stays what it is, and is named again by the next reload.
        self._file = in_force(self._file, file)
        self._loaded = self._as_member(self._file)
        self._config = config = self._loaded.config
        log.configure(config.daemon.log_level, config.daemon.log_format)
        self._manager.reload(config)
        try:
            self._peer_port.follow(config)
        except ShadowMeshError as error:
            _log.error(
                "the peer port stays closed", cause=error, remedy="`shadowmesh reload` tries again"
            )
        self._renew_certificate()
        self._recorder.record("config", "configuration reloaded", applied=applied, restart=restart)
        return Reloaded(os.getpid(), applied, restart)

    def _as_member(self, file: LoadedConfig) -> LoadedConfig:
        """Return what is in force. Raises ConfigError: it contradicts the network."""
        return file if self._member is None else self._member.configuration(file)

    def _members_changed(self) -> None:
        """Other members are known, or somebody is out."""
        try:
            self._loaded = self._as_member(self._file)
        except ConfigError as error:
            _log.limited(60).error(
                "the members are those of before",
                cause=str(error.problems[0]),
                remedy="take out of the configuration what contradicts the network, then"
                " `shadowmesh reload`",
            )
            return
        self._config = self._loaded.config
        self._manager.reload(self._config)

    def _renew_certificate(self) -> None:
        """Take a certificate that was renewed in its place; a wrong pair changes nothing."""
        try:
            renewed = self._peer_port.renew_certificate()
        except KeyFileError as error:
            _log.error(
                "the old certificate is served on",
                cause=error,
                remedy="`shadowmesh reload` again when certificate and key fit each other",
            )
            self._recorder.record("config", "the old certificate is served on", cause=error)
            return
        if renewed:
            certificate = self._peer_port.certificate
            self._view.certificate_renewed(certificate)
            sha256 = certificate.sha256.hex()
            _log.info("another certificate is served", sha256=sha256)
            self._recorder.record("config", "another certificate is served", sha256=sha256)


def _refuse_own_key(loaded: LoadedConfig, own: bytes) -> None:
    """Raises ConfigError: the list of peers names this daemon itself.

    Not found where the configuration is checked: there nobody knows the identity.
    """
    for peer in loaded.config.peers if loaded.config.listed else ():
        if peer.public_key == own:
            why = (
                f"{peer.name} has the public key of this daemon itself; take it off the list of this"
                " machine, or give the other machine an identity.key of its own"
            )
            raise ConfigError([Problem(loaded.sources[f"peers.{peer.name}"], None, "peers", why)])


def _leave_out_of_collections() -> None:
    """Keep what is there by now out of every later collection, which all greenlets wait for.

    Through the code that is loaded alone one takes some 30 ms. What was kept out before is looked at
    again: where the daemon begins anew, its sockets and its data plane of before are among it.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def _load_member(file: LoadedConfig) -> Member | None:
    """Return what this machine is in a network; None in none, and then nothing of it is loaded.

    Raises:
        KeyFileError: what is on the disk of it is wrong.
    """
    state_dir = file.config.daemon.state_dir
    if not (state_dir / "network" / "member.crt").exists():
        return None
    from shadowmesh.service.member import Member

    return Member.load(file.config)


def _load_http() -> ModuleType:
    """The one module that is loaded late; it says why."""
    from shadowmesh.service import http

    return http


def _warn(loaded: LoadedConfig) -> None:
    """Log what is valid and hardly meant; each of these sentences says what to do."""
    for warning in loaded.warnings:
        _log.warning(warning)


if __name__ == "__main__":
    main()
