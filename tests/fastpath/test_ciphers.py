"""AEAD, replay window and mask against their slow twins."""

from __future__ import annotations

import ctypes
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh._fastpath import CIPHER_NAMES, build_info
from shadowmesh.base import constants
from shadowmesh.fast.hooks import records as hooks
from tests.fastpath.rig import AEGIS, CHACHA, CIPHERS
from tests.twins import records
from tests.twins.replay import ReplayWindow
from tests.twins.websocket import apply_mask

KEY = bytes(range(32))
EDGES = (0, 1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1500)


# --- AEAD ---------------------------------------------------------------------------------------


def sealed_by_the_twin(cipher: str, counter: int, key_id: int, text: bytes) -> bytes:
    return records.seal(cipher, KEY, records.KIND_WSS, key_id, counter, text)


@pytest.mark.parametrize("cipher", CIPHERS)
@pytest.mark.parametrize("size", EDGES)
def test_every_length_is_sealed_as_the_twin_seals_it(cipher, size):
    aad = records.aad_header(records.KIND_WSS, 5, size)
    text = os.urandom(size)
    sealed = hooks.seal(CIPHER_NAMES[cipher], KEY, size, aad, text)
    assert sealed == sealed_by_the_twin(cipher, size, 5, text)
    assert hooks.open_sealed(CIPHER_NAMES[cipher], KEY, size, aad, sealed) == text


@given(
    st.sampled_from(CIPHERS),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
)
@settings(max_examples=40, deadline=None)
def test_any_record_is_sealed_as_the_twin_seals_it(cipher, counter, key_id, text):
    aad = records.aad_header(records.KIND_WSS, key_id, counter)
    sealed = hooks.seal(CIPHER_NAMES[cipher], KEY, counter, aad, text)
    assert sealed == sealed_by_the_twin(cipher, counter, key_id, text)


@pytest.mark.parametrize("cipher", CIPHERS)
def test_nothing_opens_after_a_change_of_any_bit(cipher):
    number = CIPHER_NAMES[cipher]
    aad = records.aad_header(records.KIND_WSS, 9, 77)
    sealed = hooks.seal(number, KEY, 77, aad, b"plain text")
    for place in range(len(sealed)):
        for bit in range(8):
            forged = bytearray(sealed)
            forged[place] ^= 1 << bit
            assert hooks.open_sealed(number, KEY, 77, aad, bytes(forged)) is None
    for place in range(len(aad)):
        other = bytearray(aad)
        other[place] ^= 1
        assert hooks.open_sealed(number, KEY, 77, bytes(other), sealed) is None
    assert hooks.open_sealed(number, KEY, 78, aad, sealed) is None
    assert hooks.open_sealed(number, KEY[::-1], 77, aad, sealed) is None


@pytest.mark.parametrize("cipher", CIPHERS)
def test_what_is_shorter_than_a_tag_does_not_open(cipher):
    for size in range(records.TAG_BYTES[cipher]):
        assert hooks.open_sealed(CIPHER_NAMES[cipher], KEY, 0, b"", bytes(size)) is None


def test_both_libraries_know_rfc_8439_section_2_8_2():
    text = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the "
        b"future, sunscreen would be it."
    )
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    nonce = bytes.fromhex("070000004041424344454647")
    key = bytes(range(0x80, 0xA0))
    for sealed in hooks.seal_by_both(key, nonce, aad, text):
        assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
        assert sealed == ChaCha20Poly1305(key).encrypt(nonce, text, aad)


# --- ChaCha20-Poly1305 by either library ----------------------------------------------------------

FROM = hooks.SIZES["SM_CHACHA_FROM"]
CHACHA_CODE = CIPHER_NAMES[CHACHA]
AAD = bytes(16)


def test_both_libraries_make_the_same_record_of_every_length():
    source = random.Random(8439)
    for size in (*range(1100), 1400, 2048, 4095, 16_384, 65_000, 200_000):
        text, aad, nonce = (source.randbytes(n) for n in (size, 16, 12))
        one, other = hooks.seal_by_both(KEY, nonce, aad, text)
        assert one == other, size
        assert hooks.open_by_both(KEY, nonce, aad, one) == (text, text), size


