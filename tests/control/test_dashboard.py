"""The dashboard's page and the policy it runs under; tests/netns has it in a real browser."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from shadowmesh.control import dashboard
from tests.control.fake_control import TOKEN, FakeControl, make_app

BASE_URL = "http://127.0.0.1:9090"
PAGE = dashboard.PAGE.read_text(encoding="utf-8")
#: what fetches something, and the only schemes that need no server
FETCHING = {"src", "href", "srcset", "action", "formaction", "poster", "data", "background"}


class Elements(HTMLParser):
    """All elements of a page, with their attributes."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(PAGE).found


@pytest.fixture
def answer():
    return make_app(FakeControl()).test_client().get("/", base_url=BASE_URL)


def policy_of(answer):
    (header,) = answer.headers.getlist("Content-Security-Policy")
    directives = [directive.split() for directive in header.split("; ")]
    return {name: values for name, *values in directives}


def test_the_page_needs_no_token_and_holds_none(answer):
    assert answer.status_code == 200
    assert answer.content_type == "text/html; charset=utf-8"
    assert answer.get_data(as_text=True) == PAGE
    assert TOKEN not in PAGE


def test_a_wrong_token_is_refused_even_here():
    client = make_app(FakeControl()).test_client()
    headers = {"Authorization": "Bearer x"}
    assert client.get("/", base_url=BASE_URL, headers=headers).status_code == 401


def test_the_policy_names_the_page_s_own_style_and_script_and_nothing_else(answer):
    policy = policy_of(answer)
    for name in ("style", "script"):
        (text,) = re.findall(f"<{name}>(.*?)</{name}>", PAGE, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{name}-src"] == [f"'sha256-{digest}'"]
    assert policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    for name in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[name] == ["'none'"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]


def test_the_page_cannot_be_framed_cached_or_named_to_others(answer):
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_the_page_is_self_contained():
    for tag, attributes in ELEMENTS:
        for name in FETCHING & attributes.keys():
            assert attributes[name].startswith(("data:", "#")), (tag, attributes)
    assert "@import" not in PAGE
    assert "url(" not in PAGE
    # the namespace of SVG is a name, not an address
    outside = set(re.findall(r"https?://[^\s\"'%]+", PAGE)) - {"http://www.w3.org/2000/svg"}
    assert outside == set()


def test_the_policy_would_not_run_what_is_written_into_attributes():
    for tag, attributes in ELEMENTS:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag


@pytest.mark.parametrize(
    "sink", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("]
)
def test_the_script_never_makes_markup_or_code_out_of_text(sink):
    assert sink not in PAGE


def test_the_page_is_small():
    assert len(PAGE.encode()) < 48 * 1024


def test_the_page_can_be_used_without_eyes_and_mouse():
    html = dict(ELEMENTS)["html"]
    assert html["lang"] == "en"
    tags = [tag for tag, _ in ELEMENTS]
    assert tags.count("h1") == 1
    assert {"header", "main", "footer", "label"} <= set(tags)
    ids = [attributes["id"] for _, attributes in ELEMENTS if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in ELEMENTS:
        for reference in attributes.get("aria-labelledby", "").split():
            assert reference in ids, (tag, reference)
        if tag == "section":
            assert {"aria-label", "aria-labelledby"} & attributes.keys(), attributes
        if tag == "svg":
            assert attributes.get("aria-hidden") or attributes["role"] == "img"
    assert "prefers-color-scheme: dark" in PAGE
    assert "prefers-reduced-motion" in PAGE
    assert ":focus-visible" in PAGE


def rgb(colour):
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def luminance(colour):
    """Source: WCAG 2.2, relative luminance."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_enough_contrast(scheme):
    blocks = re.findall(r":root \{(.*?)\}", PAGE, re.DOTALL)
    assert len(blocks) == 2
    text = blocks[0] if scheme == "light" else blocks[1]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text))
    pairs = [(name, "card") for name in ("text", "dim", "accent", "in", "out", "drop")]
    pairs += [
        ("dim", "page"),
        ("text", "soft"),
        ("good", "card"),
        ("warn", "card"),
        ("bad", "card"),
    ]
    pairs += [(name, f"{name}-bg") for name in ("good", "warn", "bad", "idle")]
    for front, back in pairs:
        assert contrast(colours[front], colours[back]) >= 4.5, (scheme, front, back)
