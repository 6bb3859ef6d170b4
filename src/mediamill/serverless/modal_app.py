"""The Modal app `ltx-video`: a thin shell around `endpoint.py`. `modal deploy scripts/modal_ltx_video.py` deploys it.

Importing it is its start, on the machine that deploys and in the container alike, so it reads the settings then. Those of
the machine that deploys go into the container as a secret; nothing is ever routed out from there.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.metadata import requires
from typing import Any

import modal

from mediamill import config
from mediamill.config import Settings
from mediamill.contracts.text_to_video import LIMIT_S
from mediamill.serverless.endpoint import MODEL, MOST_AT_ONCE, Endpoint
from mediamill.serverless.slot import log_to_stderr

WEIGHTS = "/weights"
"""Where the volume of the weights is mounted."""
SCALEDOWN_S = 600
ANSWER_IN_S = LIMIT_S - 15
"""The answer of a call that takes too long must leave before Modal ends the call."""
PULL_LIMIT_S = 3600

_TAKEN_ALONG = (
    *("s3_endpoint", "s3_region", "s3_bucket", "s3_access_key_id", "s3_secret_access_key", "s3_public_url"),
    *("r2_endpoint", "r2_account_id", "r2_bucket", "r2_access_key_id", "r2_secret_access_key", "r2_public_url"),
    *("storage_mode", "s3_presign", "url_ttl_s", "fetch_allow", "cors_allow_origins", "max_body_bytes"),
    *("hf_token", "model_name", "dtype", "fake_engines", "log_level"),
)
"""Settings that hold in the container as they do where the app is deployed."""


def requirements(extra: str = "diffusers") -> list[str]:
    """What this very mediamill needs from the package index, with one of its extras."""
    found = []
    for line in requires("mediamill") or ():
        requirement, _, marker = line.partition(";")
        if "extra ==" not in marker:
            found.append(line)
        elif f"'{extra}'" in marker.replace('"', "'"):
            found.append(requirement)
    return found


def environment(settings: Settings) -> dict[str, str | None]:
    """The variables that take `_TAKEN_ALONG` into the container; unset ones are left out."""
    found: dict[str, str | None] = {}
    for field in _TAKEN_ALONG:
        value = getattr(settings, field)
        if value not in (None, "", ()) and field in settings.model_fields_set:
            shown = value.get_secret_value() if config.is_secret(field) else value
            found[config.names(field)[0]] = ",".join(shown) if isinstance(shown, tuple) else str(shown)
    location = settings.model_location(MODEL)
    return {**found, "MEDIAMILL_MODEL_LTX_VIDEO": location} if location else found


@cache
def endpoint() -> Endpoint:
    """The container's only one: its weights stay loaded between calls."""
    settings = config.load().settings
    log_to_stderr(settings.log_level)
    config.export(settings)
    return Endpoint(settings, limit_s=ANSWER_IN_S)


_settings = config.load().settings
if modal.is_local():
    Endpoint(_settings)  # what is wrong with them stops the deployment, not the first call

app = modal.App(MODEL)

image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install(*(requirements() if modal.is_local() else ()))
    .env(
        {
            "HF_HOME": f"{WEIGHTS}/huggingface",
            "MEDIAMILL_DATA_DIR": "/tmp/mediamill",  # noqa: S108 - the container's own
            "PYTHONPATH": "/root",  # where Modal puts this package; the child process looks there too
        }
    )
)

_shared: dict[str, Any] = {
    "image": image,
    "secrets": [modal.Secret.from_dict(environment(_settings))],
    "volumes": {WEIGHTS: modal.Volume.from_name("mediamill-weights", create_if_missing=True)},
}
_on_gpu: dict[str, Any] = {
    **_shared,
    "gpu": _settings.modal_gpu,
    "scaledown_window": SCALEDOWN_S,
    "max_containers": _settings.modal_max_containers,
}


@app.function(**_on_gpu, timeout=int(LIMIT_S))
@modal.concurrent(max_inputs=2, target_inputs=1)  # the second one is a health check, or waits for its turn
@modal.asgi_app()
def generate_video_endpoint() -> Any:
    """The document's URL: `POST /` makes a clip, `GET /health` tells whether the weights are loaded."""
    return endpoint().app()


@app.function(**_on_gpu, timeout=int(LIMIT_S) * MOST_AT_ONCE)
async def batch_generate(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several clips in one warm container; each request and reply is one of the URL's."""
    return await endpoint().batch(requests)


@app.function(**_shared, timeout=PULL_LIMIT_S)
def download_weights() -> None:
    """Fetch the weights into the volume once, without paying for a GPU meanwhile."""
    subprocess.run([sys.executable, "-m", "mediamill", "models", "pull", MODEL], check=True)
