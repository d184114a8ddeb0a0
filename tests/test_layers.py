"""Imports point one way. Source: architecture, "Module map"."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shadowmesh"

#: from the bottom to the top; a module imports from its own row and the rows above it
LAYERS = (
    {"errors", "constants"},
    {"config", "keys", "sodium", "status", "log", "rate", "histogram", "events", "pcapng", "switches",
     "units", "reasons"},
    {"_fastpath", "_fasthooks", "fast", "wire"},
    {
        "link", "listener", "admission", "upgrade", "dial", "traversal", "paths", "pings", "tap",
        "netlink", "network", "tls", "udp", "device", "hostfacts", "notify", "fdstore",
    },
    {"api", "guard", "http_server", "routes", "openapi", "feed", "dashboard", "health", "vitals",
     "metrics", "connection", "dialler", "verdicts", "tunnel", "probes", "terms", "heartbeat", "view",
     "peer_port", "capture", "explain"},
    {"cli", "client", "daemon", "netcheck", "evidence", "redaction", "benchmark"},
    # not part of the program: hosts out of namespaces, what is shown and measured with them
    {"netlab", "demo", "tunnelbench"},
)  # fmt: skip
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}

#: what a module may not import although its layer would allow it, by the first part of the
#: name; names with a dot are modules of the project
MUST_NOT_KNOW = {
    "errors": {"shadowmesh"},
    "constants": {"shadowmesh"},
    "config": {"socket", "ssl", "gevent", "shadowmesh.log"},
    "keys": {"socket", "ssl", "gevent", "shadowmesh.config"},
    "sodium": {"socket", "ssl", "gevent", "shadowmesh.config"},
    "status": {"gevent", "shadowmesh.config"},
    "log": {"gevent", "shadowmesh.config"},
    "rate": {"time", "gevent"},
    "histogram": {"time", "gevent", "prometheus_client"},
    "events": {"gevent", "shadowmesh.config"},
    "pcapng": {"time", "gevent", "socket", "shadowmesh"},
    "wire": {
        "gevent", "geventwebsocket", "socket", "ssl", "select", "threading", "subprocess",
        "os", "io", "pathlib", "shutil", "tempfile", "time", "datetime", "random", "secrets",
        "logging", "flask", "shadowmesh.log", "shadowmesh.config", "shadowmesh._fastpath",
    },
    "link": {"flask", "shadowmesh.wire.session", "shadowmesh.wire.handshake"},
    "listener": {"flask", "shadowmesh.wire.session", "shadowmesh.wire.handshake"},
    "admission": {"gevent", "socket", "time"},
    "upgrade": {"flask", "shadowmesh.wire.session", "shadowmesh.wire.handshake"},
    "dial": {"flask", "shadowmesh.wire.session", "shadowmesh.wire.handshake"},
    "paths": {"flask", "socket", "shadowmesh.wire.handshake", "shadowmesh.config"},
    "traversal": {"flask", "socket", "shadowmesh.wire.session", "shadowmesh.wire.path"},
    "udp": {"flask", "shadowmesh.wire.session", "shadowmesh.wire.path", "shadowmesh.wire.stun"},
    "network": {"flask", "shadowmesh._fastpath", "shadowmesh.config"},
    "tap": {"gevent", "flask", "shadowmesh.wire", "shadowmesh._fastpath"},
    "device": {"flask", "shadowmesh.wire", "shadowmesh.link"},
    "netlink": {"gevent", "flask", "shadowmesh.config"},
    "notify": {"gevent", "flask", "shadowmesh.config", "shadowmesh.fdstore"},
    "fdstore": {"flask", "shadowmesh.config", "shadowmesh.wire", "shadowmesh._fastpath"},
    "tls": {"flask", "shadowmesh.wire"},
    "api": {"gevent", "shadowmesh.connection", "shadowmesh.tunnel", "shadowmesh.link",
            "shadowmesh.wire", "shadowmesh._fastpath"},
    "routes": {"gevent", "flask", "shadowmesh.connection", "shadowmesh.api"},
    "openapi": {"gevent", "flask", "shadowmesh.connection", "shadowmesh.api"},
    "feed": {"flask", "shadowmesh.connection", "shadowmesh.api", "shadowmesh.guard"},
    "capture": {"flask", "shadowmesh.connection", "shadowmesh.api", "shadowmesh.guard",
                "shadowmesh._fastpath"},
    "dashboard": {"gevent", "flask", "shadowmesh.api", "shadowmesh.connection"},
    "health": {"gevent", "flask", "socket", "shadowmesh.api", "shadowmesh.connection"},
    "vitals": {"gevent", "flask", "shadowmesh.api", "shadowmesh.connection"},
    "guard": {"gevent", "flask", "shadowmesh.connection", "shadowmesh.tunnel"},
    "metrics": {"gevent", "flask", "shadowmesh.connection", "shadowmesh.tunnel",
                "shadowmesh.link", "shadowmesh.wire", "shadowmesh._fastpath"},
    "http_server": {"flask", "shadowmesh.connection", "shadowmesh.api"},
    "connection": {"flask", "shadowmesh.api", "shadowmesh.guard", "shadowmesh.http_server"},
    "dialler": {"flask", "shadowmesh.tunnel", "shadowmesh.connection", "shadowmesh.wire"},
    "verdicts": {"gevent", "flask", "shadowmesh.connection", "shadowmesh.link"},
    "terms": {"gevent", "flask", "shadowmesh.link", "shadowmesh.connection"},
    "tunnel": {"flask", "shadowmesh.config", "shadowmesh.api", "shadowmesh.connection", "shadowmesh.tap"},
    "hostfacts": {"gevent", "flask", "shadowmesh.config", "shadowmesh.wire", "shadowmesh._fastpath"},
    "explain": {"gevent", "flask", "socket", "os", "time", "shadowmesh.netlink",
                "shadowmesh.connection", "shadowmesh.tunnel", "shadowmesh.view", "shadowmesh.api"},
    "heartbeat": {"flask", "shadowmesh.connection", "shadowmesh.link"},
    "view": {"flask", "gevent", "shadowmesh.api"},
    "cli": {"gevent", "flask", "shadowmesh.daemon", "shadowmesh.connection", "shadowmesh.api",
            "shadowmesh.wire", "shadowmesh._fastpath", "shadowmesh.link"},
    "client": {"gevent", "flask", "shadowmesh.daemon", "shadowmesh.connection", "shadowmesh.api"},
    "daemon": {"flask", "shadowmesh.cli", "shadowmesh.client"},
    "evidence": {"gevent", "flask", "click", "shadowmesh.cli", "shadowmesh.daemon"},
    "benchmark": {"gevent", "flask", "click", "shadowmesh.cli", "shadowmesh.daemon"},
    "redaction": {"gevent", "flask", "click", "os", "pathlib", "shadowmesh.config"},
}  # fmt: skip

#: what is used as gevent.NAME after `import gevent`; all else comes from its submodule
GEVENT_TOP = {
    "Greenlet", "GreenletExit", "Timeout", "get_hub", "getcurrent", "idle", "joinall", "kill",
    "killall", "signal_handler", "sleep", "spawn", "spawn_later", "wait",
}  # fmt: skip
#: run on their own or in a process without a hub: waiting there harms nobody
MAY_SLEEP = {"cli", "client", "netlab", "demo", "tunnelbench"}


@dataclass(frozen=True)
class Source:
    """One Python file of the package."""

    path: Path
    #: like `shadowmesh.wire.session`
    name: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The name that the layers know: `wire` for `shadowmesh.wire.session`."""
        return self.name.split(".")[1] if "." in self.name else ""

    def imports(self) -> Iterator[tuple[str, int]]:
        """Give the full name of everything imported, at any depth, and its line."""
        package = self.name.split(".")
        if self.path.name != "__init__.py":
            package = package[:-1]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield alias.name, node.lineno
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    start = package[: len(package) - node.level + 1]
                    base = ".".join([*start, base] if base else start)
                for alias in node.names:
                    yield f"{base}.{alias.name}", node.lineno


