"""The targets of `make fuzz` work without the fuzzer: each takes its seeds and what lies near."""

from __future__ import annotations

import random

import pytest

from fuzz import targets
from fuzz.targets import TARGETS


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_open():
    yield
    targets.close()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_takes_its_seeds_and_what_lies_near(name):
    target = TARGETS[name]
    seeds = list(target.seeds())
    assert seeds
    assert len(set(seeds)) == len(seeds)
    dice = random.Random(name)
    for seed in seeds:
        target.run(seed)
        target.run(seed[: dice.randrange(len(seed) + 1)])
        changed = bytearray(seed)
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
        target.run(bytes(changed))
    target.run(b"")
