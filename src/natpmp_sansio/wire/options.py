"""PCP options: code, length, data, padding (RFC 6887 section 7.3)."""

from __future__ import annotations

import struct

import attrs

from ..errors import DecodeError
from .fields import U8, octets


@attrs.frozen(weakref_slot=False)
class RawOption:
    """An option as it stands on the wire: `data` without header and padding.

    Codes below 128 are mandatory to process: a server that does not know one refuses the request.
    """

    code: int = attrs.field(validator=U8)
    data: bytes = attrs.field(default=b"", validator=octets(), repr=bytes.hex)

    @property
    def mandatory(self) -> bool:
        return self.code < 128

    def encode(self) -> bytes:
        return _HEADER.pack(self.code, len(self.data)) + self.data + bytes(-len(self.data) % 4)

    def describe(self) -> str:
        return f"option {self.code} ({len(self.data)} octets)"


Option = RawOption


def decode_options(data: bytes, offset: int) -> tuple[Option, ...]:
    """The options from `offset` to the end of the datagram, in their order.

    Raises:
        DecodeError: an option runs past the end.
    """
    options = []
    while offset < len(data):
        if offset + 4 > len(data):
            raise DecodeError("truncated option header", offset)
        code, length = _HEADER.unpack_from(data, offset)
        end = offset + 4 + length
        if end > len(data):
            raise DecodeError(f"option {code} with {length} octets runs past the datagram", offset)
        options.append(RawOption(code, bytes(data[offset + 4 : end])))
        offset = end + -length % 4
    return tuple(options)


def encode_options(options: tuple[Option, ...]) -> bytes:
    return b"".join([option.encode() for option in options])


_HEADER = struct.Struct("!BxH")
