"""Keys, keyless paths, and what keeps web pages away from an API without keys."""

from __future__ import annotations

import hashlib

import pytest

from mediamill.api.auth import Gate, check_exposure
from mediamill.api.errors import Forbidden
from mediamill.config import Settings
from mediamill.errors import Misconfigured, Unauthorized


def settings(**values) -> Settings:
    return Settings(_env_file=None, **values)


def scope(path: str = "/v1/jobs", *, method: str = "POST", **headers: str) -> dict:
    named = {"host": "127.0.0.1:8000"} | {k.replace("_", "-"): v for k, v in headers.items()}
    raw = [(k.encode(), v.encode("latin-1")) for k, v in named.items()]
    return {"type": "http", "method": method, "path": path, "headers": raw}


KEYED = Gate(settings(x_api_key="first-key", auth_token="second-key", api_keys="third,fourth"))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer second-key"},
        {"authorization": "third"},
        {"x_api_key": "fourth"},
        {"authorization": "Basic nonsense", "x_api_key": "first-key"},
    ],
)
def test_each_way_to_send_any_configured_key_is_accepted(headers):
    assert KEYED.admit(scope(**headers)).authorized


def test_a_caller_is_known_by_the_digest_of_its_key():
    caller = KEYED.admit(scope(authorization="Bearer third"))
    assert caller.id == hashlib.sha256(b"third").hexdigest()
    assert KEYED.admit(scope(x_api_key="third")) == caller


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer first-ke"}, {"authorization": "Bearer "}, {"x_api_key": ""}, {"x_api_key": "é"}],
)
def test_no_key_or_a_wrong_one_is_refused(headers):
    with pytest.raises(Unauthorized):
        KEYED.admit(scope(**headers))


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json", "/docs", "/", "/files/outputs/x/y.mp4"])
def test_keyless_paths_need_no_key_and_give_no_rights(path):
    assert not KEYED.admit(scope(path, method="GET")).authorized


@pytest.mark.parametrize(
    "path", ["/v1/jobs", "/v1/models", "/video/img2vid", "/job/x", "/nowhere", "/healthy", "/files"]
)
def test_every_other_path_needs_one(path):
    with pytest.raises(Unauthorized):
        KEYED.admit(scope(path, method="GET"))


def test_a_cors_preflight_needs_no_key_and_other_options_do():
    KEYED.admit(scope(method="OPTIONS", access_control_request_method="POST"))
    with pytest.raises(Unauthorized):
        KEYED.admit(scope(method="OPTIONS"))


OPEN = Gate(settings(host="127.0.0.1", public_url="https://media.example.com/base"))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "[::1]:8000", "127.9.9.9", "media.example.com"])
def test_without_keys_local_names_and_the_public_one_are_answered(host):
    assert OPEN.admit(scope(host=host)).id == "anonymous"


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "127.0.0.1.evil.example", "", "169.254.0.1", "[::1", "localhost.evil"]
)
def test_without_keys_a_foreign_host_name_is_refused_even_when_it_resolves_here(host):
    with pytest.raises(Forbidden, match="API key"):
        OPEN.admit(scope(host=host))


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:9000", "http://localhost:8000"])
def test_without_keys_pages_of_another_origin_are_refused(origin):
    with pytest.raises(Forbidden, match="origin"):
        OPEN.admit(scope(origin=origin))


def test_without_keys_the_own_origin_and_named_ones_are_answered():
    OPEN.admit(scope(origin="http://127.0.0.1:8000"))
    named = Gate(settings(cors_allow_origins="https://app.example, *"))
    named.admit(scope(origin="https://app.example"))
    with pytest.raises(Forbidden):
        named.admit(scope(origin="https://evil.example"))


def test_with_keys_hosts_and_origins_are_the_keys_business():
    assert KEYED.admit(scope(host="anything.example", origin="https://x.example", x_api_key="third")).authorized


def test_allowed_anonymous_service_answers_under_any_name_but_not_to_pages():
    gate = Gate(settings(host="0.0.0.0", allow_anonymous=True))
    gate.admit(scope(host="build-box.lan"))
    with pytest.raises(Forbidden):
        gate.admit(scope(host="build-box.lan", origin="https://evil.example"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "media.example.com"])
def test_an_open_address_without_a_key_is_refused_with_what_to_do(host):
    with pytest.raises(Misconfigured, match=r"X_API_KEY.*127\.0\.0\.1.*MEDIAMILL_ALLOW_ANONYMOUS=1"):
        check_exposure(settings(host=host))
    check_exposure(settings(host=host, x_api_key="k"))
    check_exposure(settings(host=host, allow_anonymous=True))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_key(host):
    check_exposure(settings(host=host))


def test_a_key_is_in_no_message():
    with pytest.raises(Unauthorized) as caught:
        KEYED.admit(scope(x_api_key="guess-123"))
    assert "guess-123" not in caught.value.message
