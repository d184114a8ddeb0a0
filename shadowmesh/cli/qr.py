"""An invitation as a QR code in the terminal.

Owns: its form. Does not know: what the text is.
"""

from __future__ import annotations

import io

from shadowmesh.base.errors import ShadowMeshError


class NoDrawing(ShadowMeshError):
    """The library that draws is not installed."""


def draw(text: str) -> str:
    """Return text as a QR code of block characters, light on dark, with its quiet zone.

    Args:
        text: read again whatever its case: in capitals it takes fewer squares.
    Raises:
        NoDrawing: it cannot be drawn here.
    """
    try:
        # Not at the top: for those alone who want the picture.
        import segno
    except ImportError:
        raise NoDrawing(
            "a QR code needs the Python package segno, which is not installed; use the text"
        ) from None
    drawing = io.StringIO()
    segno.make(text.upper(), error="l", micro=False).terminal(out=drawing, compact=True)
    return drawing.getvalue().rstrip("\n")
