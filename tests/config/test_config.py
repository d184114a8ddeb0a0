"""The configuration: precedence, every rule about a value, and errors that name their place."""

from __future__ import annotations

import copy
import pickle
import re
import time
from ipaddress import ip_interface
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh import config
from shadowmesh.base.errors import ConfigError
from shadowmesh.config import HostPort, loader, values, yamlfile
from shadowmesh.config.model import Secret
from shadowmesh.config.schema import KEYS
from shadowmesh.keys.identity import Identity, format_public_key
from tests.config.conftest import HOME

PSK = "5f1d0c9e8b7a6f5e4d3c2b1a09f8e7d6c5b4a39281706f5e4d3c2b1a0f1e2d3c"
PUBLIC = Identity.from_seed(bytes(range(32))).public_key
PUBLIC_TEXT = format_public_key(PUBLIC)


# --- Where values come from -------------------------------------------------------------------


def test_flags_beat_the_environment_beats_the_file_beats_defaults(load):
    text = "network:\n  mtu: 1301\n  tap_device: file0\n  local_ip: 10.9.0.1/24\n"
    environ = {"SHADOWMESH_NETWORK_MTU": "1302", "SHADOWMESH_NETWORK_TAP_DEVICE": "env0"}
    loaded = load(text, {"network.mtu": "1303"}, environ)
    network = loaded.config.network
    assert network.mtu == 1303
    assert network.tap_device == "env0"
    assert network.local_ip == (ip_interface("10.9.0.1/24"),)
    assert network.persist_tap is False
    assert loaded.sources["network.mtu"] == "flag --network.mtu"
    assert loaded.sources["network.tap_device"] == "environment SHADOWMESH_NETWORK_TAP_DEVICE"
    assert loaded.sources["network.local_ip"] == f"{loaded.path}:4"
    assert loaded.sources["network.persist_tap"] == "default"


def test_every_key_has_an_environment_variable_and_a_flag(load):
    for key in KEYS.values():
        text = PSK if key.secret else key.default
        if text is None:
            continue
        assert load("", {}, {key.environment: text}).sources[key.name].startswith("environment")
        if not key.secret:
            assert load("", {key.name: text}).sources[key.name] == f"flag --{key.name}"
    assert config.flag_names() == tuple(KEYS)
    assert KEYS["network.local_ip"].environment == "SHADOWMESH_NETWORK_LOCAL_IP"


def test_a_wrong_value_is_reported_even_when_a_flag_hides_it(problem):
    found = problem("network:\n  mtu: 5\n", {"network.mtu": "1400"})
    assert (found.line, found.key) == (2, "network.mtu")


def test_the_system_file_comes_before_the_users_and_none_is_fine(tmp_path, monkeypatch):
    system, user = tmp_path / "etc.yaml", tmp_path / ".shadowmesh" / "config.yaml"
    monkeypatch.setattr(loader, "SYSTEM_CONFIG_FILE", str(system))
    environ = {"HOME": str(tmp_path)}
    assert config.load(None, {}, environ).path is None
    user.parent.mkdir()
    user.write_text("network:\n  mtu: 1300\n")
    assert config.load(None, {}, environ).path == user
    system.write_text("network:\n  mtu: 1400\n")
    loaded = config.load(None, {}, environ)
    assert (loaded.path, loaded.config.network.mtu) == (system, 1400)


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no such file") as caught:
        config.load(tmp_path / "absent.yaml", {}, HOME)
    assert caught.value.exit_code == 7


def test_a_file_that_cannot_be_read_is_a_problem_and_not_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(loader, "SYSTEM_CONFIG_FILE", str(tmp_path))  # a directory
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        config.load(None, {}, HOME)


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "daemon:\n", "network: {}\n", "\ufeff", "\ufeffnat:\n"]
)
def test_files_without_keys_give_the_defaults(load, text):
    assert load(text).config == load("").config


@pytest.mark.parametrize(
    ("root", "state_dir", "socket"),
    [
        (True, None, "/run/shadowmesh/api.sock"),
        (True, "/var/lib/shadowmesh", "/run/shadowmesh/api.sock"),
        (True, "/var/lib/other", "/var/lib/other/api.sock"),
        (False, None, "/home/me/.shadowmesh/api.sock"),
    ],
)
def test_every_state_directory_has_a_socket_of_its_own(write, root, state_dir, socket):
    """Or commands for the second daemon of a machine would reach the first."""
    flags = {} if state_dir is None else {"daemon.state_dir": state_dir}
    loaded = config.load(write(""), flags, {"HOME": "/home/me"}, is_root=root)
    assert loaded.config.daemon.api_socket == Path(socket)


def test_the_state_directory_depends_on_root_and_home(write):
    path = write("")
    assert config.load(path, {}, HOME, is_root=True).config.daemon.state_dir == Path(
        "/var/lib/shadowmesh"
    )
    assert config.load(path, {}, HOME, is_root=False).config.daemon.state_dir == Path(
        "/home/somebody/.shadowmesh"
    )
    with pytest.raises(ConfigError, match=r"daemon\.state_dir"):
        config.load(path, {}, {"HOME": "relative"}, is_root=False)


