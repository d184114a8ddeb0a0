"""Fixtures of the whole suite, and the rule for tests that need network namespaces."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, settings

from shadowmesh import netlab
from shadowmesh.base import log
from shadowmesh.config.schema import KEYS

#: The system tests whose daemons and commands count for coverage. The others start hundreds of
#: them, each twice as slow under coverage, and reach nothing that is not reached without them.
COVERED = {f"tests.netns.test_{name}" for name in ("api", "devices", "restart", "tunnel")}
PROGRAMS_OF_THE_LAB = ("ip", "nft", "tcpdump", "ss", "setpriv")


# A job in the background ignores SIGINT, and so would every program that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


# How long the machine takes to make an input says nothing about what is tested with it.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")


@functools.cache
def why_no_namespaces() -> str | None:
    """Return why system tests cannot run here, None when they can."""
    if os.geteuid() != 0:
        return "needs root (or `unshare -Urnm` with a tmpfs on /run)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    missing = [name for name in PROGRAMS_OF_THE_LAB if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: `make test` as root installs what is missing"
    try:
        with netlab.Net():
            return None
    except netlab.NetlabError as error:
        return f"needs the right to make network namespaces: {error}"


@functools.cache
def runs_greenlets(module: ModuleType) -> bool:
    """Whether a test module, or a helper of ours that it imports from, imports gevent."""
    for value in vars(module).values():
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", "")
        if not isinstance(home, str) or home == module.__name__:
            continue
        if home.partition(".")[0] == "gevent":
            return True
        if home.startswith("tests.") and home in sys.modules and runs_greenlets(sys.modules[home]):
            return True
    return False


@pytest.hookimpl(tryfirst=True)  # before the marks are looked at by -m
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        in_lab = item.get_closest_marker("netns")
        home = item.module.__name__
        if home in COVERED or (not in_lab and runs_greenlets(item.module)):
            item.add_marker("greenlets")
    marked = [item for item in items if item.get_closest_marker("netns")]
    # The long files first: what runs side by side then ends at about the same time.
    items.sort(key=lambda item: item.get_closest_marker("netns") is None)
    if marked and (reason := why_no_namespaces()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def shared_directory():
    """A directory of root in which every user may look around, unlike pytest's."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give files away")
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


@pytest.fixture
def as_user():
    """A context in which this process has the rights of another user and of one group."""

    @contextlib.contextmanager
    def run(uid: int, gid: int):
        groups, own_gid = os.getgroups(), os.getegid()
        os.setgroups([])
        os.setegid(gid)
        os.seteuid(uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(own_gid)
            os.setgroups(groups)

    return run


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_this_machine_s_configuration(tmp_path_factory):
    """A ShadowMesh that is installed here, or set by variables, is none of a test's business."""
    nowhere = str(tmp_path_factory.mktemp("no-etc") / "daemon.yaml")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("shadowmesh.config.loader", "shadowmesh.cli.settings"):
            patch.setattr(f"{module}.SYSTEM_CONFIG_FILE", nowhere)
        for name in [*(key.environment for key in KEYS.values()), "STATE_DIRECTORY"]:
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers_of_killed_runs():
    if netlab.NETNS_DIRECTORY.is_dir() and os.geteuid() == 0:
        netlab.sweep()


@pytest.fixture(scope="module", autouse=True)
def _programs_without_coverage(request):
    mine = [item for item in request.session.items if item.module is request.module]
    in_lab = any(item.get_closest_marker("netns") for item in mine)
    with pytest.MonkeyPatch.context() as patch:
        if in_lab and request.module.__name__ not in COVERED:
            patch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)
        yield


@pytest.fixture(scope="module")
def directory(tmp_path_factory, request) -> Path:
    """A directory shared by the tests of one module."""
    return tmp_path_factory.mktemp(request.module.__name__.rpartition(".")[2])


@pytest.fixture(autouse=True)
def _every_test_may_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test has logged holds nothing back in the next."""
    monkeypatch.setattr(log, "_limiter", log._Limiter())


def pytest_terminal_summary(terminalreporter) -> None:
    """Say what tests have measured and want to be read: `record_property("figure", ...)`."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "figure" and report.when == "call":
                terminalreporter.line(value)
