"""Taking secrets out of texts that leave the machine.

Owns: which forms a secret can have in a text, and what looks like one although it is not known.
Does not know: where texts and secrets come from.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

#: shorter ones would take harmless words out with them
_MIN_SECRET_CHARS: Final = 8

#: what looks like a secret: a key in hex, a PEM key, a token in a header or a link
_SUSPECT: Final = (
    (
        re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
                   re.DOTALL),
        "[private key]",
    ),
    (re.compile(r"(?i)(bearer[ .])[\w.~+/=-]{8,}"), r"\1[token]"),
    (re.compile(r"(?i)(token=)[\w.~+/=-]{8,}"), r"\1[token]"),
)  # fmt: skip
_HEX_KEY: Final = re.compile(r"(?<![0-9a-fA-F])[0-9a-fA-F]{64}(?![0-9a-fA-F])")


class Redactor:
    """Replaces secrets in texts by their names.

    Args:
        secrets: each by its name; bytes are looked for in hex and base64, text as it is.
        public: 64 hex digits that may stay, such as the fingerprint of a certificate. All others
            go: a pre-shared key that was replaced long ago may still be in a log.
    """

    def __init__(self, secrets: Mapping[str, bytes | str], public: Iterable[str] = ()) -> None:
        forms = {form: name for name, secret in secrets.items() for form in _forms(secret)}
        self._names = {form.lower(): name for form, name in forms.items()}
        # The longest first: base64 with its padding goes as a whole.
        words = sorted(forms, key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, words)), re.IGNORECASE) if words else None
        self._public = frozenset(each.lower() for each in public)

    def __call__(self, text: str) -> str:
        """Return text without secrets."""
        if self._known is not None:
            text = self._known.sub(lambda found: f"[{self._names[found[0].lower()]}]", text)
        for pattern, replacement in _SUSPECT:
            text = pattern.sub(replacement, text)
        return _HEX_KEY.sub(
            lambda found: found[0] if found[0].lower() in self._public else "[64 hex digits]", text
        )


def _forms(secret: bytes | str) -> Iterator[str]:
    """Give the texts in which a secret can appear."""
    if isinstance(secret, str):
        candidates = [secret, secret.strip()]
    else:
        plain, safe = base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode()
        candidates = [secret.hex(), secret.hex(":"), plain, safe, plain.rstrip("="),
                      safe.rstrip("=")]  # fmt: skip
    yield from (form for form in candidates if len(form) >= _MIN_SECRET_CHARS)
