"""`natpmp gateway` in a process of its own, as people's tests start it."""

from __future__ import annotations

import json
import typing

from program import Program


class GatewayCommand(Program):
    """Running until `end`, or the end of the block."""

    def __init__(self, *options: str) -> None:
        super().__init__("-m", "natpmp_sansio", "gateway", *options)

    def event(self) -> dict[str, typing.Any]:
        """What it prints next, from JSON."""
        event: dict[str, typing.Any] = json.loads(self.line())
        return event
