"""`/v1/jobs/{id}/webhook`: what was told to the caller's URL, and telling it again."""

from __future__ import annotations

from typing import Any

from mediamill.api import edge, openapi
from mediamill.api.deps import DepsDep
from mediamill.api.errors import ContractRouter
from mediamill.contracts import native, when
from mediamill.errors import Conflict
from mediamill.jobs.webhooks import Deliveries, Delivery

router = ContractRouter(
    error_reply=native.error_reply,
    covers=("/v1/jobs/",),
    error_media_type="application/problem+json",
    tags=["webhooks"],
)


@router.get(
    "/v1/jobs/{job_id}/webhook",
    summary="Deliveries of a job's webhook",
    responses=openapi.errors(openapi.COMMON_ERRORS),
)
async def log(deps: DepsDep, job_id: str) -> dict[str, Any]:
    """Each webhook of the job with every try; empty until the job has ended, or when nobody is to be told."""
    edge.note(job_id=job_id)
    job = await deps.store.get(job_id)
    return {"data": [_described(one) for one in await Deliveries(deps.store.database).log(job.id)]}


@router.post(
    "/v1/jobs/{job_id}/webhook/replay",
    status_code=202,
    summary="Deliver a job's webhook again",
    responses=openapi.errors((*openapi.COMMON_ERRORS, 409)),
)
async def replay(deps: DepsDep, job_id: str) -> dict[str, Any]:
    """At once and with new retries, under the same id and with the same body."""
    edge.note(job_id=job_id)
    job = await deps.store.get(job_id)
    replayed = await Deliveries(deps.store.database).replay(job.id)
    if not replayed:
        why = "has no webhook_url" if job.webhook_url is None else f"is {job.status}: there is nothing to tell yet"
        raise Conflict(f"Job {job.id} {why}.")
    return {"replayed": replayed}


def _described(delivery: Delivery) -> dict[str, Any]:
    pending = delivery.delivered_at is None and delivery.gave_up_at is None
    return {
        "id": delivery.id,
        "url": delivery.url,
        "attempts": delivery.attempts,
        "delivered_at": when(delivery.delivered_at),
        "gave_up_at": when(delivery.gave_up_at),
        "next_at": when(delivery.next_at) if pending else None,
        "tries": [
            {"at": when(t.at), "status": t.status, "error": t.error, "duration_ms": round(t.duration_ms, 1)}
            for t in delivery.tries
        ],
    }
