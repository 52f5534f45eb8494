"""From settings to vLLM's own server: its arguments, its environment, and its start."""

import errno
import logging
import os
import socket
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from math import ceil
from typing import Any

from adapters.bases import Base, light_fingerprint
from adapters.errors import AdapterError
from adapters.home import Home
from adapters.registry import Registry
from service import forked, logs
from service.auth import Authenticator
from service.capacity import Capacity, device_bytes, memory_bytes
from service.capacity import plan as plan_capacity
from service.ending import EndedByItself, Outcome
from service.engine_plugin import on_cpu
from service.files import INCOMING
from service.keys import Keys
from service.oidc import Issuer
from service.redaction import Secrets
from service.settings import Settings, SettingsError
from service.waiting import FEW_CORES

logger = logging.getLogger("modiste.launch")

INSPECTOR = "service.inspector.Inspector"
"""By name: its module imports torch, which is slow."""

STRUCTURE = "--structured-outputs-config"

COMPILED_PRODUCTS = 256
"""That oneDNN keeps; vLLM keeps 32 for each shape of weights beside them."""

TINY = 20_000_000
"""Parameters: a step of so small a model is shorter than its threads' waits for each other."""

FORBIDDEN_ENVIRONMENT = {
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "any model name would be answered by the base",
    "VLLM_SERVER_DEV_MODE": "it opens routes that control the engine",
    "VLLM_USE_RUST_FRONTEND": "that front end does not load our routes",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "adapters would be served without a proof",
    "VLLM_ENABLE_RESPONSES_API_STORE": "answers would be kept for ever, for whoever knows their id",
    "VLLM_API_KEY": "keys are ours: set api_keys_file",
}
FORBIDDEN_ARGUMENTS = {
    "--api-server-count": "one process holds the whole state",
    "-asc": "one process holds the whole state",
    "--headless": "there would be no front end",
    "--grpc": "that front end does not load our routes",
    "--api-key": "set api_keys_file instead",
    "--lora-modules": "publish adapters with `modiste adapters`",
    "--config": "a file could set what is refused here; write the flags out",
    "--middleware": "it would run code outside our checks",
    "--model": "set base instead",
    "--served-model-name": "the base's own name is served",
    "--host": "set host instead",
    "--port": "set port instead",
    "--scheduling-policy": "priority is always used",
    "--worker-extension-cls": "ours tells what the engine loaded",
    "--tool-server": "what a model writes would be run by this server",
    "--trust-request-chat-template": "templates from requests are never run",
}


def vllm_arguments(settings: Settings, base: Base, capacity: Capacity) -> list[str]:
    """Arguments of `vllm serve` for a base model, the model's folder first."""
    dtype = settings.dtype
    if dtype == "auto" and on_cpu():
        dtype = "float32"  # as fast as bfloat16 there, and exact
    arguments = [
        str(base.path),
        "--served-model-name", base.name,
        "--host", settings.host,
        "--port", str(settings.port),
        "--dtype", dtype,
        "--enable-lora",
        "--max-loras", str(capacity.slots),
        "--max-cpu-loras", str(max(capacity.places, capacity.slots)),
        "--max-lora-rank", str(capacity.max_rank),
        "--lora-target-modules", *settings.lora_target_modules,
        "--scheduling-policy", "priority",
        "--worker-extension-cls", INSPECTOR,
        "--shutdown-timeout", str(settings.shutdown_grace_s),
        "--uvicorn-log-level", settings.log_level,
        "--disable-uvicorn-access-log",
    ]  # fmt: skip
    if on_cpu():
        arguments += ["--block-size", "32"]  # 128 by default: too coarse to share prompts
    if settings.max_model_len is not None:
        arguments += ["--max-model-len", str(settings.max_model_len)]
    if _tries_grammars(settings):
        # `auto` lets the first request that has a schema choose for all later ones
        arguments += [f"{STRUCTURE}.backend", "xgrammar"]
    return arguments + settings.vllm_args


def _tries_grammars(settings: Settings) -> bool:
    """Whether the compiler is ours to choose."""
    flags = (argument.replace("_", "-") for argument in settings.vllm_args)
    return not any(flag.startswith(STRUCTURE) for flag in flags)


def planned(settings: Settings, registry: Registry, base: Base) -> Capacity:
    """How many adapters the engine takes on this machine."""
    return plan_capacity(settings, registry, base, device_bytes(cpu=on_cpu()))


