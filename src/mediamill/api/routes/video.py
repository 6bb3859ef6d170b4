"""`/video/*`, `/job/{id}`: the video processing contract."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request
from starlette.responses import Response

from mediamill import catalog, plugins
from mediamill.api import edge, openapi
from mediamill.api.deps import CallerDep, Deps, DepsDep, IdempotencyKey, JsonBody, RespondAsync
from mediamill.api.errors import ContractRouter
from mediamill.api.replies import blocking, urls_of
from mediamill.api.submit import Wish, objections, submit, with_more, wrong_inputs
from mediamill.api.waiting import cancel_and_wait
from mediamill.contracts import native
from mediamill.contracts import video_processing as video
from mediamill.errors import InvalidRequest
from mediamill.model import Job, Json, Status

router = ContractRouter(error_reply=video.error_reply, covers=("/video/", "/job/"), tags=["video processing"])

_EXAMPLES: Mapping[str, Mapping[str, Json]] = {
    "img2vid": {
        "images": [{"id": "img-1", "image_url": "https://example.com/photo1.jpg", "duracao": 6.48}],
        "path": "Project Name/Video Title/videos/temp/",
    },
    "caption": {
        "url_video": "https://example.com/video.mp4",
        "url_srt": "https://example.com/subtitles.srt",
        "path": "Project Name/Video Title/videos/",
        "output_filename": "video_legendado.mp4",
    },
    "addaudio": {
        "url_video": "https://example.com/video.mp4",
        "url_audio": "https://example.com/audio.mp3",
        "path": "Project Name/Video Title/videos/",
        "output_filename": "video_com_audio.mp4",
    },
}
_SUMMARIES = {
    "img2vid": "Photos to clips",
    "caption": "Subtitles into a video",
    "addaudio": "A sound track onto a video",
}


def _route(operation: video.Operation) -> Callable[..., Coroutine[Any, Any, Response]]:
    async def handle(
        request: Request,
        deps: DepsDep,
        caller: CallerDep,
        raw: JsonBody,
        key: IdempotencyKey,
        respond_async: RespondAsync,
    ) -> Response:
        """Answers when the job has ended, at most after the blocking limit; 202 with `Prefer: respond-async`."""
        entry = catalog.get(operation)
        try:
            inner, webhook_url = video.request(operation, raw)
        except InvalidRequest as error:
            around = objections(raw.get("webhook_url"), "webhook_url", deps.guard)
            raise with_more(error, [*around, *wrong_inputs(deps, entry, raw, besides=error)]) from error
        submitted = await submit(
            deps,
            caller,
            entry=entry,
            raw=inner,
            contract="video_processing",
            wish=Wish(webhook_url=webhook_url, idempotency_key=key),
        )
        limit_s = deps.settings.blocking_limit_s
        return await blocking(request, deps, submitted, reply=video.reply, limit_s=limit_s, respond_async=respond_async)

    return handle


for _operation in video.OPERATIONS:
    router.add_api_route(
        f"/video/{_operation}",
        _route(_operation),
        methods=["POST"],
        name=_operation,
        summary=_SUMMARIES[_operation],
        responses={
            202: {"description": "Queued, with `Prefer: respond-async`"},
            **openapi.errors(openapi.BLOCKING_ERRORS),
        },
        openapi_extra=openapi.body(openapi.entry_schema(_operation), {_operation: _EXAMPLES[_operation]}),
    )


@router.get("/job/{job_id}", summary="State of a job", responses=openapi.errors(openapi.COMMON_ERRORS))
async def state(deps: DepsDep, job_id: str) -> dict[str, Any]:
    """RunPod's words for the state; `result` is the reply the blocking call would have had."""
    edge.note(job_id=job_id)
    job = await deps.store.get(job_id)
    return video.status_reply(job, await _result(deps, job))


@router.post("/job/{job_id}/cancel", summary="Cancel a job", responses=openapi.errors(openapi.COMMON_ERRORS))
async def cancel(deps: DepsDep, job_id: str) -> dict[str, Any]:
    """A job that has ended, or ends before it hears of this, is returned as it is."""
    job = await cancel_and_wait(deps, job_id)
    if job.status.ended and job.status is not Status.CANCELLED:
        return video.status_reply(job, await _result(deps, job))
    return {"jobId": job.id, "status": "CANCELLED"}


async def _result(deps: Deps, job: Job) -> Mapping[str, Json] | None:
    """The reply of the contract that created the job; this one's for its own operations, however they were asked."""
    if job.status is not Status.SUCCEEDED:
        return None
    urls = await urls_of(deps, job)
    if job.model in video.OPERATIONS:
        return video.reply(job, urls)
    if job.contract == "native":
        return native.reply(job, urls)
    reply: Mapping[str, Json] = plugins.load("contracts", job.contract).reply(job, urls)
    return reply
