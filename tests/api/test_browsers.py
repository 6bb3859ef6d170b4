"""What web pages may and may not do."""

from __future__ import annotations

FAKE = {"model": "fake", "input": {"kind": "image"}}


async def test_a_named_origin_may_call_after_its_pre_flight(start):
    async with start(x_api_key="k", cors_allow_origins="https://app.example") as service:
        asked = "authorization,x-api-key,idempotency-key,content-type"
        flight = await service.call(
            "OPTIONS",
            "/v1/jobs",
            headers={
                "Origin": "https://app.example",
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": asked,
            },
        )
        assert (flight.status, flight.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")
        allowed = {h.strip() for h in flight.headers["Access-Control-Allow-Headers"].lower().split(",")}
        assert set(asked.split(",")) <= allowed
        made = await service.post("/v1/jobs", FAKE, origin="https://app.example", x_api_key="k")
        assert (made.status, made.headers["Access-Control-Allow-Origin"]) == (202, "https://app.example")
        assert "Location" in made.headers["Access-Control-Expose-Headers"]
        refused = await service.post("/v1/jobs", FAKE, origin="https://app.example")
        assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, "https://app.example")
        other = await service.post("/v1/jobs", FAKE, origin="https://evil.example", x_api_key="k")
        assert "Access-Control-Allow-Origin" not in other.headers


async def test_any_origin_may_be_allowed_where_there_is_a_key(start):
    async with start(x_api_key="k", cors_allow_origins="*") as service:
        made = await service.post("/v1/jobs", FAKE, origin="https://anywhere.example", x_api_key="k")
        assert (made.status, made.headers["Access-Control-Allow-Origin"]) == (202, "*")


async def test_a_page_cannot_drive_a_keyless_service(start):
    async with start(cors_allow_origins="*") as service:
        simple = {"Content-Type": "text/plain", "Origin": "https://evil.example"}
        assert (await service.call("POST", "/v1/jobs", data=b"{}", headers=simple)).status == 403
        assert (await service.post("/v1/jobs", FAKE, origin="https://evil.example")).status == 403
        rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
        assert (await service.call("POST", "/v1/jobs", json=FAKE, headers=rebound)).status == 403
        assert (
            await service.call("POST", "/v1/jobs", data=b"{}", headers={"Content-Type": "text/plain"})
        ).status == 415
        assert (await service.get("/v1/jobs")).body["data"] == []