def test_auto_connect_follows_the_address_unless_it_is_set(load):
    assert load("").config.peer.auto_connect is False
    assert load("peer:\n  address: a.example:1\n").config.peer.auto_connect is True
    text = "peer:\n  address: a.example:1\n  auto_connect: no\n"
    assert load(text).config.peer.auto_connect is False


def test_auto_connect_without_an_address_is_refused(problem):
    found = problem("peer:\n  auto_connect: true\n")
    assert (found.line, found.key) == (2, "peer.auto_connect")


# --- The form of the file ---------------------------------------------------------------------


def test_all_problems_of_all_sources_are_reported_at_once(problems):
    text = "network:\n  mtu: 70\n  mut: 1500\nencryptoin:\n  key: x\nnat:\n  enabled: 5\n"
    found = problems(text, {"network.tap_device": "a/b"}, {"SHADOWMESH_PEER_ADDRESS": "nowhere:x"})
    assert [(p.source.rpartition("/")[2], p.line, p.key) for p in found] == [
        ("daemon.yaml", 4, None),
        ("daemon.yaml", 3, "network"),
        ("daemon.yaml", 2, "network.mtu"),
        ("daemon.yaml", 7, "nat.enabled"),
        ("environment SHADOWMESH_PEER_ADDRESS", None, "peer.address"),
        ("flag --network.tap_device", None, "network.tap_device"),
    ]
    assert 'unknown section "encryptoin"; did you mean "encryption"?' in found[0].message
    assert 'unknown key "mut"; did you mean "mtu"?' in found[1].message


def test_a_key_of_another_section_is_pointed_to_its_place(problem):
    found = problem("daemon:\n  mtu: 1500\n")
    assert found.message == 'unknown key "mtu"; did you mean "network.mtu"?'


def test_unknown_flags_and_variables_are_problems(problems):
    environ = {"SHADOWMESH_NETWORK_MUT": "1500", "SHADOWMESH_TESTS": "1", "OTHER": "x"}
    variable, flag = problems("", {"network.mut": "1500"}, environ)
    assert str(variable) == (
        "environment SHADOWMESH_NETWORK_MUT: unknown variable; "
        'did you mean "SHADOWMESH_NETWORK_MTU"?; correct or unset it'
    )
    assert str(flag) == 'flag --network.mut: unknown flag; did you mean "network.mtu"?'


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("network:\n  mtu: 1400\n  mtu: 1500\n", 3, "stands twice, first on line 2"),
        ("network:\n  mtu: 1400\nnetwork:\n  mtu: 1500\n", 3, "stands twice, first on line 1"),
        ("peer: &a\n  address: ''\n", 1, "anchors"),
        ("peer:\n  address: &a ''\n", 2, "anchors"),
        ("nat:\n  stun_server: &a []\n", 2, "anchors"),
        ("peer:\n  address: *a\n", 2, "aliases"),
        ("peer:\n  <<: *a\n", 2, "aliases"),
        ("peer:\n  address: !!python/object/apply:os.getpid []\n", 2, "tags"),
        ("peer:\n  address: !secret x\n", 2, "tags"),
        ("peer: !!map {}\n", 1, "tags"),
        ("- network\n", 1, "must hold sections"),
        ("network\n", 1, "must hold sections"),
        ("network: tap0\n", 1, "must be a section of keys"),
        ("network: [mtu]\n", 1, "must be a section of keys"),
        ("? [network]\n: x\n", 1, "a name must be plain text"),
        ("network:\n  ? {a: b}\n  : x\n", 2, "a name must be plain text"),
        ("network:\n  mtu: 1500\n---\nnetwork:\n", 3, "a second document"),
        ("network:\n  mtu: 1500\n tap: x\n", 3, "is not valid YAML"),
        ('network:\n  tap_device: "tap', 2, "is not valid YAML"),
        ("network:\n  mtu: [1500", None, "is not valid YAML"),
        ("network:\n\tmtu: 1500\n", 2, "is not valid YAML"),
        ("websocket:\n  listen_address: [::]:9001\n", 2, "is not valid YAML"),
        (b"network:\n  mtu: 1500\n\0", 3, "NUL byte"),
        (b"network:\n  mtu: 1500 # \x1b[1m", 2, "U+001B"),
        (b"network:\n  tap_device: t\xe4p\n", 2, "is not UTF-8: byte 0xe4"),
        ("network:\n".encode("utf-16"), 1, "is not UTF-8"),
        (b"#" * (1 << 20) + b"\n", None, "is larger than 1048576 bytes"),
        (b"[" * 1_000_000, None, "nested too deeply"),
    ],
)  # fmt: skip
def test_a_file_of_the_wrong_form_is_refused_with_the_line(problems, text, line, words):
    matching = [found for found in problems(text) if words in found.message]
    assert matching, problems(text)
    assert line is None or line in {found.line for found in matching}


