"""A client's mappings as plain values, which survive the process, and back.

The form is dicts, lists, strings, numbers and None, so that `json.dumps` takes it. It holds the nonces: whoever reads
it can change the mappings at the gateway (RFC 6887 section 18.1).
"""

from __future__ import annotations

import math
import typing

import attrs

from ..errors import LocalProtocolError, NatPmpError
from ..events import Address
from ..wire.fields import Endpoint, IPAddress, Value, to_address
from ..wire.options import Option, decode_options, encode_options
from .lifecycle import ClientMapping

FORM = "natpmp_sansio client 1"
Plain = dict[str, typing.Any]


@attrs.frozen(kw_only=True, eq=False, repr=False)
class Saved(Value):
    """One mapping of a snapshot, times in seconds as of then. `remaining` of the lease: None if it was not held."""

    id: int
    protocol: int
    internal_port: int
    remote: Endpoint | None
    external: Endpoint
    lifetime: int
    nonce: bytes
    options: tuple[Option, ...]
    until: float | None
    remaining: float | None
    version: int | None
    twin: int | None
    family: int | None


def write_snapshot(
    gateways: tuple[Address, ...], local: IPAddress, mappings: list[ClientMapping], last_id: int, now: float
) -> Plain:
    """What `read_snapshot` gives back."""
    return {
        "form": FORM,
        "gateways": [list(address) for address in gateways],
        "local_address": str(local),
        "last_id": last_id,
        "mappings": [_write_mapping(mapping, now) for mapping in mappings],
    }


def read_snapshot(snapshot: object) -> tuple[list[Address], str, int, list[Saved]]:
    """Gateways, local address, the last id, and the mappings.

    Raises:
        LocalProtocolError: it is not what `write_snapshot` wrote, and why not.
    """
    if not isinstance(snapshot, dict) or snapshot.get("form") != FORM:
        raise LocalProtocolError(f"not a snapshot of a client: its form is not {FORM!r}")
    try:
        gateways = [typing.cast("Address", tuple(address)) for address in snapshot["gateways"]]
        mappings = [_read_mapping(mapping) for mapping in snapshot["mappings"]]
        local, last_id = str(snapshot["local_address"]), _number(snapshot["last_id"], int)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, NatPmpError) as error:
        raise LocalProtocolError(f"a damaged snapshot: {error!r}") from None
    ids = [mapping.id for mapping in mappings]
    if len(set(ids)) < len(ids) or not all(0 < each <= last_id for each in ids):
        raise LocalProtocolError("a damaged snapshot: its mappings are not numbered one by one")
    twins = {mapping.id: mapping.twin for mapping in mappings}
    if any(twin is not None and (twin == each or twins.get(twin) != each) for each, twin in twins.items()):
        raise LocalProtocolError("a damaged snapshot: one of a pair is missing")
    return gateways, local, last_id, mappings


def _write_mapping(mapping: ClientMapping, now: float) -> Plain:
    spec, pair = mapping.spec, mapping.pair
    return {
        "id": mapping.id,
        "protocol": int(spec.protocol),
        "internal_port": spec.internal_port,
        "remote": _write_endpoint(spec.remote),
        "external": _write_endpoint(spec.external),
        "lifetime": spec.lifetime,
        "nonce": spec.nonce.hex(),
        "options": encode_options(spec.options).hex(),
        "until": None if mapping.spec.until is None else mapping.spec.until - now,
        "remaining": mapping.expires_at - now if mapping.is_held else None,
        "version": mapping.dialect.version if mapping.dialect is not None and mapping.is_held else None,
        "family": spec.family,
        "twin": pair.twin(mapping).id if pair is not None else None,
    }


def _read_mapping(saved: Plain) -> Saved:
    nonce = bytes.fromhex(saved["nonce"])
    if len(nonce) != 12:
        raise ValueError(f"a nonce of {len(nonce)} octets")
    external, remote = _read_endpoint(saved["external"]), _read_endpoint(saved["remote"])
    if external is None or (remote is not None and remote.address is None):
        raise ValueError("a mapping without an endpoint")
    if saved["family"] not in (None, 4, 6):
        raise ValueError(f"a family {saved['family']!r}")
    return Saved(
        id=_number(saved["id"], int),
        protocol=_number(saved["protocol"], int),
        internal_port=_number(saved["internal_port"], int),
        remote=remote,
        external=external,
        lifetime=_number(saved["lifetime"], int),
        nonce=nonce,
        options=decode_options(bytes.fromhex(saved["options"]), 0),
        until=None if saved["until"] is None else _number(saved["until"], float),
        remaining=None if saved["remaining"] is None else _number(saved["remaining"], float),
        version=None if saved["version"] is None else _number(saved["version"], int),
        twin=None if saved["twin"] is None else _number(saved["twin"], int),
        family=None if saved["family"] is None else _number(saved["family"], int),
    )


def _write_endpoint(endpoint: Endpoint | None) -> list[str | int | None] | None:
    if endpoint is None:
        return None
    return [None if endpoint.address is None else str(endpoint.address), endpoint.port]


def _read_endpoint(saved: list[typing.Any] | None) -> Endpoint | None:
    if saved is None:
        return None
    address, port = saved
    return Endpoint(None if address is None else to_address(address), _number(port, int))


N = typing.TypeVar("N", int, float)


def _number(value: object, kind: type[N]) -> N:
    if isinstance(value, bool) or not isinstance(value, kind | int) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a number")
    return kind(value)
