"""One real server with the tiny base for the whole session."""

from collections.abc import Iterator

import pytest

from adapters.registry import Registry
from tests.made import Recipe, add_tiny_base, publish
from tests.serving import Running, start, stop


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The base `tiny` and four adapters, all live but `two`."""
    home = tmp_path_factory.mktemp("home")
    registry = Registry.open(home)
    base = add_tiny_base(registry)
    labels = ["positive", "neutral", "negative"]
    for recipe in (
        Recipe("one", seed=1),
        Recipe("two", seed=2),
        Recipe("mood", seed=3, task="classify", labels=labels),
        Recipe("enfr", seed=4, task="translate", languages=["en", "fr"]),
    ):
        version = publish(registry, base, recipe)
        if recipe.name != "two":
            registry.promote(version.reference)
    process, url = start(home, MODISTE_GRAMMAR_WAIT_S="1")
    yield Running(registry, base, url, home / "serve.log", process)
    stop(process)
