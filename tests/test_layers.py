"""The house has floors: imports point one way, and what is private to a package stays there.

A package is a folder of `shadowmesh/`; its `__init__` says in `__all__` what the others may use.
Source: architecture, "The floors".
"""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "shadowmesh"

#: from the ground up; a package imports from itself and from the floors below its own
FLOORS = (
    {"base"},
    {"keys"},
    {"config"},
    {"fast", "wire"},
    {"device"},
    {"network"},
    {"insight"},
    {"link", "path"},
    {"peer"},
    {"control"},
    {"cli", "service"},
    # not part of the program: hosts out of namespaces, what is shown and measured with them
    {"netlab"},
)
FLOOR = {package: floor for floor, packages in enumerate(FLOORS) for package in packages}
#: the extension module is the face of fast/
FACES = {"_fastpath": "fast"}

#: what a package or one of its modules may not import although its floor would allow it; names
#: with a dot are of the project
MUST_NOT_KNOW = {
    "base": {"gevent", "socket", "ssl"},
    "base.rate": {"time"},
    "keys": {"gevent", "socket", "ssl"},
    "config": {"gevent", "socket", "ssl", "shadowmesh.base.log"},
    "fast": {"gevent", "flask", "shadowmesh"},
    "wire": {
        "gevent", "geventwebsocket", "socket", "ssl", "select", "threading", "subprocess",
        "os", "io", "pathlib", "shutil", "tempfile", "time", "datetime", "random", "secrets",
        "logging", "flask", "shadowmesh.base.log", "shadowmesh.config",
    },
    "device": {"flask"},
    "device.queues": {"gevent", "shadowmesh.wire", "shadowmesh._fastpath", "shadowmesh.config"},
    "device.tap": {"gevent", "shadowmesh.wire", "shadowmesh._fastpath", "shadowmesh.config"},
    "device.tun": {"gevent", "shadowmesh.wire", "shadowmesh._fastpath", "shadowmesh.config"},
    "device.netlink": {"gevent", "shadowmesh.config"},
    "device.addresses": {"shadowmesh._fastpath", "shadowmesh.config"},
    "device.device": {"shadowmesh.wire"},
    "device.facts": {"gevent", "shadowmesh.config", "shadowmesh.wire", "shadowmesh._fastpath"},
    "device.fdstore": {"shadowmesh.config", "shadowmesh.wire", "shadowmesh._fastpath"},
    "network": {
        "gevent", "socket", "ssl", "flask", "shadowmesh._fastpath", "shadowmesh.device",
        "shadowmesh.base.log",
    },
    "insight": {"flask", "shadowmesh._fastpath"},
    "insight.events": {"gevent", "shadowmesh.config"},
    "insight.explain": {"gevent", "socket", "os", "time"},
    "insight.health": {"gevent", "socket"},
    "insight.histogram": {"time", "gevent", "prometheus_client"},
    "insight.families": {"gevent", "shadowmesh.wire"},
    "insight.metrics": {"gevent", "shadowmesh.wire"},
    "insight.network_metrics": {"gevent", "shadowmesh.wire"},
    "insight.network_health": {"gevent", "socket"},
    "insight.pcapng": {"time", "gevent", "socket", "shadowmesh"},
    "insight.peers": {"gevent", "shadowmesh.config"},
    "insight.status": {"gevent", "shadowmesh.config"},
    "insight.table": {"gevent", "shadowmesh.config"},
    "insight.vitals": {"gevent"},
    "link": {"flask", "shadowmesh._fastpath", "shadowmesh.wire.session", "shadowmesh.wire.handshake"},
    "link.admission": {"gevent", "socket", "time"},
    "link.tls": {"shadowmesh.wire"},
    "path": {"flask", "shadowmesh.wire.handshake"},
    "path.paths": {"socket", "shadowmesh.config"},
    "path.traversal": {"socket", "shadowmesh.wire.session", "shadowmesh.wire.path.machine"},
    "path.udp": {"shadowmesh.wire.session", "shadowmesh.wire.path", "shadowmesh.wire.nat"},
    "peer": {"flask", "shadowmesh.peer.manager"},
    "peer.dialler": {"shadowmesh.wire", "shadowmesh.peer"},
    "peer.endings": {"gevent", "shadowmesh.link", "shadowmesh._fastpath", "shadowmesh.peer"},
    "peer.keying": {"gevent", "shadowmesh.config", "shadowmesh.link", "shadowmesh.path"},
    "peer.pause": {"shadowmesh.wire", "shadowmesh.link", "shadowmesh.path"},
    "peer.mailbox": {"shadowmesh.wire", "shadowmesh.link", "shadowmesh.path"},
    "peer.terms": {"gevent", "shadowmesh.link", "shadowmesh.peer"},
    "peer.tunnel": {
        "shadowmesh.config", "shadowmesh.device", "shadowmesh.peer.common", "shadowmesh.peer.incoming",
        "shadowmesh.peer.outgoing", "shadowmesh.peer.peer",
    },
    "peer.verdicts": {"gevent", "shadowmesh.link", "shadowmesh.peer.peer"},
    "peer.wss": {"shadowmesh.config", "shadowmesh.device", "shadowmesh.path"},
    "control": {
        "shadowmesh._fastpath", "shadowmesh.link", "shadowmesh.path", "shadowmesh.peer",
        "shadowmesh.wire",
    },
    "control.answers": {"gevent", "shadowmesh.control.app"},
    "control.app": {"gevent"},
    "control.dashboard": {"gevent", "flask", "shadowmesh.control.app"},
    "control.feed": {"flask", "shadowmesh.control.app", "shadowmesh.control.guard"},
    "control.guard": {"gevent", "flask"},
    "control.metrics_port": {"gevent", "flask"},
    "control.openapi": {"gevent", "flask", "shadowmesh.control.app"},
    "control.routes": {"gevent", "flask", "shadowmesh.control.app"},
    "control.ports": {"flask"},
    "control.schema": {"gevent", "flask", "shadowmesh.control.routes"},
    "control.server": {"flask", "shadowmesh.control.app"},
    "service": {"flask"},
    "service.hub_lag": {"shadowmesh.peer", "shadowmesh.link"},
    "service.systemd": {"gevent", "shadowmesh.config", "shadowmesh.device"},
    "service.checks": {"gevent", "shadowmesh.control"},
    "service.member_view": {"gevent", "shadowmesh.control"},
    "service.peer_view": {"gevent", "shadowmesh.control"},
    "service.view": {"gevent", "shadowmesh.control"},
    # of the protocol it reads the text of an invitation, so that a mistyped one is told at once
    "cli": {
        "gevent", "flask", "shadowmesh.control", "shadowmesh.link", "shadowmesh.network",
        "shadowmesh.peer", "shadowmesh.wire.control", "shadowmesh.wire.handshake",
        "shadowmesh.wire.liveness", "shadowmesh.wire.mesh.identifiers",
        "shadowmesh.wire.mesh.messages", "shadowmesh.wire.nat", "shadowmesh.wire.path",
        "shadowmesh.wire.peer", "shadowmesh.wire.session", "shadowmesh.wire.standstill",
        "shadowmesh.wire.websocket",
    },
    "cli.benchmark": {"click", "shadowmesh.cli.commands", "shadowmesh.cli.program"},
    "cli.client": {"click", "shadowmesh._fastpath", "shadowmesh.config"},
    "cli.commands": {"shadowmesh._fastpath", "shadowmesh.fast"},
    "cli.evidence": {"click", "shadowmesh.cli.commands", "shadowmesh.cli.program"},
    "cli.program": {"shadowmesh._fastpath", "shadowmesh.fast"},
    "cli.redaction": {"click", "os", "pathlib", "shadowmesh.config"},
    "cli.render": {"shadowmesh._fastpath", "shadowmesh.fast", "shadowmesh.cli.commands"},
    "cli.settings": {"shadowmesh._fastpath", "shadowmesh.fast", "shadowmesh.cli.commands"},
}  # fmt: skip