def test_a_file_of_exactly_the_largest_size_is_read(load):
    assert load(b"#" * ((1 << 20) - 1) + b"\n").config == load("").config


def test_problems_before_a_syntax_error_are_reported_with_it(problems):
    first, second = problems("network:\n  mtu: &a 1400\n  x: 'un\n")
    assert (first.line, second.line is not None) == (2, True)
    assert "YAML" in second.message


@pytest.mark.parametrize(
    "text",
    [
        b"daemon:\n  a: 1\n" * 60_000,
        b"".join(b"k%d:\n" % i for i in range(100_000)),
        b"daemon:\n" + b"".join(b"  k%d: 1\n" % i for i in range(80_000)),
        b"{" * 1_000_000,
        b"a: {" * 250_000,
        b"- " * 500_000,
        b"&a " * 300_000,
        b"peers: [" + b"{}," * 300_000 + b"]",
        b"peers:\n" + b"- {name: a}\n" * 80_000,
        b"peers:\n- allowed_macs: [" + b"2," * 500_000 + b"]",
        b"network:\n  mtu: " + b"1" * 1_000_000,
        b"a" * 1_000_000 + b": 1",
    ],
    ids=lambda text: repr(text[:8]),
)
def test_hostile_files_cost_little_and_end_in_a_bounded_report(problems, text):
    start = time.process_time()
    found = problems(text)
    # a bound against quadratic behaviour (minutes), not a measurement
    assert time.process_time() - start < 20
    assert len(found) <= 3 * yamlfile.MAX_PROBLEMS + len(KEYS)
    assert all(len(str(one)) < 1000 for one in found)


@given(st.binary(max_size=300))
def test_any_bytes_end_in_content_or_problems(data):
    content = yamlfile.parse(data, "file")
    assert all(entry.line >= 1 for entry in content.entries)


@given(
    st.lists(
        st.sampled_from(
            [
                "network",
                "daemon",
                ":",
                "\n",
                " ",
                "  ",
                "- ",
                "[",
                "]",
                "{",
                "}",
                "&a",
                "*a",
                "!x",
                "'",
                '"',
                "|",
                ">",
                "#",
                "? ",
                "1",
                "1500",
                "true",
                "~",
                "---\n",
                "...",
                ",",
            ]
        ),
        max_size=30,
    )
)
def test_any_pieces_of_yaml_end_in_content_or_problems(pieces):
    text = "".join(pieces)
    content = yamlfile.parse(text.encode(), "file")
    try:
        expected = yaml.compose(text, yaml.SafeLoader)
    except yaml.YAMLError:
        assert content.problems
        return
    if not content.problems and isinstance(expected, yaml.MappingNode):
        names = [name.value for name, _ in expected.value]
        assert list(content.sections) == ["" if name == "~" else name for name in names]


# --- Values -----------------------------------------------------------------------------------

