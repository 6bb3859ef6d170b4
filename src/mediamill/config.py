"""Settings: the only reader of the environment. Every field one sentence and a unit.

Read once in `main`, passed down. A setting is looked up under its `MEDIAMILL_` name and under every name the five
source documents use for it; a secret also under `<NAME>_FILE`, the path of a file that holds it (`variables.py`). The
environment wins over `.env`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from mediamill.errors import Misconfigured
from mediamill.variables import NAME, Reading, Spelling, read

StorageMode = Literal["s3", "file", "gcs", "supabase", "stateless", "memory"]
Place = Literal["local", "runpod"]
"""Where jobs run: on the workers of this installation, or on a RunPod endpoint."""
Names = Annotated[tuple[str, ...], NoDecode]
"""Comma-separated in the environment."""


UNUSED = "Accepted and unused."
"""How the description of such a setting begins."""

FAMILIES = {"model_locations": f"MEDIAMILL_MODEL_{NAME}", "runpod_endpoints": f"RUNPOD_{NAME}_ENDPOINT_ID"}
"""Settings of one variable for each catalog entry, by field."""


def _named(*names: str, default: Any = None, description: str, **rest: Any) -> Any:
    return Field(default=default, validation_alias=AliasChoices(*names), description=description, **rest)


class Settings(BaseSettings):
    """What is in force. Secrets are SecretStr: they print as stars."""

    model_config = SettingsConfigDict(
        env_file=".env", extra="ignore", populate_by_name=True, env_ignore_empty=True, hide_input_in_errors=True
    )

    # places
    data_dir: Path = _named(
        "MEDIAMILL_DATA_DIR", default=Path("data"), description="Folder for everything mediamill writes."
    )
    work_dir: Path | None = _named("WORK_DIR", description="Scratch folder of running jobs; unset: DATA_DIR/work.")
    output_dir: Path | None = _named(
        "OUTPUT_DIR", description="Folder of stored outputs with file storage; unset: DATA_DIR/outputs."
    )
    logs_dir: Path | None = _named("LOGS_DIR", description="Folder of log files; unset: DATA_DIR/logs.")
    database_url: SecretStr | None = _named(
        "DATABASE_URL", description="PostgreSQL (>= 14) to use; unset: an embedded server under DATA_DIR/postgres."
    )

    # the HTTP side
    host: str = _named("MEDIAMILL_HOST", default="127.0.0.1", description="Address to listen on.")
    port: int = _named("PORT", default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_url: str | None = _named(
        "MEDIAMILL_PUBLIC_URL", description="Base URL of this service as callers see it, behind a proxy."
    )
    api_keys: Names = _named(
        "MEDIAMILL_API_KEYS",
        default=(),
        description="Comma-separated API keys.",
        repr=False,
        json_schema_extra={"secret": True},
    )
    x_api_key: SecretStr | None = _named("X_API_KEY", description="One valid API key.")
    auth_token: SecretStr | None = _named("AUTH_TOKEN", description="One more valid API key.")
    allow_anonymous: bool = _named(
        "MEDIAMILL_ALLOW_ANONYMOUS", default=False, description="Serve a non-loopback address without any API key."
    )
    cors_allow_origins: Names = _named("CORS_ALLOW_ORIGINS", default=(), description="Comma-separated origins, or *.")
    max_body_bytes: int = _named(
        "MEDIAMILL_MAX_BODY_BYTES", default=48 * 1024**2, description="Largest JSON body, bytes."
    )
    max_upload_bytes: int = _named(
        "MEDIAMILL_MAX_UPLOAD_BYTES", default=4 * 1024**3, description="Largest uploaded file, bytes."
    )
    blocking_limit_s: float = _named(
        "RUNPOD_MAX_TIMEOUT", default=480.0, gt=0, description="Longest a blocking call holds its connection, seconds."
    )
    runpod_idle_timeout_s: float = _named(
        "RUNPOD_IDLE_TIMEOUT", default=300.0, description="Shown by /runpod/config, seconds."
    )
    max_queued: int = _named(
        "MEDIAMILL_MAX_QUEUED", default=100_000, description="Jobs waiting at most; more are refused with 503."
    )

    max_unfinished: int = _named(
        "MEDIAMILL_MAX_UNFINISHED_PER_KEY",
        default=0,
        ge=0,
        description="Jobs of one API key waiting or running at most; more are refused with 429. 0: no limit.",
    )

    # logs
    log_level: str = _named("LOG_LEVEL", default="info", description="debug, info, warning or error.")

    # storage
    storage_mode: StorageMode | None = _named(
        "STORAGE_MODE", description="Where outputs go; unset: by the variables that are there, else file."
    )
    storage_shared: bool = _named(
        "MEDIAMILL_STORAGE_SHARED", default=False, description="The file storage folder is shared by all hosts."
    )
    url_ttl_s: int = _named(
        "MEDIAMILL_URL_TTL_SECONDS",
        default=0,
        ge=0,
        le=604800,
        description="Result URLs expire after this many seconds; 0: never.",
    )
    url_secret: SecretStr | None = _named(
        "MEDIAMILL_URL_SECRET", description="Key that signs result URLs; unset: made once and kept in the database."
    )
    s3_endpoint: str | None = _named("S3_ENDPOINT", "S3_ENDPOINT_URL", description="S3-compatible endpoint URL.")
    s3_region: str = _named("S3_REGION", default="us-east-1", description="S3 region.")
    s3_bucket: str | None = _named("S3_BUCKET", "S3_BUCKET_NAME", description="S3 bucket.")
    s3_access_key_id: SecretStr | None = _named("S3_ACCESS_KEY_ID", "S3_ACCESS_KEY", description="S3 access key.")
    s3_secret_access_key: SecretStr | None = _named(
        "S3_SECRET_ACCESS_KEY", "S3_SECRET_KEY", description="S3 secret key."
    )
    s3_public_url: str | None = _named(
        "S3_PUBLIC_URL", description="Base of public object URLs; unset: endpoint/bucket."
    )
    s3_presign: bool = _named(
        "MEDIAMILL_S3_PRESIGN", default=False, description="Give presigned instead of public URLs."
    )
    r2_endpoint: str | None = _named("R2_ENDPOINT", "R2_ENDPOINT_URL", description="R2 endpoint URL.")
    r2_account_id: str | None = _named("R2_ACCOUNT_ID", description="Cloudflare account, for the R2 endpoint.")
    r2_bucket: str | None = _named("R2_BUCKET", "R2_BUCKET_NAME", description="R2 bucket.")
    r2_access_key_id: SecretStr | None = _named("R2_ACCESS_KEY_ID", "R2_ACCESS_KEY", description="R2 access key.")
    r2_secret_access_key: SecretStr | None = _named(
        "R2_SECRET_ACCESS_KEY", "R2_SECRET_KEY", description="R2 secret key."
    )
    r2_public_url: str | None = _named("R2_PUBLIC_URL", description="Base of public R2 URLs.")
    reserve_bytes: int = _named(
        "MEDIAMILL_DISK_RESERVE_BYTES",
        default=2 * 1024**3,
        ge=0,
        description="Free disk below which new jobs are refused, bytes.",
    )
    retention_s: float = _named(
        "MEDIAMILL_RETENTION_SECONDS",
        default=0.0,
        ge=0,
        description="Outputs and ended jobs are deleted after this many seconds; 0: kept.",
    )
    cache_bytes: int = _named(
        "MEDIAMILL_CACHE_BYTES", default=10 * 1024**3, ge=0, description="Size of the cache of input files, bytes."
    )

    # inputs
    fetch_allow: Names = _named(
        "MEDIAMILL_FETCH_ALLOW",
        default=(),
        description="CIDRs or host names that user URLs and webhooks may reach besides public addresses.",
    )
    fetch_timeout_s: float = _named(
        "MEDIAMILL_FETCH_TIMEOUT_SECONDS", default=300.0, gt=0, description="Longest download of one input, seconds."
    )

    # work
    cpu_slots: int | None = _named(
        "MEDIAMILL_CPU_SLOTS", ge=1, description="Jobs at once of the cpu pool; unset: 1 for every 2 cores."
    )
    batch_size: int = _named("BATCH_SIZE", default=5, ge=1, description="Most stills of one job at once.")
    split_above: int = _named(
        "MEDIAMILL_SPLIT_ABOVE", default=50, ge=1, description="A job of more stills goes in parallel parts."
    )
    split_parts: int = _named("MEDIAMILL_SPLIT_PARTS", default=3, ge=1, description="Most parts of one job.")
    max_clip_s: float = _named(
        "MEDIAMILL_MAX_CLIP_SECONDS", default=600.0, gt=0, description="Longest clip of one still, seconds."
    )
    lease_s: float = _named(
        "MEDIAMILL_LEASE_SECONDS",
        default=12.0,
        ge=1,
        description="A worker silent for this long has lost its jobs, seconds; equal on all hosts.",
    )
    max_crashes: int = _named(
        "MEDIAMILL_MAX_CRASHES", default=3, ge=1, description="Crashes of the child until a job fails."
    )
    max_lost_workers: int = _named(
        "MEDIAMILL_MAX_LOST_WORKERS", default=10, ge=1, description="Lost workers until a job fails."
    )
    cancel_grace_s: float = _named(
        "MEDIAMILL_CANCEL_GRACE_SECONDS",
        default=1.5,
        ge=0,
        description="A child that has not stopped this long after a cancel is killed, seconds.",
    )
    drain_s: float = _named(
        "MEDIAMILL_DRAIN_SECONDS",
        default=60.0,
        ge=0,
        description="How long running jobs may go on after SIGTERM before they are handed back, seconds.",
    )
    affinity_wait_s: float = _named(
        "MEDIAMILL_AFFINITY_WAIT_SECONDS",
        default=30.0,
        ge=0,
        description="Longest a job waits behind jobs for loaded models, seconds.",
    )
    run_timeout_s: float | None = _named(
        "MEDIAMILL_RUN_TIMEOUT_SECONDS", gt=0, description="Longest run of a job, seconds; unset: its catalog entry's."
    )
    queued_timeout_s: float | None = _named(
        "MEDIAMILL_QUEUED_TIMEOUT_SECONDS",
        gt=0,
        description="Longest wait of a job, seconds; unset: its catalog entry's.",
    )
    fake_engines: Names = _named(
        "MEDIAMILL_FAKE_ENGINES", default=(), description="Catalog names that run on the fake engine, or all."
    )
    fonts_dir: Path | None = _named("MEDIAMILL_FONTS_DIR", description="Folder of more fonts for captions.")
    ffmpeg: Path | None = _named(
        "MEDIAMILL_FFMPEG", description="FFmpeg binary to use instead of the one that comes along."
    )
    encoder: Literal["auto", "libx264", "h264_nvenc"] = _named(
        "MEDIAMILL_ENCODER", default="auto", description="H.264 encoder; auto tries NVENC and falls back."
    )

    # webhooks
    webhook_secret: SecretStr | None = _named(
        "MEDIAMILL_WEBHOOK_SECRET",
        description="whsec_... that signs webhooks; unset: made once and kept in the database.",
    )
    webhook_timeout_s: float = _named(
        "MEDIAMILL_WEBHOOK_TIMEOUT_SECONDS", default=15.0, gt=0, description="Longest webhook call, seconds."
    )

    # serverless
    serve_model: str | None = _named(
        "MEDIAMILL_SERVE_MODEL",
        description="Model that a serverless worker runs when a job names none; unset: that of MODEL_NAME.",
    )
    modal_gpu: str = _named("MEDIAMILL_MODAL_GPU", default="A100-40GB", description="GPU of the Modal app.")
    modal_max_containers: int = _named(
        "MEDIAMILL_MODAL_MAX_CONTAINERS",
        default=3,
        ge=1,
        description="Containers of one function of the Modal app at once, and so GPUs that are paid for, at most.",
    )

    # models
    device: str | None = _named("DEVICE", description="Torch device; unset: cuda when present.")
    dtype: str | None = _named("DTYPE", description="Torch dtype; unset: bfloat16 where supported.")
    model_name: str | None = _named("MODEL_NAME", description="Model path or repo id of a single-model worker.")
    model_ttl_s: float = _named(
        "MEDIAMILL_MODEL_TTL_SECONDS",
        default=600.0,
        ge=0,
        description="An unused loaded model is dropped after this many seconds.",
    )
    memory_budget_bytes: int | None = _named(
        "MEDIAMILL_MODEL_MEMORY_BYTES",
        description="Memory budget of resident models, bytes; unset: most of what is free.",
    )

    model_locations: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict,
        description="Local path or repo id of a catalog entry's weights.",
    )
    hf_home: Path | None = _named("HF_HOME", description="As huggingface_hub means it.")
    hf_hub_cache: Path | None = _named("HF_HUB_CACHE", description="As huggingface_hub means it.")
    transformers_cache: Path | None = _named("TRANSFORMERS_CACHE", description="As huggingface_hub means it.")
    hf_token: SecretStr | None = _named("HF_TOKEN", description="As huggingface_hub means it.")

    # places to run
    routes: Annotated[dict[str, Place], NoDecode] = _named(
        "MEDIAMILL_ROUTES",
        default={},
        description="Comma-separated name=local or name=runpod; unset: on RunPod where key and endpoint are set.",
    )
    runpod_api_key: SecretStr | None = _named("RUNPOD_API_KEY", description="Key of the RunPod account that runs jobs.")
    runpod_endpoints: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="RunPod endpoint of one catalog entry; with RUNPOD_API_KEY its jobs go there."
    )
    runpod_endpoint_id: str | None = _named(
        "RUNPOD_ENDPOINT_ID",
        description="RunPod endpoint of what MEDIAMILL_ROUTES sends there and has none of its own.",
    )
    runpod_base_url: str = _named(
        "RUNPOD_ENDPOINT_BASE_URL", default="https://api.runpod.ai/v2", description="Base URL of RunPod's endpoints."
    )

    # the CLI
    server: str | None = _named(
        "MEDIAMILL_SERVER", description="URL of the service that CLI commands use; unset: they work on this machine."
    )

    # accepted and unused
    node_env: str | None = _named("NODE_ENV", description=UNUSED)
    redis_url: SecretStr | None = _named("REDIS_URL", description=f"{UNUSED} DATABASE_URL is ours.")

    @field_validator("api_keys", "cors_allow_origins", "fetch_allow", "fake_engines", mode="before")
    @classmethod
    def _comma_separated(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("log_level")
    @classmethod
    def _known_level(cls, value: str) -> str:
        level = {"warn": "warning"}.get(value.lower(), value.lower())
        if level not in {"debug", "info", "warning", "error"}:
            raise ValueError("accepted are debug, info, warning and error")
        return level

    @field_validator("database_url")
    @classmethod
    def _postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not value.get_secret_value().startswith(("postgresql://", "postgres://")):
            raise ValueError("must begin with postgresql:// or postgres://")
        return value

    @field_validator("routes", mode="before")
    @classmethod
    def _routes(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        routes: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in value.split(","))):
            name, _, place = (part.strip() for part in item.partition("="))
            if place not in get_args(Place) or routes.setdefault(name, place) != place:
                raise ValueError(f"{item!r} is no route, or a second one; accepted are NAME=local and NAME=runpod")
        return routes

    @field_validator("public_url", "runpod_base_url")
    @classmethod
    def _base_url(cls, value: str | None) -> str | None:
        if value is not None:
            parts = urlsplit(value)
            if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
                raise ValueError("must begin with http:// or https:// and a host, without a query")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - the signature is pydantic's
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment; nothing else is looked at."""
        return init_settings, _Environment(settings_cls)

    def model_location(self, name: str) -> str | None:
        """Local path or repo id given for a catalog entry by MEDIAMILL_MODEL_<NAME>, or None."""
        return self.model_locations.get(variable_part(name))

    def unrouted(self) -> Settings:
        """The same with every job run here: for a command that works on this machine, and for somebody's cloud worker.

        RunPod sets RUNPOD_ENDPOINT_ID and may set RUNPOD_API_KEY in its own workers; what runs there goes nowhere else.
        """
        nothing: dict[str, Any] = {"runpod_api_key": None, "runpod_endpoint_id": None}
        return self.model_copy(update={**nothing, "runpod_endpoints": {}, "routes": {}})

    @property
    def keys(self) -> frozenset[str]:
        """Every valid API key."""
        single = (k.get_secret_value() for k in (self.x_api_key, self.auth_token) if k is not None)
        return frozenset((*self.api_keys, *single))

    @property
    def for_libraries(self) -> dict[str, str]:
        """Environment variables that third-party libraries read by themselves, for processes started from here."""
        paths = {
            "HF_HOME": self.hf_home,
            "HF_HUB_CACHE": self.hf_hub_cache,
            "TRANSFORMERS_CACHE": self.transformers_cache,
        }
        quiet = {"SVT_LOG": "1"}  # the AV1 encoder's own variable: errors only
        token = {} if self.hf_token is None else {"HF_TOKEN": self.hf_token.get_secret_value()}
        return {**{name: str(path) for name, path in paths.items() if path is not None}, **token, **quiet}

    @property
    def logs_root(self) -> Path:
        """Folder of the log files."""
        return self.logs_dir or self.data_dir / "logs"

    @property
    def scratch_root(self) -> Path:
        """Folder in which each attempt gets its own."""
        return self.work_dir or self.data_dir / "work"

    @property
    def outputs_root(self) -> Path:
        """Folder of the file storage."""
        return self.output_dir or self.data_dir / "outputs"


