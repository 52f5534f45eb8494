"""Every knob of the server, typed, with its default and what it is.

Units are in the names. `service.settings_sources` reads them.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
)

from adapters.compatibility import RANKS
from adapters.database_url import parse_database_url
from adapters.errors import AdapterError, InvalidInput
from adapters.home import MAX_CACHE_GIB, STORE_CACHE_GIB
from adapters.remote import check_store_url
from service.trust import Trust, check_issuer

Days = Annotated[float, Field(gt=0, le=36_500)]

MOST = 10**12
"""Of any limit."""
Limit = Annotated[int, Field(ge=1, le=MOST)] | None


class SettingsError(Exception):
    """One line for each mistake."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Settings(BaseModel):
    """The server's settings; each field's description is its documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8321, ge=1, le=65535, description="port to listen on")
    base: str | None = Field(default=None, description="base model to serve; none: the default")
    database_url: SecretStr | None = Field(
        default=None,
        description="address of a PostgreSQL database, `postgresql://USER:PASSWORD@HOST/NAME`; "
        "none: SQLite in the home folder",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="the engine's dtype; auto: float32 on CPU, else the model's"
    )
    max_model_len: Annotated[int, Field(ge=64)] | None = Field(
        default=None, description="longest prompt and answer together, tokens; none: the model's"
    )
    max_loras: Annotated[int, Field(ge=1, le=256)] | None = Field(
        default=None,
        description="adapters that may run in one engine step; none: by memory and live versions",
    )
    max_lora_rank: int | None = Field(
        default=None, description="largest LoRA rank; none: that of the published versions, 16 up"
    )
    max_resident_versions: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        default=None,
        description="versions kept loaded in the engine; none: by memory and live versions",
    )
    version_wait_s: float = Field(
        default=30.0,
        ge=0,
        description="longest wait of a request while all places for versions are in use, seconds",
    )
    lora_target_modules: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="modules that adapters may change; never lm_head or embed_tokens",
    )
    kv_cache_gib: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="KV cache on CPU, GiB; none: a sixth of memory, 1 to 4"
    )
    api_keys: list[str] = Field(
        default=[], description="accepted API keys, 16 characters or more; none: no keys asked"
    )
    api_keys_file: Path | None = Field(
        default=None, description="file with one accepted API key a line"
    )
    oidc_audience: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="audience that tokens of oidc_issuer must be for"
    )
    oidc_project_claim: str = Field(
        default="project",
        min_length=1,
        max_length=200,
        description="claim of a token that names its caller's project",
    )
    oidc_leeway_s: float = Field(
        default=30.0,
        ge=0,
        le=300,
        description="by how much the issuer's clock may differ, seconds",
    )
    oidc_issuer: str | None = Field(
        default=None,
        description="OpenID Connect issuer whose tokens are taken beside keys, its https address; "
        "none: no tokens",
    )
    allow_anonymous: bool = Field(
        default=False, description="listen on a public address without keys"
    )
    key_requests_per_minute: Limit = Field(
        default=None, description="requests in any minute of a key without its own limit; none: any"
    )
    key_tokens_per_minute: Limit = Field(
        default=None, description="tokens in any minute of a key without its own limit; none: any"
    )
    key_concurrent: Limit = Field(
        default=None, description="requests at once of a key without its own limit; none: any"
    )
    project_requests_per_minute: Limit = Field(
        default=None,
        description="requests in any minute of a project without its own limit; none: any",
    )
    project_tokens_per_minute: Limit = Field(
        default=None,
        description="tokens in any minute of a project without its own limit; none: any",
    )
    project_concurrent: Limit = Field(
        default=None, description="requests at once of a project without its own limit; none: any"
    )
    store_url: str | None = Field(
        default=None,
        description="where versions lie: s3://BUCKET/PREFIX, file:///FOLDER or another fsspec URL; "
        "none: the home's folder store",
    )
    files_url: str | None = Field(
        default=None,
        description="where contents of uploaded files lie, a URL as for store_url; "
        "none: the home's folder files",
    )
    store_cache_gib: float = Field(
        default=STORE_CACHE_GIB,
        gt=0,
        le=MAX_CACHE_GIB,
        description="versions of store_url that are kept in the home, GiB",
    )
    max_body_bytes: int = Field(
        default=16 * 2**20, ge=1024, description="largest request body, bytes"
    )
    max_file_bytes: int = Field(
        default=512 * 2**20, ge=1024, description="largest uploaded file or part of one, bytes"
    )
    max_upload_bytes: int = Field(
        default=2 * 2**30, ge=1024, description="largest tar of an imported version, bytes"
    )
    max_url_bytes: int = Field(
        default=8192, ge=256, le=65_536, description="longest URL of a request, bytes"
    )
    max_header_bytes: int = Field(
        default=32_768, ge=1024, le=2**20, description="headers of a request together, bytes"
    )
    header_wait_s: float = Field(
        default=10.0, gt=0, description="longest time for the headers of a request, seconds"
    )
    body_wait_s: float = Field(
        default=30.0,
        gt=0,
        description="longest time for a request's body, seconds; "
        "one more for every 16 KiB that came",
    )
    answer_wait_s: float = Field(
        default=60.0, gt=0, description="longest time for which an answer may lie unread, seconds"
    )
    max_connections: int = Field(
        default=4096, ge=1, description="open connections; others are refused, but for probes"
    )
    max_choices: int = Field(
        default=256, ge=1, description="answers of one request: `n` times its prompts"
    )
    max_messages: int = Field(
        default=2048, ge=1, description="messages of a chat, items of a response's input"
    )
    max_tools: int = Field(default=128, ge=1, description="tools of one request")
    max_schema_bytes: int = Field(
        default=65_536, ge=256, description="largest schema, grammar or pattern for answers, bytes"
    )
    grammar_wait_s: float = Field(
        default=5.0,
        gt=0,
        description="processor time that compiling a schema, grammar or pattern may take, seconds",
    )
    max_running_sequences: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="sequences in the engine at once; none: as many as its steps and KV cache take",
    )
    max_queued_requests: int = Field(
        default=2000, ge=0, description="requests that wait for the engine at most"
    )
    max_queued_tokens: int = Field(
        default=4_000_000, ge=1, description="tokens that they are expected to take at most"
    )
    queue_wait_s: float = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="longest wait for the engine where a request names none, seconds",
    )
    queue_wait_s_by_route: dict[str, Annotated[float, Field(ge=0, le=86_400)]] = Field(
        default={}, description="the same for single routes, such as {/v1/classify: 5}"
    )
    project_weights: dict[str, Annotated[float, Field(gt=0, le=1000)]] = Field(
        default={}, description="shares of projects while they compete, such as {search: 3}; else 1"
    )
    alias_poll_s: float = Field(
        default=0.2, gt=0, le=2, description="how often moved aliases are looked for, seconds"
    )
    shutdown_grace_s: int = Field(
        default=30, ge=0, description="time for running requests at shutdown, seconds"
    )
    watchdog_interval_s: float = Field(
        default=300.0,
        ge=0,
        description="after so long without a request the engine is asked for a token, seconds; "
        "0: never",
    )
    watchdog_patience_s: float = Field(
        default=120.0,
        ge=1,
        description="an engine that is asked counts as stuck after so long without a token, "
        "seconds; longer than its longest step",
    )
    database_patience_s: float = Field(
        default=600.0,
        ge=0,
        description="how long a server counts as ready whose database does not answer, seconds",
    )
    worker_jobs: int = Field(
        default=1,
        ge=0,
        le=64,
        description="fine-tuning jobs that the server's own worker does at once; "
        "0: none, run `modiste worker`",
    )
    max_job_hours: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="longest time at work of a fine-tuning job, hours; none: any"
    )
    keep_files_days: Days | None = Field(
        default=None, description="uploaded files are kept for so long, days; none: for ever"
    )
    keep_outputs_days: Days | None = Field(
        default=None,
        description="files that jobs and batches wrote are kept for so long, days; none: for ever",
    )
    keep_job_logs_days: Days | None = Field(
        default=None,
        description="events and logs of ended jobs are kept for so long, days; none: for ever",
    )
    keep_usage_days: Days | None = Field(
        default=None, description="figures of usage are kept for so long, days; none: for ever"
    )
    keep_audit_days: Days | None = Field(
        default=None,
        description="entries of the audit log are kept for so long, days; none: for ever",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="what is logged"
    )
    log_format: Literal["text", "json"] = Field(
        default="text", description="lines of the log: text, or json: one object a line"
    )
    log_requests: bool = Field(default=True, description="log one line for each request")
    log_request_text: bool = Field(
        default=False,
        description="log what requests for answers say, without secrets and personal data",
    )
    otlp_endpoint: str | None = Field(
        default=None,
        description="send traces to this OpenTelemetry collector, such as http://HOST:4318; "
        "none: no traces",
    )
    trace_ratio: float = Field(
        default=1.0, ge=0, le=1, description="share of requests that are traced on our own account"
    )
    metrics_versions: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="versions of adapters that metrics tell apart; the rest counts as `other`",
    )
    vllm_args: list[str] = Field(default=[], description="more arguments for `vllm serve`")

    @field_validator("queue_wait_s_by_route", "project_weights", mode="before")
    @classmethod
    def _mapping_from_the_environment(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                return json.loads(value)
            except ValueError:
                raise ValueError('must be a mapping; in the environment {"NAME": 1}') from None
        return value

    @field_validator("max_lora_rank")
    @classmethod
    def _rank_that_vllm_accepts(cls, value: int | None) -> int | None:
        if value is not None and value not in RANKS:
            raise ValueError(f"must be one of {', '.join(map(str, RANKS))}")
        return value

    @field_validator("database_url")
    @classmethod
    def _database_that_can_be_used(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parse_database_url(value.get_secret_value())
            except InvalidInput as error:
                problem = error.message.removeprefix("database_url ")
                raise ValueError(f"{problem}; {error.hint}") from None
        return value

    @field_validator("lora_target_modules")
    @classmethod
    def _never_the_head(cls, value: list[str]) -> list[str]:
        if bad := [name for name in value if "lm_head" in name or "embed_tokens" in name]:
            raise ValueError(f"{bad} would crash the engine under prompt log-probabilities")
        return value

    @field_validator("api_keys")
    @classmethod
    def _long_keys(cls, value: list[str]) -> list[str]:
        if any(len(key) < 16 for key in value):
            raise ValueError("an API key has 16 characters or more")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector_without_secrets(cls, value: str | None) -> str | None:
        if value is not None:
            url = urlsplit(value)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError("must be a URL such as http://HOST:4318 (OTLP over HTTP)")
            if url.username or url.password or url.query or url.fragment:
                raise ValueError(
                    "must have neither credentials nor a query; set OTEL_EXPORTER_OTLP_HEADERS"
                )
        return value

    @field_validator("oidc_issuer")
    @classmethod
    def _issuer_that_can_be_trusted(cls, value: str | None, info: ValidationInfo) -> str | None:
        if not value:
            return None
        if not info.data.get("oidc_audience"):
            raise ValueError("needs oidc_audience: tokens for other services would be taken too")
        return check_issuer(value)

    def trust(self) -> Trust | None:
        """Whose tokens are taken, and which; None: nobody's."""
        if self.oidc_issuer is None or self.oidc_audience is None:
            return None
        return Trust(
            self.oidc_issuer, self.oidc_audience, self.oidc_project_claim, self.oidc_leeway_s
        )

    @field_validator("store_url", "files_url")
    @classmethod
    def _place_without_secrets(cls, value: str | None, info: ValidationInfo) -> str | None:
        try:
            return check_store_url(value, str(info.field_name)) if value else None
        except AdapterError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None

    def keys(self) -> list[str]:
        """All accepted API keys.

        Raises:
            SettingsError: the key file is unreadable, empty or has a short key.
        """
        if self.api_keys_file is None:
            return self.api_keys
        try:
            lines = self.api_keys_file.read_text().split()
        except OSError as error:
            raise SettingsError(
                [f"api_keys_file: {self.api_keys_file}: {error.strerror}"]
            ) from None
        if not lines or any(len(key) < 16 for key in lines):
            raise SettingsError(
                [f"api_keys_file: {self.api_keys_file}: needs keys of 16 characters or more"]
            )
        return [*self.api_keys, *lines]
