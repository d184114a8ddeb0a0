"""The exception tree: one printable line each, and the numbers users and scripts rely on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.base import errors
from shadowmesh.base.errors import ConfigError, ControlError, Problem, ShadowMeshError

#: interface.md, "Control API" and "Programs"
CONTROL_ERRORS = {
    "AlreadyConnected": ("already_connected", 409, 1),
    "AlreadyConnecting": ("connecting", 409, 1),
    "NoSuchPeer": ("no_such_peer", 404, 1),
    "NotConnected": ("not_connected", 409, 1),
    "NotConfigured": ("not_configured", 503, 1),
    "BadRequest": ("bad_request", 400, 2),
    "PeerUnreachable": ("peer_unreachable", 502, 5),
    "PeerRefused": ("peer_refused", 502, 1),
    "ConnectTimeout": ("timeout", 504, 6),
    "DeviceUnavailable": ("device_unavailable", 503, 4),
    "CaptureRunning": ("capture_running", 409, 1),
    "ConfigurationWrong": ("configuration_invalid", 422, 7),
    "DaemonStopping": ("stopping", 503, 3),
    "IssuerRefused": ("issuer_refused", 409, 1),
    "NotInNetwork": ("no_network", 409, 1),
    "FileNotSent": ("file_not_sent", 409, 1),
    "FileRefused": ("file_refused", 422, 1),
    "AlreadyInNetwork": ("in_network", 409, 1),
}


def test_the_control_errors_have_the_documented_codes():
    found = {
        kind.__name__: (kind.code, kind.http_status, kind.exit_code)
        for kind in ControlError.__subclasses__()
    }
    assert found == CONTROL_ERRORS


def test_exit_codes_say_what_failed():
    assert ShadowMeshError.exit_code == 1
    assert ConfigError.exit_code == 7
    assert errors.NotPermitted.exit_code == 4


def test_every_exception_of_the_module_is_a_shadowmesh_error():
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, BaseException):
            assert issubclass(value, ShadowMeshError), name


def test_errors_carry_their_number():
    assert errors.DeviceError("no device", 19).errno == 19
    assert errors.DeviceError("no device").errno == 0
    assert errors.RemoteProtocolError("short").close_code == 4400
    assert errors.RemoteProtocolError("text frame", 1003).close_code == 1003
    assert errors.LinkClosed("gone").code == 1006
    assert errors.LinkClosed("bye", code=1001).code == 1001


@given(st.text())
def test_an_error_is_one_printable_line_whatever_is_in_it(text):
    assert str(ShadowMeshError(text)).isprintable()
    assert str(Problem(text, 1, text, text)).isprintable()
    assert str(ConfigError([Problem(text, None, None, text)])).isprintable()


def test_printable_text_stays_as_it_is():
    assert str(ShadowMeshError("Zürich: 10 € \\n")) == "Zürich: 10 € \\n"


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\u202eevil", "\\u202eevil"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_could_forge_a_line_or_move_a_cursor_is_escaped(raw, escaped):
    assert errors.one_line(raw) == escaped


def test_a_problem_names_file_line_and_key():
    assert str(Problem("d.yaml", 3, "network.mtu", "too small")) == (
        "d.yaml:3: network.mtu: too small"
    )
    assert str(Problem("flag --x", None, None, "unknown")) == "flag --x: unknown"


def test_a_config_error_tells_the_first_problem_and_reports_all():
    first = Problem("d.yaml", 3, "network.mtu", "too small")
    second = Problem("d.yaml", 4, None, "unknown key")
    error = ConfigError([first, second])
    assert str(error) == f"configuration invalid: {first} (and 1 more)"
    assert error.report() == f"{first}\n{second}"
    assert str(ConfigError([first])) == f"configuration invalid: {first}"
    with pytest.raises(ValueError):
        ConfigError([])
