# Addresses of datagrams: between text and what the kernel takes.
#
# The socket is IPv4's, or IPv6's for both versions. The latter takes IPv4 addresses in their mapped
# form (::ffff:192.0.2.1, RFC 4291 section 2.5.5.2), which no text that leaves here has.

from libc.stdio cimport snprintf
from libc.stdlib cimport strtoul
from libc.string cimport memchr, memcmp, memcpy, memset, strchr, strlen
from .base cimport *

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    struct sockaddr:
        unsigned short sa_family
    struct sockaddr_storage:
        unsigned short ss_family
    int AF_INET, AF_INET6

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        unsigned short sin_family
        uint16_t sin_port
        in_addr sin_addr
    struct in6_addr:
        uint8_t s6_addr[16]
    struct sockaddr_in6:
        unsigned short sin6_family
        uint16_t sin6_port
        in6_addr sin6_addr
        uint32_t sin6_scope_id

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t text_bytes)

cdef extern from "<net/if.h>" nogil:
    unsigned int if_nametoindex(const char *name)
    char *if_indextoname(unsigned int number, char *name)

cdef enum:
    E_ADDRESS = -1              # the text is no address of the socket's family
    E_ZONE = -2                 # no interface has this name or number
    ADDRESS_BYTES = 46          # INET6_ADDRSTRLEN: the longest text of an address, and a zero
    ADDRESS_TEXT_BYTES = ADDRESS_BYTES + 11     # with % and the number of an interface

ctypedef struct address_t:
    socklen_t length            # 0: none
    sockaddr_storage storage


cdef inline bint same_address(const address_t *a, const address_t *b) noexcept nogil:
    cdef const sockaddr_in *a4 = <const sockaddr_in *>&a.storage
    cdef const sockaddr_in *b4 = <const sockaddr_in *>&b.storage
    cdef const sockaddr_in6 *a6 = <const sockaddr_in6 *>&a.storage
    cdef const sockaddr_in6 *b6 = <const sockaddr_in6 *>&b.storage
    if a.length != b.length or a4.sin_family != b4.sin_family:
        return False
    if a4.sin_family == AF_INET:
        return a4.sin_port == b4.sin_port and a4.sin_addr.s_addr == b4.sin_addr.s_addr
    return (a6.sin6_port == b6.sin6_port and a6.sin6_scope_id == b6.sin6_scope_id
            and memcmp(&a6.sin6_addr, &b6.sin6_addr, 16) == 0)


cdef inline uint32_t zone_number(const char *text) noexcept nogil:
    # Of the interface that has this name, or this number; 0: none.
    cdef char name[16]          # IF_NAMESIZE
    cdef char *end = NULL
    cdef unsigned long number = if_nametoindex(text)
    if number:
        return <uint32_t>number
    number = strtoul(text, &end, 10)
    if end == text or end[0] != 0 or number > 0x7FFFFFFF:
        return 0
    return <uint32_t>number if if_indextoname(<unsigned int>number, name) != NULL else 0


cdef inline int parse_address(address_t *address, const char *text, uint16_t port,
                              int family) noexcept nogil:
    # `text`: an address of IPv4 or IPv6, the latter perhaps with the name or the number of its
    # interface behind a %; `family`: the socket's. 0 or an E_ code.
    cdef sockaddr_in *v4 = <sockaddr_in *>&address.storage
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&address.storage
    cdef const char *zone = strchr(text, c'%')
    cdef size_t length = <size_t>(zone - text) if zone != NULL else strlen(text)
    cdef char whole[7 + ADDRESS_BYTES]
    cdef char *plain = whole + 7
    memset(address, 0, sizeof(address_t))
    if length >= ADDRESS_BYTES:
        return E_ADDRESS
    memcpy(plain, text, length)
    plain[length] = 0
    if family == AF_INET:
        address.length = sizeof(sockaddr_in)
        v4.sin_family = AF_INET
        sm_store16be(<uint8_t *>&v4.sin_port, port)
        return 0 if inet_pton(AF_INET, plain, &v4.sin_addr) == 1 else E_ADDRESS
    if memchr(plain, c':', length) == NULL:
        plain = whole
        memcpy(plain, <const char *>b"::ffff:", 7)
    address.length = sizeof(sockaddr_in6)
    v6.sin6_family = AF_INET6
    sm_store16be(<uint8_t *>&v6.sin6_port, port)
    if inet_pton(AF_INET6, plain, &v6.sin6_addr) != 1:
        return E_ADDRESS
    if zone != NULL and zone[1]:
        v6.sin6_scope_id = zone_number(zone + 1)
        if v6.sin6_scope_id == 0:
            return E_ZONE
    return 0


cdef inline uint16_t write_address(const address_t *address, char *text) noexcept nogil:
    # Writes the address to `text`, of ADDRESS_TEXT_BYTES, and returns the port. An IPv4-mapped one
    # becomes plain IPv4; a zone is written as a number.
    cdef const sockaddr_in *v4 = <const sockaddr_in *>&address.storage
    cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *>&address.storage
    cdef const uint8_t *raw = <const uint8_t *>&v6.sin6_addr
    cdef size_t length
    if v4.sin_family == AF_INET:
        inet_ntop(AF_INET, &v4.sin_addr, text, ADDRESS_BYTES)
        return sm_load16be(<const uint8_t *>&v4.sin_port)
    if sm_load64be(raw) == 0 and sm_load32be(raw + 8) == 0xFFFF:
        inet_ntop(AF_INET, raw + 12, text, ADDRESS_BYTES)
    else:
        inet_ntop(AF_INET6, raw, text, ADDRESS_BYTES)
        if v6.sin6_scope_id:
            length = strlen(text)
            snprintf(text + length, ADDRESS_TEXT_BYTES - length, <const char *>b"%%%u",
                     v6.sin6_scope_id)
    return sm_load16be(<const uint8_t *>&v6.sin6_port)
