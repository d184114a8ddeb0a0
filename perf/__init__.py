"""Measurements against the targets: `make perf`. Needs root and a quiet machine."""
