-- What delivers webhooks. Their rows are written by queries.sql, with the end of the job or batch.

-- name: claim
-- One that is due, to a host that is not busy; leased, so that a deliverer that dies keeps nobody from trying again.
UPDATE webhook SET leased_until = clock_timestamp() + make_interval(secs => $1)
WHERE id = (
    SELECT id FROM webhook
    WHERE delivered_at IS NULL AND gave_up_at IS NULL AND next_at <= clock_timestamp()
        AND (leased_until IS NULL OR leased_until < clock_timestamp())
        AND split_part(url, '/', 3) <> ALL($2::text[])
    ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED
)
RETURNING id, job_id, batch_id, url, body, attempts

-- name: next_s
SELECT extract(epoch FROM min(greatest(next_at, leased_until)) - clock_timestamp())::float8
FROM webhook WHERE delivered_at IS NULL AND gave_up_at IS NULL AND split_part(url, '/', 3) <> ALL($1::text[])

-- name: keep_body
UPDATE webhook SET body = coalesce(body, $2) WHERE id = $1 RETURNING body

-- name: log_try
INSERT INTO webhook_try (webhook_id, status, error, duration_ms)
SELECT id, $2, $3, $4 FROM webhook WHERE id = $1

-- name: delivered
UPDATE webhook SET attempts = attempts + 1, leased_until = NULL, delivered_at = clock_timestamp()
WHERE id = $1 AND delivered_at IS NULL

-- name: later
UPDATE webhook SET attempts = attempts + 1, leased_until = NULL, next_at = clock_timestamp() + make_interval(secs => $2)
WHERE id = $1 AND delivered_at IS NULL

-- name: gave_up
UPDATE webhook SET attempts = attempts + 1, leased_until = NULL, gave_up_at = clock_timestamp()
WHERE id = $1 AND delivered_at IS NULL

-- name: of_owner
SELECT id, url, attempts, next_at, delivered_at, gave_up_at FROM webhook WHERE job_id = $1 OR batch_id = $1
ORDER BY created_at

-- name: tries
SELECT webhook_id, at, status, error, duration_ms FROM webhook_try WHERE webhook_id = ANY($1::uuid[]) ORDER BY id

-- name: replay
UPDATE webhook SET delivered_at = NULL, gave_up_at = NULL, attempts = 0, leased_until = NULL, next_at = clock_timestamp()
WHERE job_id = $1 OR batch_id = $1 RETURNING pg_notify('mediamill_webhook', '')