def vllm_environment(settings: Settings, base: Base) -> dict[str, str]:
    """Environment that the server needs; what the operator set himself stays."""
    plugins = [name for name in os.environ.get("VLLM_PLUGINS", "").split(",") if name]
    wanted = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if _tries_grammars(settings):
        # those that take long were refused; this clock runs for whatever else the engine does
        wanted["VLLM_REGEX_COMPILATION_TIMEOUT_S"] = str(ceil(12 * settings.grammar_wait_s))
    if on_cpu():
        # the one function that vLLM would compile there needs g++ and gains nothing
        wanted["TORCH_COMPILE_DISABLE"] = "1"
        # matrix products compiled for each number of tokens that a step ever had: 1,024 by default
        # are half a GiB, and a server grows for as long as it has not met so many
        wanted["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = str(COMPILED_PRODUCTS)
        gib = memory_bytes() // 2**30
        space = settings.kv_cache_gib
        wanted["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(4, gib // 6)) if space is None else space)
        wanted |= _threads(base, sorted(os.sched_getaffinity(0)))
    environment = {name: os.environ.get(name, value) for name, value in wanted.items()}
    environment["VLLM_PLUGINS"] = ",".join(dict.fromkeys([*plugins, "modiste"]))
    return environment


def _threads(base: Base, cores: list[int]) -> dict[str, str]:
    """How the engine's threads share few cores with the front end."""
    if len(cores) > FEW_CORES:
        return {}
    if base.parameters < TINY:
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    # vLLM would keep a core free for the front end, which is idle most of the time
    return {"VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores))}


def problems(settings: Settings, base: Base, *, keys: bool) -> list[str]:
    """Everything that forbids a start, each with its remedy.

    Args:
        keys: whether callers are asked for one.
    """
    found = [
        f"the environment has {name}: {why}; unset it"
        for name, why in FORBIDDEN_ENVIRONMENT.items()
        if os.environ.get(name, "").lower() not in ("", "0", "false")
    ]
    for argument in settings.vllm_args:
        flag = argument.split("=", 1)[0].replace("_", "-")
        # vLLM's parser takes any unambiguous beginning of a flag for the flag
        meant = [full for full in FORBIDDEN_ARGUMENTS if full == flag or _begins(full, flag)]
        found += [f"vllm_args has {flag}: {FORBIDDEN_ARGUMENTS[full]}" for full in meant]
    public = settings.host not in ("127.0.0.1", "localhost", "::1")
    if public and not keys and not settings.allow_anonymous:
        found.append(
            f"host {settings.host} is reachable from outside and there are no API keys; "
            "make one with `modiste keys create`, or set allow_anonymous if something in front "
            "asks for keys"
        )
    if not base.lora:
        found.append(f"base {base.name} can't be served with adapters: {base.lora_reason}")
    return found + _base_problems(base) + _port_problems(settings)


def _begins(full: str, flag: str) -> bool:
    return flag.startswith("--") and len(flag) > len("--") and full.startswith(flag)


def _base_problems(base: Base) -> list[str]:
    try:
        found = light_fingerprint(base.path)
    except AdapterError as error:
        return [f"base {base.name}: {error}"]
    changed = [part for part, digest in found.items() if getattr(base.ref, part) != digest]
    if not changed:
        return []
    return [
        f"base {base.name} in {base.path} has another {', '.join(changed)} than when it was added; "
        "restore it, or add it under another name"
    ]


def _port_problems(settings: Settings) -> list[str]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            return [
                f"port {settings.port} of {settings.host} can't be used: {error.strerror}; "
                "stop what uses it, or choose another with --port"
            ]
    return []


def _home_problems(home: Home) -> list[str]:
    """A full disk only refuses what has to be kept; a home that can't be written is none."""
    folder = home.files / INCOMING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) and folder.is_dir():
            logger.warning(
                "the disk of %s is full: what is live is served, and nothing new is kept until "
                "some of it is free",
                home.root,
            )
            return []
        return [
            f"the home folder {home.root} can't be written: {error.strerror}; mount it writable, "
            "give it to this user, or set MODISTE_HOME to another folder"
        ]
    return []


def serve(settings: Settings, registry: Registry) -> None:
    """Run the server until it is told to stop.

    Raises:
        SettingsError: every reason why it can't start.
        AdapterError: no such base model.
        EndedByItself: nobody told it to stop.
    """
    environment = dict(os.environ)  # of the worker: without what vLLM is told
    base = registry.base(settings.base)
    made = Keys(registry.database)
    trust = settings.trust()
    issuer = None if trust is None else Issuer(trust, made.closed)
    authenticator = Authenticator(settings.keys(), made, issuer)
    secrets = Secrets(logs.known_secrets(environment, settings))
    logs.begin(settings.log_format, settings.log_level, secrets)
    found = problems(settings, base, keys=authenticator.asks_for_keys)
    if found := found + _home_problems(registry.home):
        raise SettingsError(found)
    os.environ.update(vllm_environment(settings, base))
    os.environ.update(logs.vllm_environment(settings.log_format))
    _run(settings, registry, base, authenticator, environment)


def _run(
    settings: Settings,
    registry: Registry,
    base: Base,
    authenticator: Authenticator,
    environment: dict[str, str],
) -> None:
    if on_cpu():
        forked.begin()
    # imported here: vllm reads the environment when it is imported
    import uvloop
    from vllm.logger import configure_logging_from_args

    from service.assembly import Plan
    from service.plugin import plan
    from service.protocol import Connections, protocol

    capacity = planned(settings, registry, base)
    args = parse(vllm_arguments(settings, base, capacity))
    if settings.log_format == "json":  # for uvicorn's lines
        configure_logging_from_args(args)
    outcome, connections = Outcome(), Connections()
    plan.set(
        Plan(settings, registry, base, authenticator, capacity, environment, outcome, connections)
    )
    uvloop.run(_run_server(args, http=protocol(settings, connections)))
    if outcome.failure or not outcome.asked:
        raise EndedByItself(outcome.failure or "the HTTP server has stopped")


async def _run_server(args: Namespace, **for_uvicorn: Any) -> None:
    """vLLM's `run_server` without its handler of SIGTERM, which would leave a traceback."""
    from vllm.entrypoints.launchers.api_server import entry

    entry.decorate_logs("APIServer", skip_if_decorated=True)
    address, listening = entry.setup_server(args, reuse_port=False)
    await entry.run_server_worker(address, listening, args, **for_uvicorn)


def parse(arguments: Sequence[str]) -> Namespace:
    """vLLM's own parsing and checks of its arguments."""
    from vllm.entrypoints.launchers.cli_args import (
        make_arg_parser,
        validate_parsed_serve_args,
    )
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    args: Namespace = make_arg_parser(FlexibleArgumentParser()).parse_args(["--model", *arguments])
    validate_parsed_serve_args(args)
    return args
