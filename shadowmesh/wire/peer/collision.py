"""Who wins when both sides dial at the same time.

Owns: the rule. Does not know: connections, what is done with the loser. Source: protocol section 8.
"""

from __future__ import annotations

from shadowmesh.base.errors import LocalProtocolError


def resolve_collision(own_key: bytes, peer_key: bytes, *, own_dial_authenticated: bool) -> bool:
    """Decide which of two connections stays when both sides dialled at the same time.

    To be asked by the side that has just authenticated an incoming connection (message 3 is
    verified) while it also dials the same peer. True: keep the own dial and answer the incoming
    connection with REJECT(collision). False: accept it and abort the own dial.

    The connection initiated by the larger key stays, but only once it is known to lead to the
    same peer: a dial that has not authenticated may hang for ever, and the peer has not seen its
    message 3 either, so aborting it cannot take away a session that the peer holds.

    Args:
        own_key, peer_key: the Ed25519 public keys, 32 bytes, compared as byte strings.
        own_dial_authenticated: message 2 of our own dial was verified and names the same peer.
            Stays true after the dial was established for incoming connections whose message 1
            came before that moment: their message 3 was sent before the peer knew of our
            session, so they are the losers of the same collision and not a restarted peer.
    Raises:
        LocalProtocolError: the keys are equal; the handshake refuses our own identity.
    Source: protocol section 8.
    """
    if own_key == peer_key:
        raise LocalProtocolError("a collision with our own identity cannot have authenticated")
    return own_dial_authenticated and own_key > peer_key
