"""Optimisations that are switched off by SHADOWMESH_WITHOUT."""

from __future__ import annotations

import pytest

from shadowmesh._fastpath import SWITCHES, DataPlane
from shadowmesh.base.errors import ConfigError
from shadowmesh.service import switches
from shadowmesh.service.daemon import run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", set()),
        ("gso", {"gso"}),
        (" tso, gro,,batch ", {"tso", "gro", "batch"}),
        (",".join(switches.MEANING), set(switches.MEANING)),
    ],
)
def test_the_words_are_separated_by_commas(text, words):
    assert switches.read({switches.VARIABLE: text}) == words


def test_without_the_variable_nothing_is_off():
    assert switches.read({}) == frozenset()


def test_a_word_that_means_nothing_is_refused_with_those_that_mean_something():
    with pytest.raises(ConfigError, match="no such optimisation: fast, gsso; known are tso, csum"):
        switches.read({switches.VARIABLE: "gsso,tso,fast"})


def test_the_daemon_ends_at_once_on_such_a_word(tmp_path, capsys):
    path = tmp_path / "daemon.yaml"
    path.write_text("")
    code = run(["--config", str(path)], {"HOME": str(tmp_path), switches.VARIABLE: "tso,quick"})
    assert code == 7
    assert "environment SHADOWMESH_WITHOUT: no such optimisation: quick" in capsys.readouterr().err


def test_the_data_plane_knows_the_same_words():
    assert tuple(switches.MEANING) == SWITCHES
    assert DataPlane(switches.MEANING).without == switches.MEANING.keys()
    with pytest.raises(ValueError, match="quick"):
        DataPlane(("quick",))
