"""`python -m shadowmesh.cli`: the program without its installed script."""

from __future__ import annotations

from shadowmesh.cli import main

main()