@dataclass(frozen=True)
class Loaded:
    """Settings in force, and where each field came from: a variable's name and origin, or "default"."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]
    """Unknown and unused variables, a sentence each."""
    unknown: tuple[str, ...]


def load(**given: Any) -> Loaded:
    """Settings from the arguments that are not None, the environment and `.env`, in this order.

    Raises: Misconfigured, naming each wrong variable, its value (unless secret) and what is accepted.
    """
    given = {field: value for field, value in given.items() if value is not None}
    reading = _reading()
    try:
        settings = Settings(**given)
    except ValidationError as error:
        raise Misconfigured("; ".join(_complaints(error, reading))) from error
    origins = dict.fromkeys(given, "command line")
    for field, found in reading.found.items():
        origins.setdefault(field, f"{found.variable} ({found.origin})")
    for field, members in reading.families.items():
        if members:
            origins.setdefault(field, ", ".join(sorted(found.variable for found in members.values())))
    unused = [
        f"{found.variable} is accepted and not used."
        for field, found in reading.found.items()
        if (Settings.model_fields[field].description or "").startswith(UNUSED)
    ]
    return Loaded(settings, origins, (*reading.unknown, *unused), reading.unknown)


def export(settings: Settings) -> None:
    """Put what third-party libraries read by themselves into this process's environment; before they are imported."""
    os.environ.update(settings.for_libraries)


