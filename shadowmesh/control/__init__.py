"""The HTTP side: control API, metrics port, feed of events, dashboard.

Owns: routes, their gate, limits of the server. Does not know: the live objects; it asks whoever
satisfies `app.Control`.
"""

#: what the rest of the program may import; all else is private
__all__ = ["app", "feed", "metrics_port", "ports"]