WRONG = {
    "daemon.listen_address": [
        "", "9090", ":9090", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536",
        "127.0.0.1:x", "127.0.0.1:+80", "127.0.0.1:080", "::1:9090", "[::1]", "[::1]9090",
        "[127.0.0.1]:9090", "[::g]:1", "10.0.0.256:1", "127.1:1", "a b:1", "a..b:1", "-a:1",
        "bücher.example:1", "a" * 64 + ":1", "http://x:1", "x/y:1",
    ],
    "daemon.log_level": ["", "INFO", "warning", "trace"],
    "daemon.log_format": ["", "xml"],
    "daemon.api_socket": ["api.sock", "~/api.sock", "/tmp/a\nb", "/" + "a" * 100],
    "daemon.pid_file": ["shadowmesh.pid", "~/pid", "/tmp/a\nb", "/" + "a" * 5000],
    "daemon.state_dir": ["", "state"],
    "network.tap_device": [
        "sixteen-bytes-ab", "a/b", "a b", "a\tb", ".", "..", "a:b", "tap%d", "täp", "-x",
        "all", "default",
    ],
    "network.local_ip": [
        "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/255.255.255.0", "10.0.0.0/24",
        "10.0.0.255/24", "127.0.0.1/8", "127.5.5.5/24", "224.0.0.1/24", "0.0.0.0/0", "10.0.0.1/0",
        "0.1.2.3/8", "255.255.255.255/32", "240.0.0.1/24", "::1/128", "::/0", "ff02::1/64",
        "fd00::/64", "fd00::1", "fd00::1/129", "fe80::1%eth0/64", "::ffff:10.0.0.1/120", "x/24",
        "010.0.0.1/24", "10.0.0.1/-1", "10.0.0.1/024", "10.0.0.1/24,", ",", "10.0.0.1/24 fd00::1/64",
        "10.0.0.1/24,10.0.0.1/16", "fd00::1/64,fd00:0::1/64", "10.0.0.1/24,10.0.1.255/24",
        ",".join(f"10.0.{n}.1/24" for n in range(9)),
    ],
    "network.mtu": ["", "1279", "9001", "-1500", "1500.0", "0x5dc", "1_500", "01500", "x", "१५००"],
    "network.persist_tap": ["", "maybe", "2"],
    "network.offload": ["", "auto"],
    "network.queues": ["", "0", "5", "-1", "many", "1.5", "AUTO"],
    "network.realtime": ["", "2", "fifo"],
    "encryption.cipher": ["", "aes-256-gcm", "AUTO"],
    "encryption.rotation_interval": ["", "9s", "121s", "1h", "120", "2 m", "-60s", "infs", "1e2s"],
    "peer.address": [
        "9001", "peer:0", "peer:", "[::1", "[peer]", "2001:db8::1:9001", "https://peer", "peer/x", "a@b:1",
        "0.0.0.0", "::", "0.0.0.0:9001", "[::]:9001", "224.0.0.1:9001", "[ff02::1]:9001",
        "255.255.255.255:9001",
    ],
    "peer.public_key": ["x", PUBLIC_TEXT[:-1], PSK, "A" * 43 + "="],
    "peer.auto_connect": ["", "maybe"],
    "mesh.max_macs": ["", "255", "32769", "many"],
    "mesh.broadcast": ["", "some"],
    "mesh.announce": ["0.0.0.0:1", "a:0", "a:1,,b:1", ",".join(f"s{i}:1" for i in range(9))],
    "nat.enabled": ["", "auto"],
    "nat.stun_server": ["stun", "a:1,b", "a:1,,b:1", ",".join(f"s{i}:1" for i in range(9))],
    "nat.detection_timeout": ["", "499ms", "61s", "5"],
    "nat.hole_punch_timeout": ["", "99ms", "11s", "0.05s"],
    "nat.udp_port": ["", "-1", "65536"],
    "websocket.listen_address": ["9001", "[::]:65536", ":9001"],
    "websocket.path": ["", "x", "/a?b", "/a#b", "/a b", "/a%20", "//a", "/../a", "/a/.", "/" * 300,
                       "/é", "/" + "a" * 256],
    "websocket.tls_cert": ["", "cert.pem"],
    "websocket.tls_key": ["", "key.pem"],
    "websocket.require_direct_tls": ["", "perhaps"],
    "websocket.keepalive_interval": ["", "499ms", "121s"],
    "websocket.read_timeout": ["", "999ms", "601s"],
    "websocket.write_timeout": ["", "999ms", "601s"],
    "monitoring.metrics_enabled": ["", "perhaps"],
    "monitoring.prometheus_port": ["", "-1", "65536"],
}  # fmt: skip


