from __future__ import annotations

import logging

from mediamill.cli._logs import Lines


def test_a_line_has_its_facts_and_stays_one_line_whatever_is_in_them() -> None:
    record = logging.makeLogRecord(
        {"name": "mediamill.jobs", "levelname": "INFO", "msg": "started", "job_id": "a\nERROR forged\x1b[31m\x00"}
    )
    line = Lines().format(record)
    assert line.endswith(r"Z INFO mediamill.jobs started job_id=a\nERROR forged\x1b[31m\x00")
    assert line.isprintable()
