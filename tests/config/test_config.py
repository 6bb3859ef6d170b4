from __future__ import annotations

import os
from pathlib import Path

import pytest

from mediamill import config
from mediamill.config import Settings
from mediamill.errors import Misconfigured


@pytest.fixture(autouse=True)
def only_these_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No `.env` and no setting of the machine that runs the tests."""
    monkeypatch.chdir(tmp_path)
    known = {name for field in Settings.model_fields for name in config.names(field)}
    for name in list(os.environ):
        if name in known or name.removesuffix("_FILE") in known or name.startswith("MEDIAMILL_"):
            monkeypatch.delenv(name)


def loaded(monkeypatch: pytest.MonkeyPatch, /, **environment: str) -> config.Loaded:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return config.load()


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("S3_ACCESS_KEY", "s3_access_key_id"),
        ("S3_ACCESS_KEY_ID", "s3_access_key_id"),
        ("S3_SECRET_KEY", "s3_secret_access_key"),
        ("S3_SECRET_ACCESS_KEY", "s3_secret_access_key"),
        ("S3_ENDPOINT", "s3_endpoint"),
        ("S3_ENDPOINT_URL", "s3_endpoint"),
        ("S3_BUCKET", "s3_bucket"),
        ("S3_BUCKET_NAME", "s3_bucket"),
        ("R2_ACCOUNT_ID", "r2_account_id"),
        ("WORK_DIR", "work_dir"),
        ("OUTPUT_DIR", "output_dir"),
        ("LOGS_DIR", "logs_dir"),
        ("MODEL_NAME", "model_name"),
    ],
)
def test_every_spelling_of_the_documents_is_read(monkeypatch: pytest.MonkeyPatch, variable: str, field: str) -> None:
    found = loaded(monkeypatch, **{variable: "https://place"})
    value = getattr(found.settings, field)
    assert (value.get_secret_value() if config.is_secret(field) else str(value)) in {"https://place", "https:/place"}
    assert found.origins[field] == f"{variable} (environment)"


def test_two_spellings_with_one_value_are_fine_and_with_two_values_stop_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert loaded(monkeypatch, S3_BUCKET="a", S3_BUCKET_NAME="a").settings.s3_bucket == "a"
    with pytest.raises(Misconfigured, match=r"S3_SECRET_ACCESS_KEY and S3_SECRET_KEY .*different values") as caught:
        loaded(monkeypatch, S3_SECRET_ACCESS_KEY="swordfish", S3_SECRET_KEY="herring")
    assert "swordfish" not in str(caught.value)
    assert "herring" not in str(caught.value)


def test_two_api_keys_are_two_valid_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, X_API_KEY="a", AUTH_TOKEN="b", MEDIAMILL_API_KEYS="c, d,").settings
    assert settings.keys == {"a", "b", "c", "d"}


def test_the_environment_wins_over_the_file_and_the_command_line_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("PORT=1\nLOG_LEVEL=debug\nS3_ACCESS_KEY_ID=file\nBATCH_SIZE=\n")
    monkeypatch.setenv("S3_ACCESS_KEY", "environment")
    monkeypatch.setenv("LOG_LEVEL", "ERROR")
    found = config.load(port=3)
    assert found.settings.port == 3
    assert found.settings.log_level == "error"
    assert found.settings.batch_size == 5
    assert found.settings.s3_access_key_id is not None
    assert found.settings.s3_access_key_id.get_secret_value() == "environment"
    assert found.origins["port"] == "command line"
    assert config.load().origins["port"] == "PORT (.env)"


def test_a_secret_is_read_from_the_file_named_by_its_file_variant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("swordfish\n")
    found = loaded(monkeypatch, S3_SECRET_KEY_FILE=str(secret), MEDIAMILL_API_KEYS_FILE=str(secret))
    assert found.settings.s3_secret_access_key is not None
    assert found.settings.s3_secret_access_key.get_secret_value() == "swordfish"
    assert found.settings.keys == {"swordfish"}
    assert found.warnings == ()
    with pytest.raises(Misconfigured, match=r"S3_SECRET_KEY_FILE='.*/missing' must name a readable file"):
        loaded(monkeypatch, S3_SECRET_KEY_FILE=str(tmp_path / "missing"))


def test_only_secrets_have_file_variants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "port").write_text("9")
    found = loaded(monkeypatch, PORT_FILE=str(tmp_path / "port"), MEDIAMILL_HOST_FILE=str(tmp_path / "port"))
    assert found.settings.port == 8000
    assert len(found.unknown) == 1
    assert found.unknown[0].startswith("MEDIAMILL_HOST_FILE is not a setting")


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("MEDIAMILL_DATADIR", "MEDIAMILL_DATA_DIR"),
        ("MEDIAMILL_FETCH_ALOW", "MEDIAMILL_FETCH_ALLOW"),
        ("MEDIAMILL_PORT", "PORT"),
        ("MEDIAMILL_WEBHOOK_SECRETS", "MEDIAMILL_WEBHOOK_SECRET"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_known_one(
    monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str
) -> None:
    (sentence,) = loaded(monkeypatch, **{variable: "x"}).unknown
    assert sentence == f"{variable} is not a setting of mediamill; did you mean {nearest}?"


def test_unused_variables_are_accepted_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, NODE_ENV="production", REDIS_URL="redis://:swordfish@cache")
    assert found.warnings == ("NODE_ENV is accepted and not used.", "REDIS_URL is accepted and not used.")
    assert "swordfish" not in repr(found)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PORT", "70000", r"PORT='70000': Input should be less than or equal to 65535"),
        ("PORT", "http", r"PORT='http': Input should be a valid integer"),
        ("LOG_LEVEL", "loud", r"LOG_LEVEL='loud': accepted are debug, info, warning and error"),
        ("STORAGE_MODE", "ftp", r"STORAGE_MODE='ftp': Input should be 's3', 'file'"),
        ("DATABASE_URL", "mysql://swordfish@x", r"DATABASE_URL: must begin with postgresql://"),
        ("MEDIAMILL_PUBLIC_URL", "media.example", r"MEDIAMILL_PUBLIC_URL='media.example': must begin with http"),
        ("MEDIAMILL_PUBLIC_URL", "https://m.example/?a=b", r"MEDIAMILL_PUBLIC_URL=.*without a query"),
        ("MEDIAMILL_LEASE_SECONDS", "0", r"MEDIAMILL_LEASE_SECONDS='0': Input should be greater"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_never_shown_when_secret(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    with pytest.raises(Misconfigured, match=message) as caught:
        loaded(monkeypatch, **{variable: value})
    assert "swordfish" not in str(caught.value)


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Misconfigured, match=r"(?s)PORT.*BATCH_SIZE"):
        loaded(monkeypatch, PORT="x", BATCH_SIZE="0")


def test_a_models_place_is_found_by_its_catalog_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(monkeypatch, MEDIAMILL_MODEL_LTX_VIDEO="models/tiny", MEDIAMILL_MODEL_TTL_SECONDS="5")
    assert found.settings.model_location("ltx-video") == "models/tiny"
    assert found.settings.model_location("zimage") is None
    assert found.settings.model_ttl_s == 5
    assert found.unknown == ()


def test_secrets_never_print(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = [field for field in Settings.model_fields if config.is_secret(field)]
    assert {"database_url", "api_keys", "x_api_key", "s3_secret_access_key", "webhook_secret", "hf_token"} <= {*secret}
    given = {config.names(field)[0]: "postgresql://swordfish" for field in secret}
    found = loaded(monkeypatch, **given)
    assert "swordfish" not in repr(found)
    assert "swordfish" not in str(found.settings)


def test_places_lie_under_the_data_folder_unless_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = loaded(monkeypatch, MEDIAMILL_DATA_DIR="/d").settings
    assert (settings.logs_root, settings.scratch_root, settings.outputs_root) == (
        Path("/d/logs"),
        Path("/d/work"),
        Path("/d/outputs"),
    )
    settings = loaded(monkeypatch, LOGS_DIR="/l", WORK_DIR="/w", OUTPUT_DIR="/o").settings
    assert (settings.logs_root, settings.scratch_root, settings.outputs_root) == (Path("/l"), Path("/w"), Path("/o"))


def test_what_libraries_read_is_exported_from_the_file_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HF_TOKEN=swordfish\nHF_HOME=/models\n")
    monkeypatch.setenv("HF_HOME", "")
    monkeypatch.setenv("HF_TOKEN", "")
    config.export(config.load().settings)
    assert os.environ["HF_TOKEN"] == "swordfish"
    assert os.environ["HF_HOME"] == "/models"


def test_every_setting_has_a_sentence_and_no_two_share_a_variable() -> None:
    every = [name for field in Settings.model_fields for name in config.names(field)]
    assert len(every) == len(set(every))
    for field, info in Settings.model_fields.items():
        assert (info.description or "").endswith("."), field


def test_endpoints_and_routes_are_read_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(
        monkeypatch,
        RUNPOD_API_KEY="swordfish",
        RUNPOD_LTX_VIDEO_ENDPOINT_ID="abc",
        RUNPOD_ENDPOINT_ID="shared",
        MEDIAMILL_ROUTES="zimage=local, ltx-video = runpod,",
    )
    settings = found.settings
    assert (settings.runpod_endpoints, settings.runpod_endpoint_id) == ({"LTX_VIDEO": "abc"}, "shared")
    assert settings.routes == {"zimage": "local", "ltx-video": "runpod"}
    assert found.origins["runpod_endpoints"] == "RUNPOD_LTX_VIDEO_ENDPOINT_ID"
    assert found.warnings == ()
    assert "swordfish" not in repr(settings)


@pytest.mark.parametrize("routes", ["zimage", "zimage=mars", "zimage=local,zimage=runpod", "zimage=RunPod"])
def test_a_route_that_is_none_stops_the_start(monkeypatch: pytest.MonkeyPatch, routes: str) -> None:
    with pytest.raises(Misconfigured, match=r"MEDIAMILL_ROUTES='.*accepted are NAME=local and NAME=runpod"):
        loaded(monkeypatch, MEDIAMILL_ROUTES=routes)
