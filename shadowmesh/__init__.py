"""ShadowMesh: an encrypted layer-2 tunnel between two Linux machines.

Owns the version number and nothing else, so that importing the package costs nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