def test_the_table_of_wrong_values_covers_every_key():
    assert WRONG.keys() == KEYS.keys() - {"encryption.key"}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_values_are_refused_with_the_name_of_the_key(problem, name):
    for text in WRONG[name]:
        found = problem("", {name: text})
        assert (found.source, found.key) == (f"flag --{name}", name), text
        assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("daemon.listen_address", "localhost:1", HostPort("localhost", 1)),
        ("daemon.listen_address", "[0:0:0:0:0:0:0:1]:65535", HostPort("::1", 65535)),
        ("daemon.pid_file", "", None),
        ("daemon.api_socket", "", None),
        ("daemon.api_socket", "/" + "a" * 99, Path("/" + "a" * 99)),
        ("network.tap_device", "fifteen-bytes-a", "fifteen-bytes-a"),
        ("network.tap_device", "", ""),
        ("network.local_ip", "", ()),
        ("network.local_ip", " ", ()),
        ("network.local_ip", "fd00::1/64", (ip_interface("fd00::1/64"),)),
        ("network.local_ip", "10.0.0.0/31", (ip_interface("10.0.0.0/31"),)),
        ("network.local_ip", "10.0.0.7/32", (ip_interface("10.0.0.7/32"),)),
        ("network.local_ip", "fd00::/127", (ip_interface("fd00::/127"),)),
        (
            "network.local_ip",
            "10.0.0.1/24, fd00::1/64",
            (ip_interface("10.0.0.1/24"), ip_interface("fd00::1/64")),
        ),
        ("network.mtu", "1280", 1280),
        ("network.mtu", "9000", 9000),
        ("network.persist_tap", "Yes", True),
        ("network.offload", "0", False),
        ("network.queues", "4", 4),
        ("network.queues", "auto", "auto"),
        ("network.realtime", "true", True),
        ("encryption.rotation_interval", "2m", 120.0),
        ("encryption.rotation_interval", "10s", 10.0),
        ("encryption.rotation_interval", "10500ms", 10.5),
        ("peer.address", "[fe80::1%eth0]:9001", HostPort("fe80::1%eth0", 9001)),
        ("peer.address", "peer.example", HostPort("peer.example", 9001)),
        ("peer.address", "192.0.2.1", HostPort("192.0.2.1", 9001)),
        ("peer.address", "[2001:db8::1]", HostPort("2001:db8::1", 9001)),
        ("peer.address", "2001:db8::1", HostPort("2001:db8::1", 9001)),
        ("peer.address", "2001:db8::1:beef", HostPort("2001:db8::1:beef", 9001)),
        ("peer.address", "2001:db8:0:0:0:0:0:1", HostPort("2001:db8::1", 9001)),
        ("peer.address", "fe80::1%eth0", HostPort("fe80::1%eth0", 9001)),
        ("peer.address", "peer_1.example.com.:1", HostPort("peer_1.example.com.", 1)),
        ("peer.public_key", PUBLIC_TEXT, PUBLIC),
        ("nat.stun_server", "", ()),
        ("nat.stun_server", "a:1, [::1]:2", (HostPort("a", 1), HostPort("::1", 2))),
        ("nat.udp_port", "0", 0),
        ("websocket.listen_address", "", None),
        ("websocket.listen_address", "127.0.0.1:0", HostPort("127.0.0.1", 0)),
        ("websocket.path", "/", "/"),
        ("websocket.read_timeout", "0.5m", 30.0),
        ("monitoring.prometheus_port", "0", 0),
    ],
)
def test_values_at_the_edge_are_taken(load, name, text, value):
    flags = {name: text, "websocket.keepalive_interval": "1s"}
    loaded = load("", flags).config
    section, _, attribute = name.partition(".")
    assert getattr(getattr(loaded, section), attribute) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("network:\n  mtu: '1500'\n", 'must be a whole number, got "1500", which is text'),
        ("network:\n  mtu: 1500.5\n", "must be a whole number"),
        ("network:\n  mtu: true\n", "must be a whole number"),
        ("network:\n  mtu:\n", "must be a whole number, got nothing"),
        ("network:\n  mtu: [1500]\n", "must be a whole number, got a list"),
        ("network:\n  mtu: {a: 1}\n", "must be a whole number, got a structure"),
        ("network:\n  tap_device: 12\n", 'must be text, got "12"; put it in quotes'),
        ("network:\n  tap_device: no\n", 'must be text, got "no"; put it in quotes'),
        ("network:\n  persist_tap: 'yes'\n", "must be true or false"),
        ("network:\n  persist_tap: 1\n", "must be true or false"),
        ("network:\n  local_ip: [10.0.0.1/24, 5]\n", "every item of the list must be text"),
        ("nat:\n  stun_server: [a:1, 5]\n", "every item of the list must be text"),
        ("nat:\n  stun_server: [[a:1]]\n", "every item of the list must be text"),
        ("nat:\n  stun_server: ['a:1,b:1']\n", "every item of the list must be text"),
        ("nat:\n  stun_server: {a: 1}\n", "must be text or a list of texts, got a structure"),
        ("nat:\n  detection_timeout: 5\n", "must be a number and a unit"),
        ("daemon:\n  listen_address: 12:30\n", "must be text"),
    ],
)
def test_wrong_types_in_the_file_are_refused(problem, text, words):
    found = problem(text)
    assert words in found.message
    assert found.line == 2


def test_lists_may_be_written_in_both_ways(load):
    expected = (HostPort("a", 1), HostPort("b", 2))
    for text in ("[a:1, b:2]", "\n    - a:1\n    - b:2", "a:1,b:2"):
        loaded = load(f"nat:\n  stun_server: {text}\n").config
        assert loaded.nat.stun_server == expected


def test_an_empty_value_in_the_file_means_unset_where_that_exists(load):
    text = "network:\n  local_ip:\npeer:\n  address: ~\n  public_key:\nencryption:\n  key:\n"
    loaded = load(text).config
    assert loaded.network.local_ip == ()
    assert loaded.peer.address is None
    assert loaded.mode == 0


@given(st.floats(min_value=0.001, max_value=1000))
def test_a_printed_duration_reads_back(seconds):
    seconds = round(seconds, 3)
    assert values.duration(0, 2000)(values.format_duration(seconds)) == pytest.approx(seconds)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_a_printed_address_reads_back(address, port):
    value = HostPort(str(address), port)
    assert values.listen(str(value)) == value


@given(st.text(max_size=40))
def test_no_text_makes_a_parser_fail_in_another_way_than_valueerror(text):
    for key in KEYS.values():
        try:
            key.parse(text)
        except ValueError as error:
            assert str(error)


