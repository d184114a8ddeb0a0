"""The Python face of the data plane: what the compiled part was built with."""

cdef extern from "sodium.h" nogil:
    """
    #if defined(crypto_aead_aegis256_KEYBYTES)
    #define SHADOWMESH_HAVE_AEGIS256 1
    #else
    #define SHADOWMESH_HAVE_AEGIS256 0
    #endif
    """
    const char *sodium_version_string()
    const int SHADOWMESH_HAVE_AEGIS256


def build_info():
    """Return the version of libsodium and whether it offers AEGIS-256."""
    return {
        "libsodium": sodium_version_string().decode("ascii"),
        "aegis256": bool(SHADOWMESH_HAVE_AEGIS256),
    }
