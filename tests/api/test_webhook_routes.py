"""What a webhook was told, and telling it again."""

from __future__ import annotations

from tests.api import hands

JOB = {"model": "fake", "input": {"kind": "image"}, "webhook_url": "https://example.com/hook"}


async def test_the_log_is_empty_until_the_end_and_then_shows_the_delivery(service):
    made = (await service.post("/v1/jobs", JOB)).body
    path = f"/v1/jobs/{made['id']}/webhook"
    assert (await service.get(path)).body == {"data": []}
    early = await service.call("POST", f"{path}/replay")
    assert (early.status, early.body["code"]) == (409, "conflict")
    await hands.finish(service.deps)
    (delivery,) = (await service.get(path)).body["data"]
    assert delivery["id"].startswith("msg_")
    assert (delivery["url"], delivery["attempts"], delivery["delivered_at"], delivery["tries"]) == (
        "https://example.com/hook",
        0,
        None,
        [],
    )
    assert delivery["next_at"] is not None
    replayed = await service.call("POST", f"{path}/replay")
    assert (replayed.status, replayed.body) == (202, {"replayed": 1})


async def test_a_job_without_a_webhook_has_nothing_to_replay(service):
    made = (await service.post("/v1/jobs", {"model": "fake"})).body
    await hands.finish(service.deps)
    answer = await service.call("POST", f"/v1/jobs/{made['id']}/webhook/replay")
    assert (answer.status, "webhook_url" in answer.body["detail"]) == (409, True)