#: what is used as gevent.NAME after `import gevent`; all else comes from its submodule
GEVENT_TOP = {
    "Greenlet", "GreenletExit", "Timeout", "get_hub", "getcurrent", "idle", "joinall", "kill",
    "killall", "signal_handler", "sleep", "spawn", "spawn_later", "wait",
}  # fmt: skip
#: run on their own or in a process without a hub: waiting there harms nobody
MAY_SLEEP = {"cli", "netlab"}
#: who may ask the wall clock, which anybody can set: what is written into files and certificates.
#: All else keeps its moments in boot or monotonic time; `base.clock.Dates` says them as dates
MAY_ASK_THE_DATE = {
    "base.clock",
    # the age of a snapshot of a daemon of version 0.1, which does not say when it was taken
    "cli.commands.status",
    # dates of files in the archive
    "cli.evidence",
    # pcapng has dates and nothing else
    "insight.capture",
    # from when until when a certificate is valid
    "link.tls",
}
#: what asks it
DATES = {
    "time.time", "time.time_ns", "time.CLOCK_REALTIME", "datetime.now", "datetime.utcnow",
    "datetime.today", "date.today",
}  # fmt: skip
#: how many names a newcomer sees in shadowmesh/
MOST_NAMES = 16


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: Path
    #: like `shadowmesh.wire.session.machine`
    name: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """The name that the floors know: `wire` for `shadowmesh.wire.session.machine`."""
        return package_of(self.name)

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def imports(self) -> Iterator[tuple[str, int]]:
        """Give the full name of everything imported, at any depth, and its line."""
        package = self.name.split(".")
        if not self.is_package:
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

    @property
    def for_annotations(self) -> set[int]:
        """The lines of what is imported under `if TYPE_CHECKING:`."""
        return {
            line
            for node in ast.walk(self.tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for line in range(node.lineno, (node.end_lineno or 0) + 1)
        }

    @property
    def public(self) -> list[str] | None:
        """`__all__`, None without one."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == [
                "__all__"
            ]:
                return list(ast.literal_eval(node.value))
        return None


def package_of(name: str) -> str:
    """`link` for `shadowmesh.link.dial`; "" for the names of shadowmesh itself."""
    parts = name.split(".")
    if len(parts) < 2 or parts[1].startswith("__"):
        return ""
    return FACES.get(parts[1], parts[1])


def read(path: Path) -> Source:
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[-1] == "__init__":
        parts = parts[:-1]
    return Source(path, ".".join(parts), ast.parse(path.read_text(encoding="utf-8"), str(path)))


SOURCES = [read(path) for path in sorted(PACKAGE.rglob("*.py"))]
NAMES = [source.name for source in SOURCES]
PACKAGES = {source.name: source for source in SOURCES if source.is_package}


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def upward_imports(source: Source) -> list[str]:
    """Return the imports that go to the same floor or one above."""
    found = []
    for name, line in source.imports():
        if not within(name, "shadowmesh"):
            continue
        target = package_of(name)
        if target in ("", source.package):
            continue
        if FLOOR.get(target, len(FLOORS)) >= FLOOR[source.package]:
            found.append(f"{source.path}:{line}: {source.package} imports {target}")
    return found


def forbidden_imports(source: Source) -> list[str]:
    """Return the imports of what the module must not know."""
    inside = source.name.removeprefix("shadowmesh.")
    return [
        f"{source.path}:{line}: {source.name} imports {name}"
        for place, forbidden in MUST_NOT_KNOW.items()
        if within(inside, place)
        for name, line in source.imports()
        for one in forbidden
        if within(name, one)
        # What forbids all of the project does not mean the place itself.
        and not (within(f"shadowmesh.{place}", one) and within(name, f"shadowmesh.{place}"))
    ]


def private_imports(source: Source) -> list[str]:
    """Return the imports of what belongs to another package or module alone."""
    found = []
    for name, line in source.imports():
        parts = name.split(".")
        if parts[0] != "shadowmesh":
            continue
        for depth in range(1, len(parts)):
            owner, wanted = ".".join(parts[:depth]), parts[depth]
            if within(source.name, owner) or owner not in PACKAGES:
                continue
            public = PACKAGES[owner].public
            if public is None or wanted not in public:
                found.append(f"{source.path}:{line}: {owner} keeps {wanted} to itself")
        if parts[-1].startswith("_") and parts[-1] not in (*FACES, "__version__"):
            found.append(f"{source.path}:{line}: {name} begins with an underscore")
    return found


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


def asked_dates(source: Source) -> list[str]:
    """Return where the wall clock is asked."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if f"{owner}.{node.attr}" in DATES:
                found.append(f"{source.path}:{node.lineno}: {owner}.{node.attr}")
    return found + [
        f"{source.path}:{line}: imports {name}" for name, line in source.imports() if name in DATES
    ]


def opened_files(source: Source) -> list[str]:
    return [
        f"{source.path}:{node.lineno}: open()"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        if isinstance(node.func, ast.Name) and node.func.id == "open"
    ]


def test_every_package_has_its_floor():
    unplaced = {source.package for source in SOURCES} - {""} - FLOOR.keys()
    assert not unplaced, "put them into FLOORS, and what they must not know into MUST_NOT_KNOW"
    assert all(
        f"shadowmesh.{place}" in [*NAMES, *(f"shadowmesh.{face}" for face in FACES)]
        for place in MUST_NOT_KNOW
    )


def test_no_imports_go_round_in_a_circle():
    """Inside of a package neither; imports for annotations alone do not count."""
    graph = {
        source.name: {
            module
            for name, line in source.imports()
            if line not in source.for_annotations
            for module in [name if name in NAMES else name.rpartition(".")[0]]
            if module in NAMES and module != source.name
        }
        for source in SOURCES
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_a_newcomer_sees_few_names():
    seen = {
        entry.name.partition(".")[0]
        for entry in PACKAGE.iterdir()
        if not entry.name.startswith("__") and entry.suffix != ".so"
    }
    assert len(seen - {"py"}) <= MOST_NAMES, sorted(seen)


@pytest.mark.parametrize(
    "package",
    [one for one in PACKAGES.values() if one.name != "shadowmesh"],
    ids=lambda one: one.name,
)
def test_a_package_says_what_it_owns_and_what_it_does_not_know(package):
    text = ast.get_docstring(package.tree)
    assert text is not None
    assert re.search(r"\b[Oo]wns\b", text)
    assert "does not know" in " ".join(text.lower().split()) or "knows nothing" in text


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_imports_point_downwards(source):
    if source.package:
        assert upward_imports(source) == []
    else:
        assert not [name for name, _ in source.imports() if within(name, "shadowmesh")]


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_what_is_private_to_a_package_is_not_imported_from_outside(source):
    assert private_imports(source) == []


def test_what_is_public_is_used_from_outside():
    """A name that nobody else needs is no part of a package's face."""
    users = [*SOURCES, *(read(path) for path in sorted((ROOT / "scripts").glob("*.py")))]
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].values()
    entries = {entry.replace(":", ".") for entry in programs}
    asked = {
        package.name: entries
        | {
            name
            for source in users
            if not within(source.name, package.name)
            for name, _ in source.imports()
        }
        for package in PACKAGES.values()
        if package.package != "netlab"  # used by tests and measurements
    }
    unused = [
        f"{name}.{public}"
        for name, wanted in asked.items()
        for public in PACKAGES[name].public or ()
        if not any(within(one, f"{name}.{public}") for one in wanted)
    ]
    assert unused == []


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_module_does_not_import_what_it_must_not_know(source):
    assert forbidden_imports(source) == []


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_gevent_is_used_by_name_and_patches_nothing(source):
    assert gevent_misuse(source) == []


@pytest.mark.parametrize(
    "source",
    [source for source in SOURCES if source.package not in MAY_SLEEP],
    ids=lambda source: source.name,
)
def test_nothing_beside_the_hub_sleeps(source):
    assert blocking_calls(source) == []


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_only_who_writes_dates_down_asks_the_wall_clock(source):
    asked = asked_dates(source)
    assert bool(asked) == (source.name.removeprefix("shadowmesh.") in MAY_ASK_THE_DATE), asked


def test_the_data_plane_asks_the_wall_clock_for_captures_alone():
    asking = {
        path.name
        for pattern in ("*.pxd", "*.pxi", "*.pyx", "*.h")
        for path in PACKAGE.rglob(pattern)
        if re.search(r"clock_gettime\(CLOCK_REALTIME|gettimeofday|\btime\(NULL\)", path.read_text())
    }
    assert asking == {"capture.pxd"}


@pytest.mark.parametrize(
    "source", [source for source in SOURCES if source.package == "wire"], ids=lambda one: one.name
)
def test_wire_opens_no_file(source):
    assert opened_files(source) == []


def test_no_test_or_script_patches_the_standard_library():
    for folder in ("tests", "perf", "fuzz", "faults", "scripts"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name, line in read(path).imports():
                assert not within(name, "gevent.monkey"), f"{path}:{line}"


def test_the_data_plane_knows_errors_and_constants_only():
    allowed = {"shadowmesh.base.errors", "shadowmesh.base.constants"}
    foreign = {"logging", "flask", "yaml", "gevent", "http"}
    pattern = re.compile(r"^\s*(?:from\s+(\S+)\s+import|import\s+(\S+))", re.MULTILINE)
    modules = sorted(PACKAGE.rglob("*.pyx"))
    assert len(modules) > 2
    for path in modules:
        for match in pattern.finditer(path.read_text(encoding="utf-8")):
            name = match[1] or match[2]
            assert name in allowed or not within(name, "shadowmesh"), f"{path}: {name}"
            assert name.split(".")[0] not in foreign, f"{path}: {name}"


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
        "import shadowmesh.service.daemon",
        "from shadowmesh import control",
        "from shadowmesh.link import Link",
        "from ... import peer",
        "from ...device.tap import open_tap",
        "def late():\n    from ...service.daemon import main",
        "import shadowmesh.unheard",
        "from shadowmesh import _fastpath",
    ],
)
def test_an_upward_import_is_found(text):
    assert upward_imports(fake("shadowmesh.wire.session.machine", text))


