from __future__ import annotations

from shadowmesh.base import words


def test_the_nearest_word_is_found_and_a_strange_one_has_none():
    assert words.nearest("statsu", ["status", "connect"]) == "status"
    assert words.nearest("xyzzy", ["status", "connect"]) is None
    assert words.nearest("status" * 11, ["status" * 11]) is None
