"""The request of `transcribe`: defaults, coercion, and complaints that name the field."""

from __future__ import annotations

from typing import Any

import pytest

from mediamill import catalog
from mediamill.errors import InvalidRequest

ENTRY = catalog.get("transcribe")
URL = "https://example.com/a.mp3"


def test_the_defaults_are_the_documented_ones() -> None:
    request, warnings = catalog.validate(ENTRY, {"url_audio": URL})
    assert warnings == ()
    assert request.model_dump(include={"model", "language", "task", "vad", "word_timestamps", "decoding"}) == {
        "model": "turbo",
        "language": None,
        "task": "transcribe",
        "vad": True,
        "word_timestamps": True,
        "decoding": "sequential",
    }
    assert ENTRY.key_prefix(request) is None
    assert [ref.field for ref in catalog.input_refs(request)] == ["url_audio"]


@pytest.mark.parametrize(
    ("given", "language"), [("pt", "pt"), ("PT", "pt"), ("pt-BR", "pt"), ("zh_CN", "zh"), ("auto", None), ("", None)]
)
def test_language_codes_are_read_as_people_write_them(given: str, language: str | None) -> None:
    assert catalog.validate(ENTRY, {"url_audio": URL, "language": given})[0].language == language


def test_strings_of_forms_are_coerced() -> None:
    raw = {"url_audio": URL, "vad": "false", "word_timestamps": "true", "beam_size": "3", "style": "highlight"}
    request, _ = catalog.validate(ENTRY, raw)
    assert (request.vad, request.word_timestamps, request.beam_size) == (False, True, 3)
    assert request.style.name == "highlight"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("language", "portuguese", "language codes"),
        ("language", "xx", "'xx'"),
        ("model", "gigantic", "'large-v3' or 'turbo'"),
        ("model", "/etc/passwd", "'turbo'"),
        ("task", "summarise", "'translate'"),
        ("beam_size", 0, "greater than or equal to 1"),
        ("vad", "perhaps", "boolean"),
        ("style.color", {"color": "red"}, "#"),
        ("style.name", "disco", "'word_by_word'"),
        ("path", "a/../../b", "without '.' or '..'"),
        ("path", "a\x00b", "control characters"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_accepted(field: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        catalog.validate(ENTRY, {"url_audio": URL, field.split(".", maxsplit=1)[0]: value})
    assert caught.value.details[0].path == field
    assert said in caught.value.details[0].message


def test_a_path_becomes_a_folder_and_a_leading_slash_is_mentioned() -> None:
    request, warnings = catalog.validate(ENTRY, {"url_audio": URL, "path": "/Project Name/captions"})
    assert ENTRY.key_prefix(request) == "Project Name/captions/"
    assert warnings == ("path: the leading slash was left out.",)


def test_turning_word_times_off_is_answered_with_what_that_means() -> None:
    _, warnings = catalog.validate(ENTRY, {"url_audio": URL, "word_timestamps": False, "colour": "x"})
    assert warnings[0] == "Unknown field 'colour' was ignored."
    assert "words.json is empty" in warnings[1]
