from __future__ import annotations

import base64
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.cli.redaction import Redactor

SEED = bytes(range(100, 132))
FORMS = [
    SEED.hex(), SEED.hex().upper(), SEED.hex(":"), base64.b64encode(SEED).decode(),
    base64.urlsafe_b64encode(SEED).decode().rstrip("="),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_known_secret_goes_in_every_form(form):
    redact = Redactor({"identity": SEED})
    assert redact(f"key={form}\n{form}") == "key=[identity]\n[identity]"


@given(st.binary(min_size=32, max_size=32), st.text(max_size=20), st.text(max_size=20))
def test_no_form_of_a_secret_is_left_whatever_stands_around_it(secret, before, behind):
    redact = Redactor({"secret": secret})
    for form in (secret.hex(), base64.b64encode(secret).decode()):
        assert form not in redact(before + form + behind)


def test_a_secret_of_text_goes_as_it_is_and_with_its_line_break():
    assert Redactor({"token": "tokentoken\n"})("x tokentoken y") == "x [token] y"


def test_what_looks_like_a_secret_goes_although_nobody_knows_it():
    old = secrets.token_hex(32)
    redact = Redactor({})
    assert redact(f'key: "{old}"') == 'key: "[64 hex digits]"'
    assert redact("Authorization: Bearer abcdefghijk") == "Authorization: Bearer [token]"
    assert redact("http://127.0.0.1:9090/#token=abcdefghijk!") == (
        "http://127.0.0.1:9090/#token=[token]!"
    )
    pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQ\n-----END EC PRIVATE KEY-----"
    assert redact(f"a {pem} b") == "a [private key] b"
    assert redact(f"a {pem[:40]}") == "a [private key]"


def test_what_is_public_stays():
    fingerprint = "ab" * 32
    redact = Redactor({"identity": SEED}, public=[fingerprint.upper()])
    text = f"{fingerprint} 198.51.100.2:9001 02:00:5e:10:00:01 {'a' * 63} {'b' * 65}"
    assert redact(text) == text


def test_a_secret_that_is_hardly_one_takes_no_words_with_it():
    assert Redactor({"empty": "", "short": "ab"})("abc") == "abc"
