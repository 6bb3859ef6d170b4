"""What a child process may know: settings for engines, and an environment without secrets of ours."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from mediamill import config
from mediamill.config import Settings

_PASSED = frozenset(
    (  # noqa: SIM905 - a list of 28 words is easier to read as words
        "PATH HOME USER LANG LANGUAGE TZ TMPDIR SHELL TERM LD_LIBRARY_PATH DYLD_LIBRARY_PATH XDG_CACHE_HOME "
        "VIRTUAL_ENV PYTHONPATH PYTHONHOME SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE "
        "HTTP_PROXY HTTPS_PROXY NO_PROXY http_proxy https_proxy no_proxy FONTCONFIG_PATH FONTCONFIG_FILE"
    ).split()
)
_PASSED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "ROCR_", "HIP_", "OMP_", "MKL_", "OPENBLAS_", "PYTORCH_")
_HUB = ("HF_HUB_", "HF_HOME", "HF_ENDPOINT", "HF_DATASETS_", "TRANSFORMERS_", "DIFFUSERS_")
"""How the model libraries are told where weights lie; their token comes from the settings."""


def child_environment(settings: Settings, pool: str) -> dict[str, str]:
    """The variables a child starts with; `pool` "gpu:1" shows it the second GPU only.

    No database address, API key, storage or webhook secret of ours is among them.
    """
    prefixes = (*_PASSED_PREFIXES, *_HUB)
    kept = {k: v for k, v in os.environ.items() if k in _PASSED or k.startswith(prefixes)}
    _, _, device = pool.partition(":")
    gpu = {"CUDA_VISIBLE_DEVICES": device} if device else {}
    return {**kept, **settings.for_libraries, **gpu, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}


def engine_settings(settings: Settings) -> Mapping[str, str]:
    """`EngineContext.settings`: every setting that is no secret, under its field name in upper case and its variables.

    So `fonts_dir` is there as FONTS_DIR and MEDIAMILL_FONTS_DIR; one that is unset is left out. Model locations are
    there as MEDIAMILL_MODEL_<NAME>.
    """
    found: dict[str, str] = {}
    for field in type(settings).model_fields:
        value = getattr(settings, field)
        if value in (None, "", ()) or config.is_secret(field) or isinstance(value, SecretStr | dict):
            continue
        text = ",".join(value) if isinstance(value, tuple) else _text(value)
        found.update(dict.fromkeys((field.upper(), *config.names(field)), text))
    found.update({f"MEDIAMILL_MODEL_{name}": place for name, place in settings.model_locations.items()})
    return found


def _text(value: object) -> str:
    if isinstance(value, Path):
        return str(value.resolve())
    return str(int(value)) if isinstance(value, bool) else str(value)
