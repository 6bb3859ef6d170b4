"""One error that names everything wrong with a request."""

from __future__ import annotations

from mediamill.errors import Detail, InvalidRequest


def test_the_sentence_names_each_field_and_what_it_lacks() -> None:
    wrong = (Detail("width", "must be even (got 5)"), Detail("images.0.id", "is required"))
    error = InvalidRequest.of(*wrong)
    assert error.message == "width: must be even (got 5); images.0.id: is required"
    assert error.details == wrong


def test_a_sentence_stays_one_that_can_be_read_and_the_details_stay_whole() -> None:
    error = InvalidRequest.of(*(Detail(f"images.{i}", "is required") for i in range(1000)))
    assert "images.49: is required; and 950 more" in error.message
    assert "images.50:" not in error.message
    assert len(error.details) == 1000
