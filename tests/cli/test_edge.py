from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from mediamill import __version__
from mediamill.media.encoders import works
from tests.service import mediamill


def test_the_version_is_told_without_a_command(tmp_path: Path) -> None:
    ran = mediamill("--version", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, f"mediamill {__version__}\n")


def test_help_names_every_command_with_a_sentence(tmp_path: Path) -> None:
    done = mediamill("--help", cwd=tmp_path)
    assert done.returncode == 0
    commands = (
        "serve",
        "api",
        "worker",
        "config",
        "doctor",
        "webhook-secret",
        "img2vid",
        "caption",
        "addaudio",
        "jobs",
    )
    for command in commands:
        assert f"\n  {command} " in done.stdout
    assert mediamill(cwd=tmp_path).stdout == done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["fly"], "No such command 'fly'"),
        (["serve", "--port", "x"], "Invalid value for '--port'"),
        (["worker", "--slots", "0"], "Invalid value for '--slots'"),
        (["worker", "--pool", "tpu"], "There is no pool 'tpu'; accepted are cpu, gpu, gpu:N and remote."),
        (["img2vid", "missing.jpg"], "images.0.image_url: there is no file 'missing.jpg'."),
        (["caption", "missing.mp4", "missing.srt"], "url_video: there is no file 'missing.mp4'."),
        (["api", "--port", "99999"], "PORT=99999: Input should be less than or equal to 65535"),
    ],
)
def test_a_wrong_command_line_ends_with_one_sentence_and_status_2(
    tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    done = mediamill(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {sentence}")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", ["api", "worker"])
def test_a_role_without_a_database_says_so(tmp_path: Path, role: str) -> None:
    done = mediamill(role, cwd=tmp_path)
    assert done.returncode == 2
    assert "DATABASE_URL is not set" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_webhook_secret_is_the_setting_or_what_a_running_service_made(tmp_path: Path) -> None:
    one, two = (f"whsec_{base64.b64encode(bytes([n]) * 32).decode()}" for n in (1, 2))
    done = mediamill("webhook-secret", cwd=tmp_path, extra={"MEDIAMILL_WEBHOOK_SECRET": f"{one} {two}"})
    assert (done.returncode, done.stdout.split()) == (0, [one, two])
    done = mediamill("webhook-secret", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: No service runs on the data folder 'data'")


def test_config_shows_values_and_sources_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=9000\nNODE_ENV=production\n")
    extra = {"X_API_KEY": "swordfish", "S3_SECRET_KEY": "swordfish", "MEDIAMILL_DATADIR": "x"}
    extra |= {"DATABASE_URL": "postgresql://u:swordfish@db/x", "MEDIAMILL_API_KEYS": "swordfish"}
    done = mediamill("config", "--json", cwd=tmp_path, extra=extra)
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    rows = {row["setting"]: (row["value"], row["source"]) for row in shown["settings"]}
    assert rows["PORT"] == ("9000", "PORT (.env)")
    assert rows["S3_SECRET_ACCESS_KEY"] == ("********", "S3_SECRET_KEY (environment)")
    assert rows["DATABASE_URL"] == ("********", "DATABASE_URL (environment)")
    assert rows["BATCH_SIZE"] == ("5", "default")
    assert shown["warnings"] == [
        "MEDIAMILL_DATADIR is not a setting of mediamill; did you mean MEDIAMILL_DATA_DIR?",
        "NODE_ENV is accepted and not used.",
    ]
    table = mediamill("config", cwd=tmp_path, extra=extra)
    assert "swordfish" not in done.stdout + done.stderr + table.stdout + table.stderr
    assert "MEDIAMILL_DATADIR is not a setting" in table.stderr


def test_contradicting_settings_stop_every_command(tmp_path: Path) -> None:
    done = mediamill("serve", cwd=tmp_path, extra={"S3_BUCKET": "a", "S3_BUCKET_NAME": "b"})
    assert done.returncode == 2
    assert "S3_BUCKET and S3_BUCKET_NAME (environment) are one setting" in done.stderr


def test_a_service_that_is_not_there_is_said_plainly(tmp_path: Path) -> None:
    done = mediamill("jobs", "list", "--server", "http://127.0.0.1:9", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: http://127.0.0.1:9 does not answer; is `mediamill serve` running there?\n"


def test_doctor_finds_a_healthy_machine_healthy(tmp_path: Path) -> None:
    done = mediamill("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line.partition(":")[0] for line in done.stdout.splitlines()]
    about = ("settings", "API keys", "disk", "database", "storage", "RunPod", "FFmpeg", "encoders", "fonts", "GPU")
    assert said == [f"ok    {name}" for name in about]
    assert done.stderr == ""


def test_doctor_says_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    extra = {
        "MEDIAMILL_DATADIR": "x",
        "MEDIAMILL_MODEL_NOSUCH": "x",
        "MEDIAMILL_HOST": "0.0.0.0",
        "MEDIAMILL_DISK_RESERVE_BYTES": str(2**62),
        "DATABASE_URL": "postgresql://u:swordfish@127.0.0.1:9/x",
        "OUTPUT_DIR": str(tmp_path / "file" / "outputs"),
        "MEDIAMILL_FFMPEG": str(tmp_path / "file"),
        "MEDIAMILL_ENCODER": "h264_nvenc",
    }
    done = mediamill("doctor", cwd=tmp_path, extra=extra)
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    wrong = {line.split()[1] for line in lines if line.startswith("WRONG")}
    assert {"settings:", "API", "disk:", "database:", "storage:", "FFmpeg:"} <= wrong
    assert ("encoders:" in wrong) != works("h264_nvenc")
    assert sum(line.startswith("WRONG") for line in lines) == sum(line.startswith("      mend: ") for line in lines)
    assert "MEDIAMILL_MODEL_NOSUCH names no catalog entry" in done.stdout
    assert "swordfish" not in done.stdout + done.stderr
