"""Where things lie in storage: the folders that are this service's own, and who may name a key in them."""

from __future__ import annotations

import re

ATTEMPTS = "attempts"
"""`attempts/<job>/<attempt>/`: unfinished work; nobody but its worker reads it."""
OUTPUTS = "outputs"
"""`outputs/<job>/`: results of jobs that name no folder of their own."""
PREVIEWS = "previews"
"""`previews/<job>/`: looks at unfinished work, kept for a day."""
UPLOADS = "uploads"
"""`uploads/<id>/`: what callers sent in."""
PRIVATE = ".mediamill"
"""The backends' own things."""

MAX_COMPONENT_BYTES = 255
MAX_KEY_BYTES = 1024

_OWN = re.compile(rf"({ATTEMPTS}|{PREVIEWS}|{UPLOADS}|{re.escape(PRIVATE)})(/|$)|{OUTPUTS}/[0-9a-f-]{{32,36}}(/|$)")


def attempt_folder(job_id: str, number: int) -> str:
    """Where one attempt at a job puts its files before they are published."""
    return f"{ATTEMPTS}/{job_id}/{number}/"


def output_folder(job_id: str) -> str:
    """Where a job's results go unless the caller names a folder."""
    return f"{OUTPUTS}/{job_id}/"


def preview_folder(job_id: str) -> str:
    """Where looks at a job's unfinished work go."""
    return f"{PREVIEWS}/{job_id}/"


def upload_folder(upload_id: str) -> str:
    """Where one upload goes, or what was sent inside one job's request."""
    return f"{UPLOADS}/{upload_id}/"


def is_own(folder: str) -> bool:
    """Whether a caller's folder would lie in one of ours, where sweeps delete and keys are their own permission."""
    return _OWN.match(folder.strip("/")) is not None
