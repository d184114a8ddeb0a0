"""Nodes that are taken down after each test, and a check that a module leaves nothing of them."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.fastpath import rig


@pytest.fixture
def make() -> Iterator[Callable[..., rig.Node]]:
    """Makes nodes; closes them after the test."""
    nodes: list[rig.Node] = []

    def build(**options: Any) -> rig.Node:
        nodes.append(rig.Node(**options))
        return nodes[-1]

    yield build
    for node in nodes:
        node.close()


@pytest.fixture
def linked() -> Iterator[Callable[..., tuple[rig.Node, rig.Node]]]:
    """Makes pairs of nodes; closes them after the test."""
    nodes: list[rig.Node] = []

    def build(*arguments: Any, **options: Any) -> tuple[rig.Node, rig.Node]:
        nodes.extend(rig.pair(*arguments, **options))
        return nodes[-2], nodes[-1]

    yield build
    for node in nodes:
        node.close()


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    if "tsan" in os.environ.get("LD_PRELOAD", ""):
        # It begins a thread of its own with the first that there is.
        first = threading.Thread(target=gc.collect)
        first.start()
        first.join()
    gc.collect()
    files, threads = rig.open_files(), rig.threads()
    yield
    gc.collect()
    assert rig.eventually(lambda: rig.threads() <= threads)
    assert rig.open_files() <= files