# --- Rules between keys -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "blamed"),
    [
        ({"websocket.read_timeout": "30s"}, "websocket.read_timeout"),
        ({"websocket.keepalive_interval": "60s"}, "websocket.keepalive_interval"),
        ({"websocket.tls_key": "/etc/shadowmesh/cert.pem"}, "websocket.tls_key"),
        ({"peer.address": "10.0.0.2:9001"}, "peer.address"),
        (
            {"peer.address": "[fd00::2]:9001", "network.local_ip": "fd00::1/64"},
            "peer.address",
        ),
        ({"peer.address": "127.0.0.1:9001"}, "peer.address"),
        ({"peer.address": "[::1]"}, "peer.address"),
        ({"peer.address": "localhost"}, "peer.address"),
        (
            {"peer.address": "[fd00::2]:9001", "network.local_ip": "10.0.0.1/24,fd00::1/64"},
            "peer.address",
        ),
        ({"daemon.listen_address": "127.0.0.1:9001"}, "daemon.listen_address"),
        ({"daemon.listen_address": "127.0.0.1:9091"}, "daemon.listen_address"),
        ({"websocket.listen_address": "0.0.0.0:9090"}, "websocket.listen_address"),
        ({"monitoring.prometheus_port": "9090"}, "monitoring.prometheus_port"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(problem, flags, blamed):
    assert problem("", flags).key == blamed


@pytest.mark.parametrize(
    "flags",
    [
        {"daemon.listen_address": "127.0.0.1:9001", "websocket.listen_address": ""},
        {"daemon.listen_address": "127.0.0.1:9091", "monitoring.metrics_enabled": "false"},
        {"daemon.listen_address": "127.0.0.2:9091"},
        {"websocket.listen_address": "192.0.2.1:9090"},
        {"nat.udp_port": "9090"},
        {"peer.address": "10.0.1.2:9001"},
        {"peer.address": "127.0.0.1:9002"},
        {"peer.address": "127.0.0.1:9001", "websocket.listen_address": ""},
        {"peer.address": "10.0.0.2:9001", "network.local_ip": ""},
    ],
)
def test_keys_that_only_look_alike_are_taken(load, flags):
    load("", flags)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "https://vpn.example/shadowmesh",
            'is a URL, host:port is wanted; write "vpn.example:443"',
        ),
        ("wss://u:p@vpn.example:9001/x", 'write "vpn.example:9001" (the path is websocket.path)'),
        ("vpn.example:9001/x", "write only its host and port"),
        ("2001:db8::1:9001", "write [2001:db8::1:9001]:9001 or [2001:db8::1]:9001"),
        ("10.0.0.7", "the network inside the tunnel"),
        ("localhost:9001", "is this daemon itself"),
    ],
)
def test_an_address_that_cannot_be_a_peers_has_its_own_hint(problem, text, words):
    assert words in problem("", {"peer.address": text}).message


@given(st.text(alphabet="0123456789abcdef:[].%/@p", max_size=30))
def test_any_text_is_a_peer_or_a_value_error(text):
    try:
        found = values.peer(text)
    except ValueError:
        return
    assert values.peer(str(found)) == found


# --- Secrets ----------------------------------------------------------------------------------

WRONG_KEYS = {
    "too short": PSK[:-2],
    "too long": PSK + "00",
    "not hex": PSK[:-1] + "g",
    "zero": "00" * 32,
    "the sample of the document": "0123456789abcdef" * 4,
    "the sample in capitals": "0123456789ABCDEF" * 4,
    "15 distinct bytes": bytes([*range(100, 114)] * 2 + [200] * 4).hex(),
}


