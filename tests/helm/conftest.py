"""The objects of every scenario, rendered once each."""

import copy
from functools import cache

import pytest

from tests.helm.rendering import SCENARIOS, Objects, render, scenario


@cache
def _rendered(name: str) -> Objects:
    return render(scenario(name))


@pytest.fixture(params=SCENARIOS)
def objects(request: pytest.FixtureRequest) -> Objects:
    """What each scenario makes."""
    return copy.deepcopy(_rendered(request.param))