def names(field: str) -> tuple[str, ...]:
    """The variables of a setting, the preferred one first; with `<NAME>` in it for a family."""
    if field in FAMILIES:
        return (FAMILIES[field],)
    alias = Settings.model_fields[field].validation_alias
    return tuple(str(choice) for choice in alias.choices) if isinstance(alias, AliasChoices) else ()


def is_secret(field: str) -> bool:
    """Whether a setting's value must never be shown; such a setting also has `<NAME>_FILE` variants."""
    info = Settings.model_fields[field]
    extra = info.json_schema_extra
    return "SecretStr" in str(info.annotation) or (isinstance(extra, dict) and bool(extra.get("secret")))


@cache
def _spellings() -> Mapping[str, Spelling]:
    return {field: Spelling(names(field), is_secret(field)) for field in Settings.model_fields if field not in FAMILIES}


def _reading() -> Reading:
    """What the environment, and under it `.env`, say now."""
    path = Settings.model_config.get("env_file")
    values = dotenv_values(cast("str", path)) if path else {}
    return read(
        _spellings(), FAMILIES, (os.environ, {name: value for name, value in values.items() if value is not None})
    )


def _complaints(error: ValidationError, reading: Reading) -> Iterator[str]:
    """One sentence for each wrong setting."""
    for complaint in error.errors(include_url=False, include_context=False):
        place = str(complaint["loc"][0])
        field = place if place in Settings.model_fields else _field_of(place)
        found = reading.found.get(field)
        variable = found.variable if found else (names(field) or (field,))[0]
        value = "" if is_secret(field) else f"={complaint['input']!r}"
        yield f"{variable}{value}: {complaint['msg'].removeprefix('Value error, ')}"


def _field_of(variable: str) -> str:
    return next((field for field in Settings.model_fields if variable in names(field)), variable)


class _Environment(PydanticBaseSettingsSource):
    """What the environment says, by field name."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Not used: all fields are read together."""
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        reading = _reading()
        values: dict[str, Any] = {field: found.text for field, found in reading.found.items()}
        for field, members in reading.families.items():
            if members:
                values[field] = {name: found.text for name, found in members.items()}
        return values


def variable_part(name: str) -> str:
    """A catalog name as it stands in variables: LTX_VIDEO for `ltx-video`."""
    return name.upper().replace("-", "_")
