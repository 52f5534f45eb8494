"""Where the server's settings come from: `modiste.yaml` in the home folder, then `MODISTE_*`.

Unknown keys are errors, and all mistakes are told at once.
"""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from adapters.audit import ACTOR
from adapters.errors import InvalidInput
from adapters.home import Home
from service.settings import Settings, SettingsError

NOT_SETTINGS = frozenset({"MODISTE_HOME", "MODISTE_API_KEY", ACTOR})
"""Read elsewhere: the home, the key that `modiste loadtest` sends, for whom a child works."""


def load_settings(
    home: Home, overrides: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Settings:
    """Settings from the file, then the environment, then the command line.

    Raises:
        SettingsError: every unknown key and wrong value.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {**_from_file(home), **_from_environment(environment)}
    values |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError([_explain(problem) for problem in error.errors()]) from None


def _from_file(home: Home) -> dict[str, Any]:
    try:
        return home.configured()
    except InvalidInput as error:
        raise SettingsError([error.message]) from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, text in environment.items():
        if key.startswith("MODISTE_") and key not in NOT_SETTINGS:
            name = key.removeprefix("MODISTE_").lower()
            listed = name in ("api_keys", "vllm_args", "lora_target_modules")
            found[name] = text.split() if listed else text
    return found


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown setting; known are {', '.join(sorted(Settings.model_fields))}"
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
