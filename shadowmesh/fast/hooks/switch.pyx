"""The switch: its forwarding database, and what a frame's addresses say."""

from libc.stdlib cimport calloc, free
from shadowmesh.fast.base cimport *
from shadowmesh.fast.drop_reasons cimport *
from shadowmesh.fast.fdb cimport *
from shadowmesh.fast.port cimport *
from shadowmesh.fast.switch cimport (
    FLOOD_BYTES_PER_S, FLOOD_FRAMES_PER_S, VLAN_REFUSED, flood_bucket_t, frame_vlan, is_reserved,
    take_flood
)
from shadowmesh.fast.hooks.memory cimport *

SIZES = {
    "AGE_S": AGE_S,
    "HOLD_S": HOLD_S,
    "DUPLICATE_MOVES": DUPLICATE_MOVES,
    "DUPLICATE_S": DUPLICATE_S,
    "FLOOD_FRAMES_PER_S": FLOOD_FRAMES_PER_S,
    "FLOOD_BYTES_PER_S": FLOOD_BYTES_PER_S,
}
#: a lookup's answer for this host's side
LOCAL = LOCAL_PORT
VERDICTS = {
    KEEP: "keep",
    DROP_FOREIGN_MAC: "foreign_mac",
    DROP_MAC_ELSEWHERE: "mac_elsewhere",
    DROP_MAC_LIMIT: "mac_limit",
}


cdef class Fdb:
    """A forwarding database of so many ports; a port is its number, None this host's side."""

    cdef fdb_t *fdb
    cdef void *ports[MAX_PORTS]
    cdef int count

    def __cinit__(self, int ports, uint64_t most=DEFAULT_MACS, uint64_t most_macs=DEFAULT_PORT_MACS):
        cdef port_t *port
        self.fdb = <fdb_t *>calloc(1, sizeof(fdb_t))
        if self.fdb == NULL:
            raise MemoryError
        self.fdb.most_entries = most
        for i in range(ports):
            port = <port_t *>calloc(1, sizeof(port_t))
            if port == NULL:
                raise MemoryError
            port.number = i
            port.most_macs = most_macs
            port.listed_macs = -1
            self.ports[i] = port
        self.count = ports

    def __dealloc__(self):
        free(self.fdb)
        for i in range(self.count):
            free(self.ports[i])

    cdef port_t *_port(self, number):
        return NULL if number is None else <port_t *>self.ports[<int>number]

    def learn(self, bytes mac not None, uint32_t vlan, port, uint32_t now_s):
        """A frame with this source came; what becomes of it."""
        return VERDICTS[fdb_learn(self.fdb, self.ports, fdb_key(mac, vlan), self._port(port), now_s)]

    def learn_often(self, bytes mac not None, int port, uint32_t now_s, int times):
        """The same without the GIL."""
        cdef port_t *its = self._port(port)
        cdef uint64_t key = fdb_key(mac, 0)
        with nogil:
            for _ in range(times):
                fdb_learn(self.fdb, self.ports, key, its, now_s)

    def lookup(self, bytes mac not None, uint32_t vlan, uint32_t now_s):
        """The port, LOCAL or None."""
        cdef int number = fdb_lookup(self.fdb, fdb_key(mac, vlan), now_s)
        return None if number == NO_PORT else number

    def own(self, bytes mac not None, port):
        return bool(fdb_own(self.fdb, self.ports, mac, self._port(port)))

    def forget(self, int port):
        fdb_forget(self.fdb, self.ports, port, 0)

    def sweep(self, uint32_t now_s):
        fdb_sweep(self.fdb, self.ports, now_s)

    def macs(self, port):
        return self.fdb.local_entries if port is None else self._port(port).macs

    @property
    def entries(self):
        return self.fdb.entries

    @property
    def moves(self):
        return self.fdb.moves

    @property
    def unlearned(self):
        return self.fdb.unlearned


def vlan_of(frame not None):
    """The VLAN of a frame; None when it is refused."""
    cdef Exact copied = copy_of(frame)
    cdef uint32_t vlan = frame_vlan(copied.bytes, copied.length)
    return None if vlan == VLAN_REFUSED else vlan


def reserved(bytes mac not None):
    return bool(is_reserved(mac))


cdef class Bucket:
    """What may be flooded."""

    cdef flood_bucket_t bucket

    def take(self, size_t frame_bytes, uint64_t now_ns):
        return bool(take_flood(&self.bucket, frame_bytes, now_ns))
