"""What an attacker sends who knows everything but the nonces: he cannot see the requests (RFC 6887 section 18.1)."""

from __future__ import annotations

import random
import typing
from collections.abc import Sequence
from ipaddress import IPv4Address

from natpmp_sansio import Endpoint, Protocol, natpmp, pcp
from natpmp_sansio.wire.fields import IPAddress, any_address, to_address

KINDS = (
    "MAP answer",
    "MAP error",
    "PEER answer",
    "version error",
    "announcement",
    "NAT-PMP announcement",
    "NAT-PMP answer",
    "truncated answer",
    "noise",
    "stranger",
)
MAPPED = (Protocol.TCP, Protocol.UDP)


def forged(
    kind: str,
    dice: random.Random,
    client: str,
    mappings: Sequence[tuple[int, int, Endpoint | None]],
    epoch: int,
    external: IPAddress | None,
) -> bytes:
    """A datagram of this kind. `mappings` are the client's: protocol, internal port and external endpoint."""
    protocol, port, endpoint = dice.choice(mappings)
    evil = to_address("198.51.100.66")
    seen = max(0, epoch + dice.choice((0, 0, -1, -2, -3, 2, 3, 4, -1000, 1000, 10**6, -(10**6))))
    code = pcp.ResultCode(dice.choice((0, *range(2, 14), 99)))
    lifetime = dice.choice((0, 1, 600, 86400, 2**32 - 1))
    shown = endpoint if endpoint is not None and endpoint.address is not None and dice.random() < 0.5 else None
    address = evil if shown is None or shown.address is None else shown.address
    answer: dict[str, typing.Any] = {
        "lifetime": lifetime,
        "epoch": seen,
        "nonce": dice.choice((bytes(12), b"\xff" * 12, dice.randbytes(12))),
        "protocol": protocol,
        "internal_port": port,
        "external_port": 666 if shown is None else shown.port,
        "external_address": address,
    }
    match kind:
        case "MAP answer" | "stranger":
            return pcp.MapResponse(pcp.ResultCode.SUCCESS, **answer).encode()
        case "MAP error":
            return pcp.MapResponse(code, **answer).encode()
        case "PEER answer":
            return pcp.PeerResponse(code, **answer, remote_port=443, remote_address=any_address(address)).encode()
        case "version error":
            return _version_error(dice, epoch, lifetime)
        case "announcement":
            return pcp.AnnounceResponse(pcp.ResultCode.SUCCESS, 0, seen).encode()
        case "NAT-PMP announcement":
            address = external if isinstance(external, IPv4Address) else IPv4Address("203.0.113.5")
            return natpmp.ExternalAddressResponse(natpmp.ResultCode.SUCCESS, seen, address).encode()
        case "NAT-PMP answer":
            return _nat_pmp_answer(dice, seen, protocol, port, lifetime)
        case "truncated answer":
            whole = pcp.MapResponse(pcp.ResultCode.SUCCESS, **answer).encode()
            return whole[: dice.randrange(len(whole))]
        case _:
            start = dice.choice((b"", b"\2", b"\2\x83", b"\2\x81\0\0", b"\0\x83\0\0"))
            return start + dice.randbytes(dice.randrange(64))


def _version_error(dice: random.Random, epoch: int, lifetime: int) -> bytes:
    """In every shape (RFC 6886 section 3.5 and its erratum 3618, RFC 6887 section 9)."""
    opcode = dice.choice((0, 1, 2, 0x80, 0x81, 0x82))
    offered = dice.choice((0, 0, 1, 3, 255))
    start = bytes((offered, opcode if offered == 0 and opcode in (0, 0x80) else 0x80 | opcode, 0, 1))
    return start + dice.choice((b"", epoch.to_bytes(4), lifetime.to_bytes(4) + epoch.to_bytes(4) + bytes(12)))


def _nat_pmp_answer(dice: random.Random, epoch: int, protocol: int, port: int, lifetime: int) -> bytes:
    code = natpmp.ResultCode(dice.choice((0, 0, 2, 3, 4)))
    if protocol not in MAPPED:
        return natpmp.ExternalAddressResponse(natpmp.ResultCode.NETWORK_FAILURE, epoch).encode()
    return natpmp.MapResponse(Protocol(protocol), code, epoch, port, 666, lifetime).encode()