def test_neither_library_opens_what_the_other_does_not():
    source = random.Random(1)
    for size in (1, 16, 63, 640, 1401, 5000):
        sealed, _ = hooks.seal_by_both(KEY, bytes(12), AAD, source.randbytes(size))
        for _ in range(40):
            forged = bytearray(sealed)
            forged[source.randrange(len(forged))] ^= 1 << source.randrange(8)
            assert hooks.open_by_both(KEY, bytes(12), AAD, bytes(forged)) == (None, None)
        assert hooks.open_by_both(KEY, b"\1" + bytes(11), AAD, sealed) == (None, None)
        assert hooks.open_by_both(KEY, bytes(12), b"\1" + AAD[1:], sealed) == (None, None)


@given(st.integers(0, 2**64 - 1), st.integers(-20, 20), st.sampled_from((0, 1000, 64_000)))
@settings(max_examples=40, deadline=None)
def test_where_the_library_changes_records_stay_as_the_twins(counter, around, more):
    aad = records.aad_header(records.KIND_WSS, 5, counter)
    text = os.urandom(FROM + around + more)
    sealed = hooks.seal(CHACHA_CODE, KEY, counter, aad, text)
    assert sealed == sealed_by_the_twin(CHACHA, counter, 5, text)
    assert hooks.open_sealed(CHACHA_CODE, KEY, counter, aad, sealed) == text


def test_a_context_that_is_kept_serves_any_key_in_either_direction():
    # one for each thread: the hub seals and opens under four keys of an epoch
    source = random.Random(3)
    kept = hooks.Contexts()
    keys = [source.randbytes(32) for _ in range(3)]
    for counter in range(400):
        key, text = source.choice(keys), source.randbytes(source.choice((10, FROM, 1400)))
        expected = hooks.seal(CHACHA_CODE, key, counter, AAD, text)
        if source.random() < 0.5:
            assert hooks.seal(CHACHA_CODE, key, counter, AAD, text, kept) == expected
        else:
            forged = expected[:-1] + bytes([expected[-1] ^ 1])
            assert hooks.open_sealed(CHACHA_CODE, key, counter, AAD, forged, kept) is None
            assert hooks.open_sealed(CHACHA_CODE, key, counter, AAD, expected, kept) == text


def test_threads_that_seal_under_one_key_at_once_do_not_disturb_each_other():
    # more of them than an epoch has contexts, again and again: the numbers are given back
    kept = hooks.Contexts()
    text = os.urandom(1400)
    expected = {n: hooks.seal(CHACHA_CODE, KEY, n, AAD, text) for n in range(40)}
    started = threading.Barrier(20)

    def work() -> bool:
        started.wait()
        return all(
            hooks.seal(CHACHA_CODE, KEY, n, AAD, text, kept) == sealed
            for n, sealed in expected.items()
        )

    for _ in range(3):
        with ThreadPoolExecutor(20) as pool:
            assert all(one.result() for one in [pool.submit(work) for _ in range(20)])


def test_a_forged_record_leaves_no_error_behind_for_tls():
    # OpenSSL keeps errors for a thread; SSL_read() takes what it finds there for its own
    errors = ctypes.CDLL("libcrypto.so.3")
    errors.ERR_peek_error.restype = ctypes.c_ulong
    assert hooks.open_sealed(CHACHA_CODE, KEY, 0, AAD, bytes(1400)) is None
    assert errors.ERR_peek_error() == 0


def test_aegis_is_compiled_in_where_it_is_offered():
    if build_info()["aegis256"]:
        assert len(hooks.seal(CIPHER_NAMES[AEGIS], KEY, 0, b"", b"")) == 32


# --- Replay window ------------------------------------------------------------------------------

WINDOW = constants.REPLAY_WINDOW_BITS - 64


def marked(*counters: int) -> hooks.Window:
    window = hooks.Window()
    for counter in counters:
        window.mark(counter)
    return window


@pytest.mark.parametrize(
    ("newest", "counter", "verdict"),
    [
        (0, 0, False),
        (0, 1, True),
        (5, 0, True),
        (5, 5, False),
        (65_471, 0, True),
        (65_472, 0, True),
        (65_473, 0, False),
        (65_473, 1, True),
        (200_000, 200_000 - 65_471, True),
        (200_000, 200_000 - 65_472, True),
        (200_000, 200_000 - 65_473, False),
        (200_000, 200_001, True),
        (200_000, 2**64 - 1, True),
        (2**64 - 1, 2**64 - 1, False),
        (2**64 - 1, 2**64 - 1 - 65_472, True),
        (2**64 - 1, 2**64 - 1 - 65_473, False),
        (2**64 - 1, 0, False),
    ],
)
def test_the_edges_of_the_window(newest, counter, verdict):
    assert marked(newest).check(counter) is verdict


