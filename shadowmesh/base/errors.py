"""The exception tree of ShadowMesh.

Owns: every exception class that crosses a module border, and the fixed numbers that go with it
(exit code of a program, HTTP status and code of the control API, WebSocket close code).
Does not know: who raises or catches them. Imports nothing of the project.

::

    ShadowMeshError                 str() is one line: what failed, why, what to do next
    +-- ConfigError                 the configuration; carries all problems at once
    +-- KeyFileError                an identity, token or certificate file is wrong
    +-- BadCertificate              a certificate of a network, or a request for one, is not taken
    +-- BadList                     a revocation or trust list of a network is not taken
    +-- NotPermitted                the operating system said no
    +-- DeviceError                 the TAP device
    +-- LocalProtocolError          our bug: a machine was used against its contract
    +-- RemoteProtocolError         the peer's bytes break the protocol
    +-- BadToken                    the text of an invitation cannot be read
    +-- LinkClosed                  the WebSocket link is gone
    +-- ControlError                an operation asked for by an operator failed
        +-- AlreadyConnected, AlreadyConnecting, NotConnected, NotConfigured, BadRequest,
            PeerUnreachable, PeerRefused, ConnectTimeout, DeviceUnavailable, CaptureRunning,
            ConfigurationWrong, DaemonStopping, IssuerRefused, NotInNetwork, AlreadyInNetwork,
            FileNotSent, FileRefused
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final


def one_line(text: str) -> str:
    """Return text with everything that is not printable written as an escape.

    What comes from a peer or a file may hold line breaks, terminal sequences or direction
    marks; none of them may forge a line in a log or move a terminal's cursor.
    """
    if text.isprintable():
        return text
    return "".join(
        # Not the codec unicode_escape: the first use of a codec imports it, for which a process
        # without descriptors has no means.
        char if char.isprintable() else repr(char)[1:-1]
        for char in text
    )


#: this process, or the machine, may open no more files
OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


#: what to do then
MORE_DESCRIPTORS: Final = "let the daemon open more (LimitNOFILE=), or close what holds them"


#: what to do about a bug of ours
REPORT_BUG: Final = "see `shadowmesh logs` and report it"


class ShadowMeshError(Exception):
    """Base of all errors of the project; its text is always a single printable line."""

    #: exit code of a program that ends because of this error (interface.md, "Programs")
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a configuration.

    Attributes:
        source: the file's path, ``flag --section.key`` or ``environment NAME``.
        line: line in the file, counted from 1; None where there is no line.
        key: ``section.key``; None when the problem is not tied to a key.
        message: what was got and what was wanted; never holds a secret.
    """

    source: str
    line: int | None
    key: str | None
    message: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        text = (
            f"{where}: {self.message}"
            if self.key is None
            else (f"{where}: {self.key}: {self.message}")
        )
        return one_line(text)


class ConfigError(ShadowMeshError):
    """The configuration is invalid. `problems` holds all that was found, at least one."""

    exit_code: ClassVar[int] = 7

    def __init__(self, problems: Sequence[Problem]) -> None:
        if not problems:
            raise ValueError("a ConfigError needs at least one problem")
        self.problems: tuple[Problem, ...] = tuple(problems)
        more = len(self.problems) - 1
        tail = f" (and {more} more)" if more else ""
        super().__init__(f"configuration invalid: {self.problems[0]}{tail}")

    def report(self) -> str:
        """Return every problem, one per line, without a final line break."""
        return "\n".join(str(problem) for problem in self.problems)


class KeyFileError(ShadowMeshError):
    """An identity, token or certificate file has the wrong size, mode, owner or content."""


class BadCertificate(ShadowMeshError):
    """A certificate is no certificate of this network, or none that counts now.

    `kind` is what a caller decides by: "malformed", "foreign" (no authority of this network signed
    it), "expired", "superseded" (re-issued: its holder may renew), "revoked" (its key is out),
    "unlisted" (no revocation list of its authority is known), "other_key" (not for the key asked
    about), "clash" (another key owns its node id, MAC, address or name), "full" (too many members).
    Source: mesh-rules A3, A4, C2, C5, D1.
    """

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


