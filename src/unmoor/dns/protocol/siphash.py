"""SipHash-2-4 (Aumasson, Bernstein 2012), which DNS cookies use: by OpenSSL, or else in Python."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable

_WORD = (1 << 64) - 1
_KEY_SIZE, _SIZE = 16, 8
#: OpenSSL 3, which Python's own ssl module needs; it has SipHash, in a tenth of the time that Python takes.
_LIBRARY = "libcrypto.so.3"


def keyed(key: bytes) -> Callable[[bytes], bytes]:
    """Return the function that hashes data to 8 octets under a key of 16 octets."""
    by_openssl = _by_openssl(key)
    # A library that computes something else would break the cookies of every other server.
    if by_openssl and by_openssl(key) == siphash24(key, key):
        return by_openssl
    return lambda data: siphash24(key, data)


class _Parameter(ctypes.Structure):
    """OSSL_PARAM; a key of NULL ends a list of them."""

    _fields_ = (
        ("key", ctypes.c_char_p),
        ("type", ctypes.c_uint),
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("returned", ctypes.c_size_t),
    )


_UNSIGNED_INTEGER = 2  # OSSL_PARAM_UNSIGNED_INTEGER


def _by_openssl(key: bytes) -> Callable[[bytes], bytes] | None:
    """Make the function from EVP_MAC(3); None if this OpenSSL has no SipHash.

    Its context lives as long as the process, and must not be used by two threads.
    """
    try:
        crypto = ctypes.CDLL(_LIBRARY)
        init, update, final = crypto.EVP_MAC_init, crypto.EVP_MAC_update, crypto.EVP_MAC_final
        fetch, new = crypto.EVP_MAC_fetch, crypto.EVP_MAC_CTX_new
    except (OSError, AttributeError):
        return None
    fetch.restype = new.restype = ctypes.c_void_p
    fetch.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p)
    new.argtypes = (ctypes.c_void_p,)
    init.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
    update.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t)
    final.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
    algorithm = fetch(None, b"SIPHASH", None)
    context = new(algorithm) if algorithm else None
    size = ctypes.c_size_t(_SIZE)
    given = _Parameter(b"size", _UNSIGNED_INTEGER, ctypes.addressof(size), ctypes.sizeof(size))
    parameters = (_Parameter * 2)(given, _Parameter())
    if not context or len(key) != _KEY_SIZE or init(context, key, len(key), parameters) != 1:
        return None
    output = ctypes.create_string_buffer(_SIZE)

    def siphash(data: bytes) -> bytes:
        init(context, None, 0, None)  # with the same key again
        update(context, data, len(data))
        final(context, output, None, _SIZE)
        return output.raw

    return siphash


def siphash24(key: bytes, data: bytes) -> bytes:
    """Return the 8 octets of SipHash-2-4 of `data` under a key of 16 octets."""
    low, high = struct.unpack("<2Q", key)
    state: list[int] = [word ^ each for word, each in zip((low, high, low, high), _CONSTANTS, strict=True)]
    end = len(data) - len(data) % 8
    last = int.from_bytes(data[end:], "little") | (len(data) & 0xFF) << 56
    for (word,) in (*struct.iter_unpack("<Q", data[:end]), (last,)):
        state[3] ^= word
        _mix(state, 2)
        state[0] ^= word
    state[2] ^= 0xFF
    _mix(state, 4)
    digest = state[0] ^ state[1] ^ state[2] ^ state[3]
    return digest.to_bytes(8, "little")


# 'somepseudorandomlygeneratedbytes', the paper's initial state.
_CONSTANTS = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def _mix(state: list[int], rounds: int) -> None:
    a, b, c, d = state
    for _ in range(rounds):
        a = (a + b) & _WORD
        b = _rotate(b, 13) ^ a
        a = _rotate(a, 32)
        c = (c + d) & _WORD
        d = _rotate(d, 16) ^ c
        a = (a + d) & _WORD
        d = _rotate(d, 21) ^ a
        c = (c + b) & _WORD
        b = _rotate(b, 17) ^ c
        c = _rotate(c, 32)
    state[:] = a, b, c, d


def _rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (64 - bits)) & _WORD