def test_an_empty_window_takes_anything():
    for counter in (0, 1, WINDOW, 2**63, 2**64 - 1):
        assert hooks.Window().check(counter)


def test_looking_does_not_move_the_window():
    window = marked(100)
    assert window.check(2**60)
    assert window.check(99)
    assert not window.check(100)


@pytest.mark.parametrize(
    "step", [1, 63, 64, 65, 65_471, 65_472, 65_473, 65_535, 65_536, 65_537, 2**40]
)
def test_after_a_jump_nothing_of_the_old_ring_is_left(step):
    old = list(range(1000, 1200))
    window = marked(*old)
    newest = 1199 + step
    window.mark(newest)
    twin = ReplayWindow()
    for counter in (*old, newest):
        twin.mark(counter)
    for counter in range(max(0, newest - 66_000), newest + 2):
        assert window.check(counter) == twin.test(counter), counter


@given(st.integers(0, 2**64 - 200_000), st.integers(0, 2**32))
@settings(max_examples=15, deadline=None)
def test_the_window_says_what_the_twin_says(base, seed):
    source = random.Random(seed)
    window, twin = hooks.Window(), ReplayWindow()
    newest = base
    for _ in range(1500):
        near = source.choice((0, 1, 2, 64, 4000, 65_400, 65_472, 65_473, 65_536, 66_000))
        counter = max(0, min(newest - near + source.randint(-3, 3), 2**64 - 1))
        counter = (
            min(newest + source.choice((0, 1, 1, 1, 2, 70, 40_000)), 2**64 - 1)
            if (source.random() < 0.4)
            else counter
        )
        fresh = not twin.seen or twin.test(counter)
        assert window.check(counter) == fresh, counter
        if fresh and source.random() < 0.8:
            twin.mark(counter) if twin.seen else _first(twin, counter)
            window.mark(counter)
            newest = max(newest, counter)


def _first(twin: ReplayWindow, counter: int) -> None:
    twin.seen.add(counter)
    twin.newest = counter


def test_a_window_has_a_ring_only_once_counters_are_far_from_the_first():
    window = marked(*range(1024))
    assert window.bytes == 0
    assert not any(window.check(counter) for counter in range(1024))
    window.mark(1100)
    assert window.bytes == 8192
    assert not any(window.check(counter) for counter in range(1024))
    assert window.check(1050)


def test_after_a_rest_a_window_takes_only_what_is_newer_and_needs_no_ring():
    window = marked(5000, 5002)
    window.rest()
    assert window.bytes == 0
    assert [counter for counter in range(4000, 5010) if window.check(counter)] == list(
        range(5003, 5010)
    )
    window.rest()
    window.mark(5003)
    window.mark(5004 + 1024)
    assert [window.check(counter) for counter in (5002, 5003, 5004, 6028)] == [
        False, False, True, False,
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 3000), st.sampled_from(["mark"] * 40 + ["rest"]))))
def test_a_window_that_rests_now_and_then_says_what_the_twin_says(steps):
    window, seen, newest, floor = hooks.Window(), set(), None, 0
    for counter, what in steps:
        if what == "rest":
            window.rest()
            floor = floor if newest is None else newest + 1
            continue
        fresh = counter >= floor and counter not in seen
        assert window.check(counter) == fresh
        if fresh:
            window.mark(counter)
            seen.add(counter)
            newest = counter if newest is None else max(newest, counter)


# --- Mask ---------------------------------------------------------------------------------------


def test_every_length_phase_and_alignment_is_masked_as_the_twin_masks_it():
    key = b"\x01\x02\x04\x08"
    data = os.urandom(80)
    for phase in range(8):
        turned = key[phase % 4 :] + key[: phase % 4]
        whole = apply_mask(data, turned)
        for alignment in range(16):
            for length in range(len(data) + 1):
                assert hooks.mask(data[:length], key, phase, alignment) == whole[:length]


@given(st.binary(max_size=3000), st.binary(min_size=4, max_size=4), st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_masked_as_the_twin_masks_them(data, key, phase):
    turned = key[phase % 4 :] + key[: phase % 4]
    assert hooks.mask(data, key, phase) == apply_mask(data, turned)


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4), st.lists(st.integers(0, 50)))
@settings(deadline=None)
def test_masking_in_pieces_is_masking_at_once(data, key, pieces):
    whole, done = b"", 0
    for piece in [*pieces, len(data)]:
        part = data[done : done + piece]
        whole += hooks.mask(part, key, done)
        done += len(part)
    assert whole == apply_mask(data, key)
