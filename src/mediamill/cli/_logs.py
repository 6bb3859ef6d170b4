"""Log lines: one a state change, on standard error, with its facts as `key=value`."""

from __future__ import annotations

import logging
import re
import time

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_QUIET = ("asyncio", "asyncpg", "aiohttp.access", "httpx", "httpcore", "uvicorn", "PIL", "multipart", "filelock")
"""Libraries whose own lines say nothing to who runs the service; their warnings are kept."""


_BREAKS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""What would end the line, or move a terminal's cursor."""


def _escaped(found: re.Match[str]) -> str:
    return repr(found[0])[1:-1]


class Lines(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO mediamill.jobs started job_id=... attempt=1`."""

    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        """One line, then the traceback if there is one."""
        stamp = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03d}Z"
        line = f"{stamp} {record.levelname} {record.name} {record.getMessage()}"
        given = (f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD)
        facts = _BREAKS.sub(_escaped, " ".join(fact for fact in given if fact not in line))
        line = f"{line} {facts}" if facts else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def set_up(level: str) -> None:
    """Log to standard error from this level (debug, info, warning, error) on."""
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