def read(path: Path) -> Source:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return Source(path, ".".join(parts), ast.parse(path.read_text(encoding="utf-8"), str(path)))


SOURCES = [read(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = [source.name for source in SOURCES]


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def upward_imports(source: Source) -> list[str]:
    """Return the imports that go to a layer above."""
    found = []
    for name, line in source.imports():
        parts = name.split(".")
        # `from shadowmesh import __version__` is a name of the package itself
        if parts[0] != "shadowmesh" or len(parts) < 2 or parts[1].startswith("__"):
            continue
        target = parts[1]
        if LEVEL.get(target, len(LAYERS)) > LEVEL[source.module]:
            found.append(f"{source.path}:{line}: {source.module} imports {target}")
    return found


def forbidden_imports(source: Source) -> list[str]:
    """Return the imports of what the module must not know."""
    return [
        f"{source.path}:{line}: {source.module} imports {name}"
        for name, line in source.imports()
        for forbidden in MUST_NOT_KNOW.get(source.module, ())
        if within(name, forbidden) and not within(name, f"shadowmesh.{source.module}")
    ]


def gevent_misuse(source: Source) -> list[str]:
    """Return monkey patching, and names of gevent that do not come from their submodule."""
    found = []
    for name, line in source.imports():
        parts = name.split(".")
        if "monkey" in parts:
            found.append(f"{source.path}:{line}: imports {name}")
        from_top = parts[0] == "gevent" and len(parts) == 2 and parts[1] not in GEVENT_TOP
        if from_top and importlib.util.find_spec(name) is None:
            found.append(f"{source.path}:{line}: {name} has a submodule of its own")
    submodules = {name for name, _ in source.imports() if name.startswith("gevent.")}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"gevent.{node.attr}"
            known = node.attr in GEVENT_TOP or any(within(one, name) for one in submodules)
            if node.value.id == "gevent" and not known:
                found.append(f"{source.path}:{node.lineno}: {name} has a submodule of its own")
    return found


def blocking_calls(source: Source) -> list[str]:
    """Return sleeps that would stop every greenlet."""
    return [
        f"{source.path}:{node.lineno}: time.sleep"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute) and node.attr == "sleep"
        if isinstance(node.value, ast.Name) and node.value.id == "time"
    ] + [
        f"{source.path}:{line}: imports {name}"
        for name, line in source.imports()
        if name == "time.sleep"
    ]


def opened_files(source: Source) -> list[str]:
    return [
        f"{source.path}:{node.lineno}: open()"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        if isinstance(node.func, ast.Name) and node.func.id == "open"
    ]


def test_every_module_has_its_layer():
    unplaced = {source.module for source in SOURCES} - {""} - LEVEL.keys()
    assert not unplaced, "put them into LAYERS, and what they must not know into MUST_NOT_KNOW"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_imports_point_downwards(source):
    if source.module:
        assert upward_imports(source) == []
    else:
        assert not [name for name, _ in source.imports() if within(name, "shadowmesh")]


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_module_does_not_import_what_it_must_not_know(source):
    assert forbidden_imports(source) == []


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_gevent_is_used_by_name_and_patches_nothing(source):
    assert gevent_misuse(source) == []


@pytest.mark.parametrize(
    "source",
    [source for source in SOURCES if source.module not in MAY_SLEEP],
    ids=lambda source: source.name,
)
def test_nothing_beside_the_hub_sleeps(source):
    assert blocking_calls(source) == []


@pytest.mark.parametrize(
    "source", [source for source in SOURCES if source.module == "wire"], ids=lambda one: one.name
)
def test_wire_opens_no_file(source):
    assert opened_files(source) == []


def test_no_test_or_script_patches_the_standard_library():
    for folder in ("tests", "perf", "fuzz", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name, line in read(path).imports():
                assert not within(name, "gevent.monkey"), f"{path}:{line}"


def test_the_data_plane_knows_errors_and_constants_only():
    allowed = {"shadowmesh.errors", "shadowmesh.constants"}
    foreign = {"logging", "flask", "yaml", "gevent", "http"}
    pattern = re.compile(r"^\s*(?:from\s+(\S+)\s+import|import\s+(\S+))", re.MULTILINE)
    for match in pattern.finditer((PACKAGE / "_fastpath.pyx").read_text(encoding="utf-8")):
        name = match[1] or match[2]
        assert name in allowed or not within(name, "shadowmesh"), name
        assert name.split(".")[0] not in foreign, name


def test_the_c_parts_of_the_data_plane_touch_no_python_module():
    for path in sorted((PACKAGE / "fast").glob("*.pxd")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"^\s*(?:from\s+\S+\s+)?import\s", text, re.MULTILINE), path


# --- The checks themselves --------------------------------------------------------------------


def fake(name: str, text: str) -> Source:
    path = PACKAGE / Path(*name.split(".")[1:]).with_suffix(".py")
    return Source(path, name, ast.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "import shadowmesh.daemon",
        "from shadowmesh import api",
        "from shadowmesh.link import Link",
        "from .. import connection",
        "from ..tap import open_tap",
        "def late():\n    from ..daemon import main",
        "import shadowmesh.unheard",
    ],
)
def test_an_upward_import_is_found(text):
    assert upward_imports(fake("shadowmesh.wire.session", text))


@pytest.mark.parametrize(
    "text",
    [
        "from . import control", "from .control import x", "from shadowmesh.keys import Identity",
        "from ..errors import ShadowMeshError", "from shadowmesh import __version__",
    ],
)  # fmt: skip
def test_a_downward_import_is_not(text):
    assert not upward_imports(fake("shadowmesh.wire.session", text))


@pytest.mark.parametrize(
    "text",
    [
        "import os", "from os import path", "import time", "import socket", "import gevent.event",
        "import logging", "from shadowmesh import log", "from .. import log", "import ssl as x",
    ],
)  # fmt: skip
def test_what_wire_must_not_know_is_found(text):
    assert forbidden_imports(fake("shadowmesh.wire.session", text))


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("from gevent import monkey", True),
        ("import gevent.monkey", True),
        ("from gevent.monkey import patch_all", True),
        ("import gevent\ngevent.socket.socket()", True),
        ("from gevent import config", True),
        ("import gevent\ngevent.spawn(f)", False),
        ("import gevent.socket\ngevent.socket.socket()", False),
        ("from gevent import socket, Timeout", False),
        ("from gevent.event import Event", False),
    ],
)
def test_misuse_of_gevent_is_found(text, wrong):
    assert bool(gevent_misuse(fake("shadowmesh.link", text))) is wrong


def test_a_sleep_and_an_opened_file_are_found():
    assert blocking_calls(fake("shadowmesh.link", "import time\ntime.sleep(1)"))
    assert blocking_calls(fake("shadowmesh.link", "from time import sleep"))
    assert opened_files(fake("shadowmesh.wire.stun", "open('x')"))