class BadList(ShadowMeshError):
    """A revocation list or a trust list is not taken.

    `kind`: "malformed", "foreign" (not signed by whom it must be), "old". Source: mesh-rules C.
    """

    def __init__(self, message: str, kind: str = "malformed") -> None:
        super().__init__(message)
        self.kind = kind


class NotPermitted(ShadowMeshError):
    """The operating system refused: a capability or file permission is missing."""

    exit_code: ClassVar[int] = 4


class DeviceError(ShadowMeshError):
    """The TAP device could not be opened, set up or used.

    `errno` is the operating system's error number, 0 when there was none.
    """

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class LocalProtocolError(ShadowMeshError):
    """Our own bug: a protocol machine was driven against its contract. Never the peer's fault."""


class RemoteProtocolError(ShadowMeshError):
    """The peer's bytes break the protocol.

    The text is for the local log only and never goes on the wire; `close_code` does, as the
    code of the WebSocket close frame (4400: handshake or record refused, no reason given).
    Source: protocol section 4.
    """

    def __init__(self, message: str, close_code: int = 4400) -> None:
        super().__init__(message)
        self.close_code = close_code


class BadToken(ShadowMeshError):
    """The text of an invitation cannot be read; what is said of it holds no part of it."""

    exit_code: ClassVar[int] = 2


class LinkClosed(ShadowMeshError):
    """The WebSocket link is gone.

    `code` is the close code of the peer's close frame; 1006 when there was none.
    Source: RFC 6455, section 7.4.1.
    """

    def __init__(self, message: str, code: int = 1006) -> None:
        super().__init__(message)
        self.code = code


class ControlError(ShadowMeshError):
    """An operation that an operator asked for failed.

    Attributes:
        code: the machine-readable ``error.code`` of the control API.
        http_status: the status of its answer.
        exit_code: what the command-line program exits with.
    Source: interface.md, "Control API" and "Programs".
    """

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500


class AlreadyConnected(ControlError):
    code = "already_connected"
    http_status = 409


class AlreadyConnecting(ControlError):
    code = "connecting"
    http_status = 409


class NotConnected(ControlError):
    code = "not_connected"
    http_status = 409


class NoSuchPeer(ControlError):
    """No peer of the configuration has that name."""

    code = "no_such_peer"
    http_status = 404


class NotConfigured(ControlError):
    """Neither a peer's key nor a pre-shared key is set, or no peer address is known."""

    code = "not_configured"
    http_status = 503


class BadRequest(ControlError):
    code = "bad_request"
    http_status = 400
    exit_code = 2


class PeerUnreachable(ControlError):
    code = "peer_unreachable"
    http_status = 502
    exit_code = 5


class PeerRefused(ControlError):
    code = "peer_refused"
    http_status = 502


class ConnectTimeout(ControlError):
    code = "timeout"
    http_status = 504
    exit_code = 6


class DeviceUnavailable(ControlError):
    code = "device_unavailable"
    http_status = 503
    exit_code = 4


class CaptureRunning(ControlError):
    """Frames are captured for somebody already."""

    code = "capture_running"
    http_status = 409


class ConfigurationWrong(ControlError):
    """The configuration that was to be read again is invalid; the daemon goes on as before."""

    code = "configuration_invalid"
    http_status = 422
    exit_code = 7


class DaemonStopping(ControlError):
    """The daemon was told to end while this was waited for."""

    code = "stopping"
    http_status = 503
    exit_code = 3


class IssuerRefused(ControlError):
    """The issuer of a network will not do what was asked: a name taken, no key, no room, a clock.

    `reason` is a word for programs and counters.
    """

    code = "issuer_refused"
    http_status = 409

    def __init__(self, message: str, reason: str = "refused") -> None:
        super().__init__(message)
        self.reason = reason


class NotInNetwork(ControlError):
    """What was asked needs a network, and this machine is in none."""

    code = "no_network"
    http_status = 409


class AlreadyInNetwork(ControlError):
    """A machine is in one network at most, and this one is in one."""

    code = "in_network"
    http_status = 409


class FileNotSent(ControlError):
    """A file that is sent in pieces is not here, or not all of it."""

    code = "file_not_sent"
    http_status = 409


class FileRefused(ControlError):
    """A certificate, request, bundle or list in a file is not what it should be."""

    code = "file_refused"
    http_status = 422