@pytest.mark.parametrize("key", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_weak_keys_are_refused_without_being_shown(problem, key):
    for found in (
        problem(f"encryption:\n  key: '{key}'\n"),
        problem("", {}, {"SHADOWMESH_ENCRYPTION_KEY": key}),
    ):
        assert found.key == "encryption.key"
        assert key[:8] not in str(found)
        assert key[-8:] not in str(found)


def test_a_key_of_16_distinct_bytes_is_taken(load):
    key = bytes([*range(100, 116)] * 2).hex()
    loaded = load(f"encryption:\n  key: {key}\n").config
    assert loaded.encryption.key == Secret(bytes.fromhex(key))


@pytest.mark.parametrize("form", ["{:02d}", "{:02o}"])
def test_a_key_of_digits_only_needs_no_quotes(load, form):
    # YAML sees whole numbers, the second one octal
    digits = "".join(form.format(number) for number in range(1, 33))
    loaded = load(f"encryption:\n  key: {digits}\n").config
    assert loaded.encryption.key == Secret(bytes.fromhex(digits))


def test_a_key_on_the_command_line_is_refused_whatever_it_is(problem):
    found = problem("", {"encryption.key": PSK})
    assert found.source == "flag --encryption.key"
    assert "SHADOWMESH_ENCRYPTION_KEY" in found.message
    assert PSK[:8] not in str(found)


@pytest.mark.parametrize(
    "text",
    [
        f"encryption: {PSK}\n",
        f"encryption:\n  {PSK}: x\n",
        f"encryption:\n  key: [{PSK}]\n",
        f"encryption:\n  key: {{{PSK}: 1}}\n",
        f"encryption:\n  kye: {PSK}\n",
        f"encryption:\n  key: {PSK}x\n",
        f"encryption:\n  key: '{PSK}\n",
        f"encryption:\n  key: !{PSK} x\n",
        f"encryption:\n  key: *{PSK}\n",
        f"encryption:\n  {PSK}: 1\n  {PSK}: 2\n",
        f"encryption:\n  cipher: {PSK}\n",
        f"encryption:\n  rotation_interval: {PSK}\n",
        f"{PSK}: 1\n{PSK}: 1\n",
        f"peer:\n  public_key: {PSK}\n",
        f"peer:\n  address: {PSK}\n",
        f"network:\n  tap_device: {PSK}\n",
        f"network:\n  mtu: {PSK}\n",
        f"websocket:\n  listen_address: {PSK}\n",
        f"websocket:\n  listen_address: {PSK}:99999\n",
        f"websocket:\n  listen_address: a.{PSK}:99999\n",
        f"websocket:\n  path: {PSK}\n",
        f"websocket:\n  tls_key: {PSK}\n",
        f"peers: {PSK}\n",
        f"peers: [{PSK}]\n",
        f"peers:\n  - {PSK}: x\n",
        f"peers:\n  - name: {PSK}\n    address: {PSK}\n    public_key: {PSK}\n",
        f"peers:\n  - tunnel_ips: [{PSK}]\n    allowed_macs: {PSK}\n    auto_connect: {PSK}\n",
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated_in_errors(problems, text):
    for found in problems(text):
        assert not re.search(f"{PSK[:8]}|{PSK[-8:]}", str(found))


def test_a_secret_shows_itself_nowhere():
    secret = Secret(bytes.fromhex(PSK))
    for text in (str(secret), repr(secret), f"{secret}", f"{secret!r:>5}", "%s" % [secret]):
        assert text in {"***", "[***]", "  ***"}
    assert secret == Secret(bytes.fromhex(PSK))
    assert secret != Secret(bytes(32))
    assert secret != bytes.fromhex(PSK)
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            leak(secret)


def test_the_whole_configuration_prints_without_the_key(load):
    loaded = load(f"encryption:\n  key: {PSK}\n")
    assert PSK not in repr(loaded)
    assert bytes.fromhex(PSK).hex() not in config.redacted(loaded)
    assert repr(bytes.fromhex(PSK)) not in repr(loaded)


# --- Modes and warnings -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("", 0),
        (f"encryption:\n  key: {PSK}\n", 1),
        (f"peer:\n  public_key: {PUBLIC_TEXT}\n", 2),
        (f"encryption:\n  key: {PSK}\npeer:\n  public_key: {PUBLIC_TEXT}\n", 3),
    ],
)
def test_the_mode_byte_says_which_keys_are_set(load, text, mode):
    assert load(text).config.mode == mode


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o644, 0o660, 0o666, 0o601])
def test_a_key_in_a_file_that_is_open_to_others_is_refused(load, mode):
    with pytest.raises(ConfigError, match=rf":2: encryption\.key: .*mode {mode:04o}.*chmod 600"):
        load(f"encryption:\n  key: {PSK}\n", mode=mode)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_key_in_a_file_for_its_owner_alone_is_accepted(load, mode):
    text = f"encryption:\n  key: {PSK}\npeer:\n  public_key: {PUBLIC_TEXT}\n"
    assert load(text, mode=mode).warnings == ()


def test_a_file_without_a_secret_may_be_open_and_is_warned_of_when_it_can_be_changed(load):
    text = f"peer:\n  public_key: {PUBLIC_TEXT}\nencryption:\n  key:\n"
    assert load(text, mode=0o644).warnings == ()
    assert "may be changed by others" in load(text, mode=0o666).warnings[0]


def test_an_open_file_without_the_key_gives_no_warning(load):
    text = f"peer:\n  public_key: {PUBLIC_TEXT}\n"
    assert load(text, {}, {"SHADOWMESH_ENCRYPTION_KEY": PSK}, mode=0o644).warnings == ()


def test_missing_keys_and_a_public_api_give_warnings(load):
    assert "neither peer.public_key nor encryption.key" in load("").warnings[0]
    assert "pose as anybody" in load(f"encryption:\n  key: {PSK}\n").warnings[0]
    pinned = f"peer:\n  public_key: {PUBLIC_TEXT}\n"
    for host in ("0.0.0.0", "[::]", "192.0.2.1", "example.com"):
        (warning,) = load(pinned, {"daemon.listen_address": f"{host}:9"}).warnings
        assert "clear text" in warning
    for host in ("localhost", "[::1]", "127.9.9.9"):
        assert load(pinned, {"daemon.listen_address": f"{host}:9"}).warnings == ()


# --- Without a TAP device ---------------------------------------------------------------------

PINNED = f"peer:\n  public_key: {PUBLIC_TEXT}\n"


@pytest.mark.parametrize(
    "shipped", ["", "  local_ip: 10.0.0.1/24\n  queues: auto\n", '  local_ip: ""\n']
)
def test_without_a_device_what_is_of_it_has_one_value_and_the_defaults_say_nothing(load, shipped):
    loaded = load(f'{PINNED}network:\n  tap_device: ""\n{shipped}')
    network = loaded.config.network
    assert network.headless
    assert (network.local_ip, network.persist_tap, network.queues) == ((), False, "auto")
    # Said of this side it would be so for the devices of all peers.
    assert network.offload
    assert loaded.warnings == ()
    assert loaded.sources["network.local_ip"] == f"{loaded.path}:4"
    assert load(config.redacted(loaded)).config == loaded.config


