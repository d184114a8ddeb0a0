"""Words that somebody mistyped.

Owns: which of the known words was meant. Does not know: what the words are for, nor how it is said.
"""

from __future__ import annotations

from collections.abc import Iterable

#: difflib is quadratic; nobody mistypes a name of five keys' length
_MAX_CHARS = 64


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most like this one, None when none is."""
    if len(word) > _MAX_CHARS:
        return None
    # Not at the top: wanted when somebody has erred.
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1, cutoff=0.6)
    return near[0] if near else None