@pytest.mark.parametrize(
    "text",
    [
        "from . import events", "from .control import x", "from shadowmesh.keys import Identity",
        "from ...base.errors import ShadowMeshError", "from shadowmesh import __version__",
    ],
)  # fmt: skip
def test_a_downward_import_is_not(text):
    assert not upward_imports(fake("shadowmesh.wire.session.machine", text))


@pytest.mark.parametrize(
    "text",
    [
        "import os", "from os import path", "import time", "import socket", "import gevent.event",
        "import logging", "from shadowmesh.base import log", "from ...base import log",
        "import ssl as x",
    ],
)  # fmt: skip
def test_what_wire_must_not_know_is_found(text):
    assert forbidden_imports(fake("shadowmesh.wire.session.machine", text))


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        ("shadowmesh.peer.manager", "from shadowmesh.link.admission import Admission", True),
        ("shadowmesh.peer.manager", "from shadowmesh.link import admission", True),
        ("shadowmesh.peer.manager", "from shadowmesh.wire.session.key_table import Keys", True),
        ("shadowmesh.wire.path.machine", "from ..session import key_table", True),
        ("shadowmesh.peer.manager", "from shadowmesh.link.dial import _connect", True),
        ("shadowmesh.peer.manager", "from shadowmesh.link.dial import dial", False),
        ("shadowmesh.link.listener", "from shadowmesh.link.admission import Admission", False),
        ("shadowmesh.wire.session.machine", "from . import key_table", False),
        ("shadowmesh.peer.manager", "from shadowmesh.wire.session import machine", False),
    ],
)
def test_an_import_of_something_private_is_found(name, text, wrong):
    assert bool(private_imports(fake(name, text))) is wrong


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
    assert bool(gevent_misuse(fake("shadowmesh.link.link", text))) is wrong


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("shadowmesh.peer.verdicts", "from shadowmesh.peer.manager import ConnectionManager"),
        ("shadowmesh.peer.tunnel", "from shadowmesh.peer import peer"),
        ("shadowmesh.control.feed", "from shadowmesh.control.app import create_app"),
        ("shadowmesh.cli.render", "from shadowmesh import _fastpath"),
        ("shadowmesh.cli.evidence", "from shadowmesh.cli.program import program"),
    ],
)
def test_what_a_module_must_not_know_of_its_own_package_is_found(name, text):
    assert forbidden_imports(fake(name, text))


def test_a_sleep_and_an_opened_file_are_found():
    assert blocking_calls(fake("shadowmesh.link.link", "import time\ntime.sleep(1)"))
    assert blocking_calls(fake("shadowmesh.link.link", "from time import sleep"))
    assert opened_files(fake("shadowmesh.wire.nat.stun", "open('x')"))
