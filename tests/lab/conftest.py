from __future__ import annotations

import typing
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest


@pytest.fixture(scope="module")
def stories(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[str | None]]]:
    """Those of this module that are asked for: all begin at once."""
    chosen: list[typing.Any] = [item for item in request.session.items if item.path == request.path]
    with ThreadPoolExecutor(len(chosen)) as pool:
        yield {item.name: pool.submit(item.function.told, tmp_path_factory.mktemp("lab")) for item in chosen}
