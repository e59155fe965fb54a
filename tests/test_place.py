"""Where a client is, as it is found: which gateway, and from which address."""

from __future__ import annotations

import typing

import pytest

from natpmp_sansio import Address, DiscoveryError
from natpmp_sansio.adapters import _sockets, discovery
from natpmp_sansio.adapters._place import Place
from natpmp_sansio.adapters.discovery import DefaultGateway

ROUTER: Address = ("192.168.1.1", 5351)
V6_ROUTER: Address = ("fe80::1", 5351, 0, 2)
SOURCES = {"192.168.1.1": "192.168.1.7", "192.168.2.1": "192.168.2.7", "fe80::1": "2001:db8::7"}


class World:
    """What the system would say of its routes. `asleep` is for how long it has slept."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.routers: list[Address] = [ROUTER, V6_ROUTER]
        self.sources: dict[str, str] = dict(SOURCES)
        self.asleep = 0.0
        monkeypatch.setattr(discovery, "default_gateways", self.default_gateways)
        monkeypatch.setattr(_sockets, "source_address", lambda gateway, _: self.sources[gateway[0]])
        monkeypatch.setattr(_sockets, "time_asleep", lambda: self.asleep)

    def default_gateways(self, **_: object) -> list[DefaultGateway]:
        if not self.routers:
            raise DiscoveryError("this host has no default gateway")
        return [DefaultGateway(router, "eth0") for router in self.routers]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def place(gateway: typing.Any = None, versions: tuple[int, ...] = (2, 0)) -> Place:
    return Place(gateway, None, None, versions)


def test_the_default_gateway_is_followed(world: World) -> None:
    here = place()
    assert (here.gateways, here.local, here.bind_address) == ((ROUTER,), "192.168.1.7", ("192.168.1.7", 0))
    assert not here.has_changed(0.0)
    world.routers = [("192.168.2.1", 5351)]
    assert here.has_changed(1.0)
    assert (here.gateways, here.local) == ((("192.168.2.1", 5351),), "192.168.2.7")
    assert not here.has_changed(2.0)


def test_a_gateway_that_was_named_is_not_given_up(world: World) -> None:
    here = place("192.168.1.1")
    world.routers = [("192.168.2.1", 5351)]
    assert not here.has_changed(0.0)
    world.sources["192.168.1.1"] = "192.168.1.8"
    assert here.has_changed(1.0)
    assert (here.gateways, here.local) == ((ROUTER,), "192.168.1.8")


@pytest.mark.usefixtures("world")
def test_several_addresses_of_one_server_may_be_named() -> None:
    assert place([ROUTER, "192.168.2.1"]).gateways == (ROUTER, ("192.168.2.1", 5351))
    assert place(ROUTER).gateways == (ROUTER,)


def test_without_a_network_nothing_has_changed_until_there_is_one_again(world: World) -> None:
    here = place()
    world.routers = []
    assert not here.has_changed(0.0)
    assert not here.has_changed(100.0)
    world.routers = [ROUTER]
    assert here.has_changed(101.0)  # the same place, but who knows what was lost
    assert not here.has_changed(102.0)


def test_another_family_has_to_be_alone_for_a_while(world: World) -> None:
    """When the address of one family is renewed, that of the other is there for a moment alone."""
    here = place()
    world.routers = [V6_ROUTER]
    assert not here.has_changed(0.0)
    world.routers = [ROUTER, V6_ROUTER]
    assert here.has_changed(1.0)
    assert here.gateways == (ROUTER,)
    world.routers = [V6_ROUTER]
    assert not here.has_changed(20.0)
    assert not here.has_changed(29.5)
    assert here.has_changed(30.0)
    assert (here.gateways, here.bind_address) == ((V6_ROUTER,), ("2001:db8::7", 0, 0, 2))


def test_nat_pmp_alone_has_nothing_to_ask_an_ipv6_gateway(world: World) -> None:
    world.routers = [V6_ROUTER]
    with pytest.raises(DiscoveryError, match="no default gateway for IPv4"):
        place(versions=(0,))


def test_an_address_that_nobody_outside_can_reach_is_no_place(world: World) -> None:
    world.routers = [V6_ROUTER]
    world.sources["fe80::1"] = "fe80::7"
    with pytest.raises(DiscoveryError, match="fe80::7, which nobody outside can reach"):
        place()
    assert Place(None, "fe80::7", None, (2,)).local == "fe80::7"


def test_a_nap_is_no_sleep(world: World) -> None:
    here = place()
    world.asleep += 1.5
    assert not here.has_slept()
    world.asleep += 600.0
    assert here.has_slept()
    assert not here.has_slept()
