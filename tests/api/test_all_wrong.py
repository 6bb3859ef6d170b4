"""A caller learns in one answer everything that is wrong: ranges, addresses of inputs, webhooks, and each job of a bulk."""

from __future__ import annotations

from typing import Any

import pytest

PRIVATE = "http://10.0.0.1/a.png"
HOOK = "http://169.254.169.254/"
ZIMAGE = {"model": "zimage", "prompt": "a fox"}


def paths(body: dict[str, Any]) -> list[str]:
    """Of every wrong field, in whatever shape the contract has."""
    if "errors" in body:
        return [error["pointer"] for error in body["errors"]]
    if isinstance(body.get("detail"), list):
        return [".".join(map(str, error["loc"][1:])) for error in body["detail"]]
    return [detail["path"] for detail in body["details"]]


@pytest.mark.parametrize(
    ("path", "body", "wrong"),
    [
        (
            "/api/v1/generate",
            {**ZIMAGE, "steps": 1, "imageUrl": PRIVATE, "webhookUrl": HOOK},
            ["steps", "webhookUrl", "imageUrl"],
        ),
        (
            "/api/v1/generate",
            {"model": "ltx-video", "prompt": "x", "width": 65, "image_url": "ftp://example.com/a", "webhookUrl": HOOK},
            ["webhookUrl", "width", "image_url"],
        ),
        (
            "/api/v1/generate/bulk",
            {
                "jobs": [
                    {**ZIMAGE, "imageUrl": PRIVATE},
                    ZIMAGE,
                    {**ZIMAGE, "steps": 1, "imageUrl": PRIVATE, "webhookUrl": HOOK},
                    {"model": "ltx-video", "prompt": "x", "width": 65, "image_url": PRIVATE},
                    {"prompt": "x"},
                ],
                "webhookUrl": HOOK,
            },
            [
                "webhookUrl",
                "jobs.0.imageUrl",
                "jobs.2.steps",
                "jobs.2.webhookUrl",
                "jobs.2.imageUrl",
                "jobs.3.width",
                "jobs.3.image_url",
                "jobs.4.model",
            ],
        ),
        ("/api/v1/generate/bulk", {"jobs": [], "webhookUrl": HOOK}, ["webhookUrl", "jobs"]),
        (
            "/api/v1/generate/bulk",
            {"jobs": [ZIMAGE, {"model": "zimage"}, "x"], "webhookUrl": 5},
            ["webhookUrl", "jobs.1.prompt", "jobs.2.model"],
        ),
        (
            "/api/v1/text-to-video",
            {"prompt": "x", "fps": 500, "image_url": PRIVATE, "webhook_url": HOOK},
            ["fps", "webhook_url", "image_url"],
        ),
        (
            "/v1/jobs",
            {
                "model": "img2vid",
                "input": {"images": [{"id": "a", "image_url": PRIVATE, "duracao": -1}, {"image_url": "nothing"}]},
                "webhook_url": HOOK,
                "priority": 101,
            },
            [
                "/priority",
                "/webhook_url",
                "/input/images/0/duracao",
                "/input/images/1/id",
                "/input/images/1/duracao",
                "/input/images/0/image_url",
                "/input/images/1/image_url",
            ],
        ),
        (
            "/v1/jobs",
            {"model": "zimage", "input": {"prompt": "", "image_url": "  "}, "metadata": {"a": "x" * 20_000}},
            ["/metadata", "/input/prompt", "/input/image_url"],
        ),
        ("/v1/jobs", {"model": "zimage", "input": {"prompt": "x", "image_url": ["x"]}}, ["/input/image_url"]),
        ("/video/caption", {"url_video": PRIVATE, "path": "a/", "webhook_url": HOOK}, None),
    ],
)
async def test_everything_wrong_is_named_at_once(service, path, body, wrong):
    answer = await service.post(path, body)
    assert answer.status in {400, 422}
    if wrong is None:
        assert answer.body["message"] == "url_video, url_srt, path, and output_filename are required"
        wrong = ["url_srt", "output_filename", "webhook_url", "url_video"]
    assert paths(answer.body) == wrong
    assert len(set(wrong)) == len(wrong)


async def test_what_one_job_of_a_bulk_lacks_is_not_staged_for_the_others(service):
    picture = "data:image/png;base64," + "A" * 100
    answer = await service.post(
        "/api/v1/generate/bulk", {"jobs": [{**ZIMAGE, "imageUrl": picture}, {**ZIMAGE, "imageUrl": PRIVATE}]}
    )
    assert paths(answer.body) == ["jobs.1.imageUrl"]
