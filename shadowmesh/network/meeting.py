"""What members tell each other over their sessions: who else there is, where, and who is out.

Owns: the directory of a relay and who is attached to it, which revocation list goes to whom, which
message counts from whom, how much anybody may say. Does not know: sessions and timers, whether a
certificate counts (`membership`), when anything is shown to people.

::

    both         Hello: epochs and numbers --> Trust, Lists, Renewed: what the other side lacks
    to a relay   Attach: own addresses
    from one     Members: certificates, who is here, where

All methods belong to one thread. What is said goes out at once as far as there is room, the rest at
the next `tick`, which is to come each second. Source: mesh section 6, mesh-rules C2, D3, E.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from shadowmesh.base.errors import BadCertificate, BadList, RemoteProtocolError
from shadowmesh.base.rate import TokenBucket
from shadowmesh.network.certificate import Certificate, parse
from shadowmesh.network.membership import Membership
from shadowmesh.network.store import Secret
from shadowmesh.network.twins import TOLD_S, Twins
from shadowmesh.wire.mesh.chunks import Gathering, cut
from shadowmesh.wire.mesh.messages import (
    LARGE_MESSAGE_MAX_BYTES,
    MAX_LISTS,
    Attach,
    Error,
    Hello,
    ListNumber,
    Lists,
    Member,
    Members,
    Message,
    Renewed,
    Trust,
    Version,
)

#: certificates in one message of the directory: what is looked at in one turn of the receiver
MEMBERS_AT_ONCE: Final = 64
#: bytes a second and at once that a member may say, and a relay: a list and a directory fit
_SAYS: Final = (16e3, 512e3)
_RELAY_SAYS: Final = (256e3, 1e6)
#: what a relay says to a member whose identity another machine uses as well, and its name for people
TWICE: Final = "identity_twice"
TWICE_CODE: Final = "SM-IDENTITY-TWICE"


@dataclass(slots=True)
class _Entry:
    """A member in the directory: what is known of it, and since which version of the directory."""

    certificate: Certificate
    version: int
    certified: int
    addresses: tuple[str, ...] = ()
    online: bool = False


class Acquaintance:
    """The other end of one judged session. Made by `Meeting.meet`.

    Attributes:
        public_key: the key that the session has proved.
        relay: whether its certificate makes it one.
        source: where it is, for people.
    """

    def __init__(
        self,
        meeting: Meeting,
        certificate: Certificate,
        send: Callable[[bytes], bool],
        source: str,
    ) -> None:
        self.source = source
        self.public_key = certificate.public_key
        #: the newest that the other side is known to have of its own
        self.certificate = certificate
        self.relay = "relay" in certificate.roles
        self._meeting = meeting
        self._send = send
        self._gathering = Gathering(LARGE_MESSAGE_MAX_BYTES)
        self._says = TokenBucket(*(_RELAY_SAYS if self.relay else _SAYS))
        self._queue: deque[bytes] = deque()
        #: numbers of the lists that it has, by signer; None: it has not told yet
        self.lists: dict[bytes, int] | None = None
        #: epochs of what it has
        self.trust_epoch = self.secret_epoch = 0
        #: it wants the directory, and has it up to this version; None: it does not
        self.told: int | None = None
        #: whether the snapshot it gets first has begun
        self.begun = False
        self.addresses: tuple[str, ...] = ()

    def receive(self, body: bytes) -> None:
        """Take a record of inner type 11.

        Raises:
            RemoteProtocolError: it says what nobody may, or far too much.
        """
        if not self._says.take(self._meeting.seconds()):
            raise RemoteProtocolError("more about the network than anybody has to say")
        self._says.owe(len(body) - 1)
        message = self._gathering.receive(body)
        if message is not None:
            self._meeting.heard(self, message)

    def left(self) -> None:
        """The session has ended."""
        self._meeting.gone(self)

    @property
    def busy(self) -> bool:
        """Whether something that was said is still on this side."""
        return bool(self._queue)

    def say(self, message: Message) -> None:
        """Send a message, as soon as there is room for it."""
        self._queue.extend(cut(message))
        self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        while self._queue and self._send(self._queue[0]):
            self._queue.popleft()


class Meeting:
    """All sessions of this machine with members, as far as they speak about the network.

    Args:
        now: the date by the local clock.
        seconds: monotonic.
        boot_id: 16 random bytes, new with each start.
    Attributes:
        refused: messages and certificates that did not count, by one word.
    """

    def __init__(
        self,
        membership: Membership,
        *,
        software: str,
        boot_id: bytes,
        now: Callable[[], datetime],
        seconds: Callable[[], float],
    ) -> None:
        self.seconds = seconds
        self.refused: Counter[str] = Counter()
        self._membership = membership
        self._software = software
        self._boot_id = boot_id
        self._now = now
        self._relay = "relay" in membership.certificate.roles
        self._home: bytes | None = None
        self._present: set[Acquaintance] = set()
        self._version = 0
        self._twins = Twins()
        #: when a relay has said that our identity is used twice, and how
        self._told_twice: tuple[float, str] | None = None
        self._entries: dict[bytes, _Entry] = {}
        self.look()

    @property
    def attached(self) -> int:
        """How many sessions have asked for the directory."""
        return sum(one.told is not None for one in self._present)

    @property
    def version(self) -> int | None:
        """Of the directory; None: this machine is no relay, and keeps none."""
        return self._version if self._relay else None

    # --- sessions -----------------------------------------------------------------------------

    @property
    def problem(self) -> str | None:
        """What an operator has to know, one sentence; None while all is well."""
        now = self.seconds()
        if self._told_twice is not None and now - self._told_twice[0] <= TOLD_S:
            return self._told_twice[1]
        for key in self._twins.found(now):
            member = self._membership.of_key(key)
            if member is not None:
                return _twice(member.name, self._twins.sources(key, now))
        return None

    def meet(
        self, shown: bytes, send: Callable[[bytes], bool], source: str = ""
    ) -> Acquaintance | None:
        """A session with a member is established; None: it is none any more.

        Args:
            shown: its certificate, DER, which was judged.
            send: sends one record, False when there is no room now.
            source: host:port of the other end.
        """
        certificate = parse(shown)
        current = self._membership.of_key(certificate.public_key)
        if current is None:
            return None
        # What it may do says the newest; what it has says the one that it shows.
        certificate = replace(certificate, roles=current.roles)
        found = Acquaintance(self, certificate, send, source)
        self._present.add(found)
        found.say(self._hello())
        if found.relay:
            self._attach(found)
        return found

    def live_at(self, home: bytes | None) -> None:
        """This relay is our home from now on: tell it, and the one before."""
        before, self._home = self._home, home
        for one in tuple(self._present):
            if one.relay and one.public_key in (before, home):
                self._attach(one)

    def _attach(self, relay: Acquaintance) -> None:
        relay.say(
            Attach(
                kind="home" if relay.public_key == self._home else "reserve",
                addresses=self._membership.facts.announce,
            )
        )

    def gone(self, who: Acquaintance) -> None:
        """A session has ended."""
        self._present.discard(who)
        self._mark(who.public_key)

    def look(self) -> None:
        """Members or lists are others than before: bring the directory up to date."""
        known = {one.public_key: one for one in self._membership.members}
        self._twins.keep(set(known))
        if self._relay:
            for key in self._entries.keys() - known.keys():
                del self._entries[key]
            for key, certificate in known.items():
                self._enter(key, certificate)
        self._pass_on()

    def tick(self) -> None:
        """Send what had no room, and what has changed in the directory since the last time."""
        for one in tuple(self._present):
            one.flush()
        self._pass_on()
        for one in tuple(self._present):
            if one.told is not None and one.told < self._version and not one.busy:
                self._tell(one)

    # --- what was said ------------------------------------------------------------------------

    def heard(self, who: Acquaintance, message: Message) -> None:
        """Let a message count, if it does from whom it came (mesh-rules D3)."""
        match message:
            case Hello(lists=lists) if who.lists is None:  # a second would bring all lists again
                who.lists = {one.key_id: one.number for one in lists}
                who.trust_epoch, who.secret_epoch = message.trust_epoch, message.secret_epoch
                self._offer(who)
                self._look_for_twin(who, message.boot_id)
            case Trust():
                self._take_trust(who, message)
            case Lists(lists=lists):
                self._take_lists(who, lists)
            case Renewed() if who.relay:
                self._take_renewed(who, message)
            case Attach(addresses=addresses) if self._relay:
                new = who.told is None
                if new or who.addresses != addresses:
                    who.told = 0 if who.told is None else who.told
                    who.addresses = addresses
                    self._mark(who.public_key)
                # Whoever says it again is told with all others.
                if new and not who.busy:
                    self._tell(who)
            case Members(entries=entries) if who.relay:
                self._take_members(entries)
            case Error(reason=reason, detail=detail) if who.relay and reason == TWICE:
                self._told_twice = self.seconds(), f"{TWICE_CODE}: {detail}"
            case _:
                self.refused[type(message).__name__.lower()] += 1

    def _look_for_twin(self, who: Acquaintance, boot_id: bytes) -> None:
        """Tell a member, and ours, when its identity is used by another machine too."""
        now = self.seconds()
        if not self._twins.shown(who.public_key, boot_id, who.source, now):
            return
        member = self._membership.of_key(who.public_key)
        text = _twice(
            "?" if member is None else member.name, self._twins.sources(who.public_key, now)
        )
        if self._relay:
            who.say(Error(reason=TWICE, detail=text.removeprefix(f"{TWICE_CODE}: ")[:200]))

    def _take_lists(self, who: Acquaintance, lists: tuple[bytes, ...]) -> None:
        for data in lists:
            try:
                offered = self._membership.read_list(data)
                # Before it counts: what is newer then goes to all who have it not.
                if who.lists is not None:
                    known = who.lists.get(offered.signer, -1)
                    who.lists[offered.signer] = max(offered.number, known)
                self._membership.take_list(offered, self._now())
            except BadList as error:
                self.refused[f"list_{error.kind}"] += 1
        self._pass_on()

    def _take_trust(self, who: Acquaintance, message: Trust) -> None:
        try:
            self._membership.take_trust_list(
                message.trust_list, self._now(), beside=message.certificate
            )
        except BadList as error:
            self.refused[f"trust_{error.kind}"] += 1
        else:
            who.trust_epoch = self._membership.trust_list.epoch
            self._pass_on()

    def _take_renewed(self, who: Acquaintance, message: Renewed) -> None:
        try:
            if message.network_secret is not None:
                secret = Secret(
                    message.secret_epoch, message.network_secret, message.secret_signature
                )
                who.secret_epoch = max(who.secret_epoch, secret.epoch)
                self._membership.take_secret(secret)
            if message.certificate is not None:
                self._membership.renew(message.certificate, self._now())
        except (BadList, BadCertificate) as error:
            self.refused[f"renewed_{error.kind}"] += 1

    def _take_members(self, entries: tuple[Member, ...]) -> None:
        certificates = [one.certificate for one in entries if one.certificate is not None]
        refused = self._membership.learn_all(certificates, self._now())
        if refused:
            self.refused["certificate"] += refused
        found: dict[bytes, str | None] = {}
        for one in entries:
            member = self._membership.of_node(one.node_id)
            if member is not None and one.online:
                found[member.public_key] = one.addresses[0] if one.addresses else None
        self._membership.note_addresses(found)

    # --- what is said -------------------------------------------------------------------------

    def _hello(self) -> Hello:
        numbers = self._membership.revocations.numbers
        return Hello(
            software=self._software,
            boot_id=self._boot_id,
            lists=tuple(
                ListNumber(key_id=signer, number=number)
                for signer, number in list(numbers.items())[:MAX_LISTS]
            ),
            trust_epoch=self._membership.trust_list.epoch,
            secret_epoch=self._membership.newest_secret.epoch,
        )

    def _pass_on(self) -> None:
        for one in tuple(self._present):
            self._offer(one)

    def _offer(self, who: Acquaintance) -> None:
        """Send what somebody lacks, one after the other: what the next rests on first."""
        if self._membership.of_key(who.public_key) is None:
            # It is out, and its session about to end: it hears that, if it has said nothing yet
            # as well, and nothing else.
            who.lists = {} if who.lists is None else who.lists
            self._offer_lists(who)
            return
        if who.lists is None or who.busy:
            return
        trusted = self._membership.trust_list
        if trusted.epoch > who.trust_epoch:
            who.trust_epoch = trusted.epoch
            # Who knows our certificate of an authority that is dropped only would end this session,
            # and may have no other by which it could learn of the new one.
            own = self._membership.of_key(self._membership.identity.public_key)
            who.say(Trust(trust_list=trusted.data, certificate=None if own is None else own.der))
        self._offer_lists(who)
        if self._relay and not who.busy:
            self._renew(who)

    def _renew(self, who: Acquaintance) -> None:
        """Give a member its newest certificate, and the newest secret."""
        secret = self._membership.newest_secret
        if secret.epoch > who.secret_epoch:
            who.secret_epoch = secret.epoch
            who.say(
                Renewed(
                    network_secret=secret.value,
                    secret_epoch=secret.epoch,
                    secret_signature=secret.signature,
                )
            )
        current = self._membership.of_key(who.public_key)
        if current is not None and current.not_before > who.certificate.not_before:
            who.certificate = current
            who.say(Renewed(certificate=current.der))

    def _offer_lists(self, who: Acquaintance) -> None:
        """Send the lists that somebody lacks."""
        assert who.lists is not None
        for one in self._membership.revocations.lists:
            if who.busy:
                return
            if one.number > who.lists.get(one.signer, -1):
                who.lists[one.signer] = one.number
                who.say(Lists(lists=(one.data,)))

    def _enter(self, key: bytes, certificate: Certificate) -> None:
        known = self._entries.get(key)
        if known is None:
            self._version += 1
            self._entries[key] = _Entry(certificate, self._version, self._version)
            self._mark(key)
        elif known.certificate.der != certificate.der:
            self._version += 1
            known.certificate = certificate
            known.version = known.certified = self._version

    def _mark(self, key: bytes) -> None:
        """Note whether a member is here, and where it says that it can be reached."""
        entry = self._entries.get(key)
        if entry is None:
            return
        here = [one for one in self._present if one.public_key == key and one.told is not None]
        own = key == self._membership.identity.public_key
        addresses = self._membership.facts.announce if own else here[-1].addresses if here else ()
        online = own or bool(here)
        if (entry.online, entry.addresses) != (online, addresses):
            self._version += 1
            entry.online, entry.addresses, entry.version = online, addresses, self._version

    def _tell(self, who: Acquaintance) -> None:
        """Send the next part of what somebody does not know of the directory."""
        assert who.told is not None
        news = sorted(self._news(who.told), key=lambda one: one.version)
        part, rest = news[:MEMBERS_AT_ONCE], news[MEMBERS_AT_ONCE:]
        told = part[-1].version if rest else self._version
        message = Members(
            version=Version(
                relay=self._membership.identity.public_key, boot_id=self._boot_id, number=told
            ),
            snapshot=not who.begun,
            more=bool(rest),
            entries=tuple(_as_told(one, who.told) for one in part),
        )
        who.begun = True
        who.told = told
        who.say(message)

    def _news(self, told: int) -> Iterator[_Entry]:
        return (one for one in self._entries.values() if one.version > told)


def _twice(name: str, sources: tuple[str, ...]) -> str:
    where = " and ".join(sources)
    return (
        f"{TWICE_CODE}: the identity of {name} is on two machines, {where}; remove it, and let one of"
        " them join anew"
    )


def _as_told(entry: _Entry, told: int) -> Member:
    return Member(
        node_id=entry.certificate.node_id,
        certificate=entry.certificate.der if entry.certified > told else None,
        online=entry.online,
        addresses=entry.addresses,
    )
