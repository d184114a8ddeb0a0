"""This machine: its TAP device, interfaces, addresses, routes, and descriptors that outlive us.

Owns: everything that asks or tells the kernel about interfaces, and whose a socket is. Does not know:
frames, sessions, who the peer is.
"""

#: what the rest of the program may import; all else is private
__all__ = ["addresses", "device", "facts", "fdstore", "sock_diag", "tap", "tun", "underlay"]
