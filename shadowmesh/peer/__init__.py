"""The peers of this daemon, from wanted to connected, and the manager that holds them.

Owns: dialling and waiting, who is let in, sessions from the first byte to the last. Does not know:
HTTP, what a snapshot looks like, how a device is opened.

::

    manager    holds the peers                        tunnel    one session, from socket to end
    peer       one peer's life: the state table       keying    its keys in the data plane
    outgoing   our attempt: dial, handshake           wss       its link, liveness, probes
    incoming   accepted, and not known yet            endings   why it ended, in words
    dialler    one dial                               terms     what the configuration means for it
    pause      the wait before the next               verdicts  who is let in, failures in words
    hellos     have we dialled ourselves              seen_list who was here, and when
    mailbox    one thing after the other              common    what all peers share
"""

#: what the rest of the program may import; all else is private
__all__ = ["manager", "peer", "tunnel"]