def test_what_is_set_of_a_device_that_is_not_there_is_not_used_and_that_is_told(load):
    text = (
        "  local_ip: 10.9.0.1/24\n  mtu: 1400\n  offload: false\n  persist_tap: true\n  queues: 2\n"
    )
    loaded = load(f"{PINNED}network:\n{text}", {"network.tap_device": ""})
    assert loaded.config.network.local_ip == ()
    assert loaded.config.network.offload
    assert loaded.config.network.mtu == 1400
    (warning,) = loaded.warnings
    assert "there is no TAP device" in warning
    assert (
        "remove network.local_ip, network.persist_tap, network.offload and network.queues"
        in warning
    )


def test_without_a_device_no_peer_lies_inside_of_the_tunnel(load, problem):
    flags = {"peer.address": "10.0.0.2:9001"}
    assert "the network inside the tunnel" in problem("", flags).message
    load("", {**flags, "network.tap_device": ""})


def test_a_device_is_done_without_only_where_that_is_written(problem):
    assert "must be text, got nothing" in problem("network:\n  tap_device:\n").message


def test_a_device_that_comes_or_goes_waits_for_a_restart(load):
    old, new = load(PINNED).config, load(f'{PINNED}network:\n  tap_device: ""\n').config
    for one, other in ((old, new), (new, old)):
        assert config.diff(one, other) == ((), ("network.tap_device", "network.local_ip"))


# --- Report and reload ------------------------------------------------------------------------


def test_the_redacted_text_is_yaml_with_every_key_and_its_source(load):
    loaded = load(
        f"encryption:\n  key: {PSK}\npeer:\n  public_key: {PUBLIC_TEXT}\n",
        {"nat.stun_server": "a:1,[::1]:2", "peer.address": "[2001:db8::1]:9001"},
        {"SHADOWMESH_NAT_HOLE_PUNCH_TIMEOUT": "250ms"},
    )
    text = config.redacted(loaded)
    parsed = yaml.safe_load(text)
    names = {f"{section}.{key}" for section, keys in parsed.items() for key in keys}
    assert names == KEYS.keys()
    assert parsed["encryption"]["key"] == "***"
    assert parsed["peer"] == {
        "address": "[2001:db8::1]:9001", "public_key": PUBLIC_TEXT, "auto_connect": True,
    }  # fmt: skip
    assert parsed["nat"]["stun_server"] == ["a:1", "[::1]:2"]
    lines = text.splitlines()
    assert f'  key: "***"  # {loaded.path}:2' in lines
    assert "  hole_punch_timeout: 250ms  # environment SHADOWMESH_NAT_HOLE_PUNCH_TIMEOUT" in lines
    assert "  mtu: 1500  # default" in lines


def test_the_redacted_text_without_secrets_loads_to_the_same_configuration(load):
    loaded = load("network:\n  local_ip: ''\ndaemon:\n  pid_file: ''\nnat:\n  stun_server: []\n")
    assert load(config.redacted(loaded)).config == loaded.config


def test_a_reload_applies_some_keys_and_names_those_that_need_a_restart(load):
    old = load("").config
    assert config.diff(old, old) == ((), ())
    new = load(
        f"daemon:\n  log_level: debug\nencryption:\n  key: {PSK}\nnetwork:\n  mtu: 1400\n"
        "peer:\n  address: a.example:1\n"
    ).config
    assert config.diff(old, new) == (
        ("daemon.log_level", "encryption.key", "peer.address", "peer.auto_connect"),
        ("network.mtu",),
    )


def test_after_a_reload_a_key_that_waits_keeps_its_value_and_its_source(load):
    old, new = (
        load("network:\n  queues: 2\n"),
        load("daemon:\n  log_level: debug\nnetwork:\n  mtu: 1400\n"),
    )
    found = config.in_force(old, new)
    assert (found.config.daemon.log_level, found.config.network.mtu) == ("debug", 1500)
    assert found.config.network.queues == 2
    assert found.sources["daemon.log_level"] == f"{new.path}:2"
    assert found.sources["network.mtu"] == "default"
    assert found.sources["network.queues"] == f"{old.path}:2"


def test_a_changed_pre_shared_key_is_a_change(load):
    first = load(f"encryption:\n  key: {PSK}\n").config
    second = load(f"encryption:\n  key: {PSK[:-1]}0\n").config
    assert config.diff(first, second) == (("encryption.key",), ())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("''", 'local_ip: ""'),
        ("10.0.0.1/24", 'local_ip: "10.0.0.1/24"'),
        ("[10.0.0.1/24]", 'local_ip: "10.0.0.1/24"'),
        ("10.0.0.1/24,fd00::1/64", 'local_ip: ["10.0.0.1/24", "fd00::1/64"]'),
        ("[10.0.0.1/24, fd00::1/64]", 'local_ip: ["10.0.0.1/24", "fd00::1/64"]'),
    ],
)
def test_one_address_is_shown_as_text_and_several_as_a_list(load, text, shown):
    printed = config.redacted(load(f"network:\n  local_ip: {text}\n"))
    assert f"  {shown}  # " in printed
    again = load(printed).config
    assert again.network == load(f"network:\n  local_ip: {text}\n").config.network
