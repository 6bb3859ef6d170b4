-- Every statement of the job core but those of webhooks.sql. A line `-- name: xyz` starts one; `{abc}` includes block abc.
-- Statements that a worker sends carry its attempt, and change nothing once that is stale.

-- name: envelope
j.id, j.model, j.status, j.input, j.created_at, j.started_at, j.finished_at, j.output, j.error_code, j.error_message,
j.attempt, j.timings, j.warnings, j.metadata, j.contract, j.webhook_url, j.parent_id, j.part, j.batch_id,
j.cancel_requested, j.message, j.preview,
extract(epoch FROM j.expected_at - clock_timestamp())::float8 AS eta_s,
CASE WHEN j.parts > 0 AND j.status = 'running' THEN (
    SELECT p.phase FROM job p WHERE p.parent_id = j.id AND p.status = 'running' ORDER BY p.part LIMIT 1
) ELSE j.phase END AS phase,
CASE WHEN j.parts > 0 AND j.status IN ('queued', 'running') THEN coalesce((
    SELECT avg(CASE WHEN p.status IN ('queued', 'running') THEN p.progress ELSE 1 END) FROM job p WHERE p.parent_id = j.id
), 0) ELSE j.progress END AS progress

-- name: internals
j.queue_id, j.pool, j.lane, j.priority, j.parts, j.pending, j.crashes, j.lost_workers, j.sealed, j.run_timeout_s,
coalesce(j.queue_deadline_at < clock_timestamp(), false) AS queued_too_long,
coalesce(j.run_deadline_at < clock_timestamp(), false) AS ran_too_long,
extract(epoch FROM clock_timestamp() - j.beat_at)::float8 AS silent_s

-- making jobs

-- name: insert_lanes
INSERT INTO lane (name, pool, affinity)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[]) ON CONFLICT DO NOTHING

-- name: claim_key
INSERT INTO idempotency (caller, key, fingerprint, job_id, batch_id) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (caller, key) DO UPDATE SET
    fingerprint = excluded.fingerprint, job_id = excluded.job_id, batch_id = excluded.batch_id,
    created_at = clock_timestamp()
WHERE idempotency.created_at < clock_timestamp() - make_interval(secs => $6)
RETURNING true

-- name: get_key
SELECT fingerprint, job_id, batch_id FROM idempotency
WHERE caller = $1 AND key = $2 AND created_at >= clock_timestamp() - make_interval(secs => $3)

-- name: insert_batch
INSERT INTO batch (id, contract, webhook_url, metadata, pending) VALUES ($1, $2, $3, $4, $5)

-- name: insert_job
INSERT INTO job AS j (
    id, model, contract, pool, lane, priority, input, metadata, warnings, webhook_url, queued_timeout_s, run_timeout_s,
    sealed, queue_id, parent_id, part, parts, pending, batch_id, caller, queue_deadline_at
) VALUES (
    $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $17, $18, $19,
    clock_timestamp() + make_interval(secs => $11)
)
RETURNING {envelope}, CASE WHEN j.parts = 0 THEN pg_notify('mediamill_work', j.pool) END

-- reading

-- name: get_job
-- By one id, not a list of one: a list is planned anew each time, which takes five times as long as the answer.
SELECT {envelope} FROM job j WHERE j.id = $1

-- name: get_parts
SELECT {envelope} FROM job j WHERE j.parent_id = ANY($1::uuid[]) ORDER BY j.parent_id, j.part

-- name: get_artifacts
SELECT job_id, name, key, media_type, size_bytes, sha256, facts FROM artifact WHERE job_id = ANY($1::uuid[]) ORDER BY job_id, position

-- name: get_batch
SELECT id, created_at, contract, webhook_url, metadata FROM batch WHERE id = $1

-- name: get_batch_jobs
SELECT {envelope} FROM job j WHERE j.batch_id = $1 AND j.parent_id IS NULL ORDER BY j.part

-- name: list_jobs
SELECT {envelope} FROM job j WHERE j.parent_id IS NULL

-- name: count_ahead
-- The first is found by key and looked at afterwards, and the count walks an index in its order: else a planner whose
-- statistics are of an emptier table reads the whole queue. It must not know the limit either: where it expects fewer
-- rows than that, it gathers all of them (a bitmap), and such a scan never clears away the entries of jobs that began.
WITH mine AS MATERIALIZED (
    SELECT pool, priority, queue_id, status, parts FROM job WHERE id = $1
    UNION ALL
    SELECT pool, priority, queue_id, status, parts FROM job WHERE parent_id = $1
), place AS MATERIALIZED (
    SELECT pool, priority, queue_id FROM mine WHERE status = 'queued' AND parts = 0
    ORDER BY priority DESC, queue_id LIMIT 1
)
SELECT (
    SELECT count(*) FROM (
        SELECT FROM job
        WHERE pool = place.pool AND status = 'queued' AND parts = 0
            AND (-priority, queue_id) < (-place.priority, place.queue_id)
        ORDER BY (-priority), queue_id LIMIT (SELECT $2::bigint)
    ) ahead
) FROM place

-- name: count_unfinished
SELECT count(*) FROM (
    SELECT FROM job WHERE caller = $1 AND parent_id IS NULL AND status IN ('queued', 'running') LIMIT $2
) unfinished

-- name: count_queued
SELECT count(*) FROM (SELECT FROM job WHERE status = 'queued' AND parts = 0 LIMIT $1) waiting

-- taking

-- name: starting
status = 'running', attempt = attempt + 1, started_at = coalesce(started_at, clock_timestamp()),
beat_at = clock_timestamp(), worker = $3, phase = NULL, progress = 0, message = NULL, expected_at = NULL,
preview = NULL, run_deadline_at = clock_timestamp() + make_interval(secs => run_timeout_s)

-- name: get_lanes
SELECT coalesce(array_agg(name ORDER BY name), '{}') AS lanes,
    extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8 AS uptime_s
FROM lane WHERE pool = ANY($1::text[])

-- name: choose_lane
-- The lane whose next job is due: by priority; then one that nobody served for too long or that lost its worker; then
-- what is loaded; then in order of coming. Jobs that are deferred do not count. The lanes come through a subquery: how
-- many there are would make each plan look better than one that is kept, and planning takes eight times as long as the rest.
SELECT lane FROM (
    SELECT lanes.name AS lane, top.priority, top.queue_id, lanes.name = ANY($2::text[]) AS held,
        clock_timestamp() - greatest(top.ready_at, served.at) > make_interval(secs => $3) AS starved
    FROM unnest((SELECT $1::text[])) AS lanes (name)
    CROSS JOIN LATERAL (
        SELECT priority, ready_at, queue_id FROM job
        WHERE lane = lanes.name AND status = 'queued' AND parts = 0 AND ready_at <= clock_timestamp()
        ORDER BY (-priority), queue_id LIMIT 1
    ) top
    CROSS JOIN LATERAL (SELECT max(started_at) AS at FROM job WHERE lane = lanes.name AND started_at IS NOT NULL) served
    UNION ALL
    SELECT lane, priority, queue_id, false, true FROM job
    WHERE lane = ANY($1::text[]) AND status = 'running' AND parts = 0
        AND beat_at < clock_timestamp() - make_interval(secs => $4)
) candidate
ORDER BY priority DESC, starved AND NOT held DESC, held DESC, queue_id LIMIT 1

-- name: oldest_beat_s
SELECT extract(epoch FROM clock_timestamp() - min(beat_at))::float8 FROM job
WHERE status = 'running' AND parts = 0 AND lane = ANY($1::text[])

-- name: and_parent
RETURNING {envelope}, j.sealed, j.elsewhere, j.run_timeout_s, pg_notify('mediamill_job', j.id::text)
), parent AS (
    UPDATE job AS p SET status = 'running', started_at = coalesce(p.started_at, clock_timestamp())
    FROM started WHERE p.id = started.parent_id AND p.status = 'queued' RETURNING pg_notify('mediamill_job', p.id::text)
)
SELECT * FROM started

-- name: start_queued
WITH started AS (
    UPDATE job AS j SET {starting}
    WHERE j.id = $1 AND j.queue_id = $2 AND j.status = 'queued' AND NOT j.cancel_requested
        AND j.queue_deadline_at > clock_timestamp()
    {and_parent}

-- name: start_again
WITH started AS (
    UPDATE job AS j SET {starting}, lost_workers = lost_workers + 1
    WHERE j.id = $1 AND j.queue_id = $2 AND j.status = 'running' AND j.attempt = $4
    {and_parent}

-- while it runs

-- name: beat
UPDATE job SET beat_at = clock_timestamp(), progress = greatest(progress, coalesce($3, progress)),
    phase = coalesce($4, phase), message = coalesce($5, message),
    expected_at = clock_timestamp() + make_interval(secs => $6), preview = coalesce($7, preview)
WHERE id = $1 AND attempt = $2 AND status = 'running' RETURNING cancel_requested, queue_id

-- name: note_publication
-- After a beat of the same transaction, which holds the job's row: a stale attempt notes nothing.
INSERT INTO publication AS p (key, job_id, digests)
SELECT made.key, $1, ARRAY[made.digest] FROM unnest($2::text[], $3::text[]) AS made (key, digest)
ON CONFLICT (key, job_id) DO UPDATE SET noted_at = clock_timestamp(),
    digests = CASE WHEN p.digests @> excluded.digests THEN p.digests ELSE p.digests || excluded.digests END

-- name: being_deleted
SELECT EXISTS (
    SELECT FROM publication WHERE key = ANY($2::text[]) AND job_id <> $1 AND deleting_until > clock_timestamp()
)

-- name: keep_elsewhere
UPDATE job SET elsewhere = $3 WHERE id = $1 AND attempt = $2 AND status = 'running' RETURNING true

-- name: hand_back
UPDATE job SET status = 'queued', phase = NULL, progress = 0, message = NULL, worker = NULL, beat_at = NULL,
    run_deadline_at = NULL, crashes = crashes + $3, ready_at = clock_timestamp() + make_interval(secs => $4),
    queue_deadline_at = clock_timestamp() + make_interval(secs => $4 + queued_timeout_s)
WHERE id = $1 AND attempt = $2 AND status = 'running'
RETURNING queue_id, crashes, pg_notify('mediamill_work', pool), pg_notify('mediamill_job', id::text)

-- name: lock_job
SELECT {envelope}, {internals} FROM job j WHERE j.id = $1 FOR UPDATE

-- name: lock_parts
SELECT {envelope}, {internals} FROM job j
WHERE j.parent_id = $1 AND j.status IN ('queued', 'running') ORDER BY j.id FOR UPDATE

-- name: request_cancel
UPDATE job SET cancel_requested = true WHERE id = $1 AND status IN ('queued', 'running')
RETURNING pg_notify('mediamill_job', id::text)

-- ending

-- name: end_job
UPDATE job AS j SET status = $4, finished_at = clock_timestamp(), phase = NULL, sealed = NULL, worker = NULL,
    progress = CASE WHEN $4 = 'succeeded' THEN 1 ELSE progress END,
    elsewhere = CASE WHEN $4 = 'succeeded' THEN NULL ELSE elsewhere END,
    output = $5, error_code = $6, error_message = $7, warnings = warnings || $9::jsonb,
    timings = jsonb_build_object(
        'queued_s', round(extract(epoch FROM coalesce(started_at, clock_timestamp()) - created_at), 3)
    ) || $8::jsonb
WHERE j.id = $1 AND j.attempt = $2 AND j.status = ANY($3::text[])
RETURNING {envelope}, j.queue_id, j.parts, pg_notify('mediamill_job', j.id::text)

-- name: insert_artifact
INSERT INTO artifact (job_id, position, name, key, media_type, size_bytes, sha256, facts)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)

-- name: named
DELETE FROM publication WHERE job_id = $1 AND key = ANY($2::text[])

-- name: count_down_parent
UPDATE job AS j SET pending = pending - 1 WHERE j.id = $1 RETURNING {envelope}, j.pending

-- name: count_down_batch
UPDATE batch SET pending = pending - 1 WHERE id = $1 RETURNING pending, webhook_url

-- name: insert_webhook
INSERT INTO webhook (job_id, batch_id, url) VALUES ($1, $2, $3) RETURNING pg_notify('mediamill_webhook', '')

-- upkeep

-- name: due
-- Jobs that somebody has to end: waited too long; asked to stop, or ran too long, and no worker does anything about it.
SELECT id FROM job
WHERE parts = 0 AND status = 'queued' AND queue_deadline_at < clock_timestamp()
UNION ALL
SELECT id FROM job
WHERE parts = 0 AND status = 'running' AND (
    (cancel_requested AND beat_at < clock_timestamp() - make_interval(secs => $1))
    OR run_deadline_at < clock_timestamp() - make_interval(secs => $2)
)
LIMIT 500

-- name: left_elsewhere
-- What nobody could end there for a week has long been over by itself.
SELECT id, elsewhere FROM job
WHERE elsewhere IS NOT NULL AND finished_at > clock_timestamp() - interval '7 days'
ORDER BY finished_at LIMIT $1

-- name: ended_elsewhere
UPDATE job SET elsewhere = NULL WHERE id = $1 AND elsewhere = $2 AND finished_at IS NOT NULL

-- name: live_tickets
SELECT id, queue_id FROM job
WHERE parts = 0 AND (
    (status = 'queued' AND ready_at < clock_timestamp())
    OR (status = 'running' AND beat_at < clock_timestamp() - make_interval(secs => $1))
)

-- name: set_ticket
UPDATE job SET queue_id = $2 WHERE id = $1 RETURNING pg_notify('mediamill_work', pool)

-- name: mend_lanes
INSERT INTO lane (name, pool, affinity)
SELECT DISTINCT lane, pool, substr(lane, length(pool) + 2) FROM job WHERE status IN ('queued', 'running') AND parts = 0
ON CONFLICT DO NOTHING

-- name: expired
SELECT {envelope} FROM job j
WHERE j.parent_id IS NULL AND j.finished_at < clock_timestamp() - make_interval(secs => $1)
    AND NOT EXISTS (
        SELECT FROM webhook w WHERE w.job_id = j.id AND w.delivered_at IS NULL AND w.gave_up_at IS NULL
    )
ORDER BY j.finished_at LIMIT $2

-- name: leftovers
SELECT p.key, p.job_id, p.digests FROM publication p LEFT JOIN job j ON j.id = p.job_id
WHERE (p.key, p.job_id) > ($2, $3) AND (j.id IS NULL OR j.finished_at IS NOT NULL)
    AND greatest(p.noted_at, j.finished_at) < clock_timestamp() - make_interval(secs => $1)
ORDER BY p.key, p.job_id LIMIT $4

-- name: mark_deleting
INSERT INTO publication AS p (key, job_id, digests, deleting_until)
VALUES ($1, $2, $3, clock_timestamp() + make_interval(secs => $4))
ON CONFLICT (key, job_id) DO UPDATE SET deleting_until = excluded.deleting_until
WHERE p.deleting_until IS NULL OR p.deleting_until < clock_timestamp()
RETURNING true

-- name: wanted
-- Why the object of job $2 under key $1 must stay, if it must; jobs $3 do not count. Only a folder that a caller named
-- can hold the results of several jobs.
SELECT CASE
    WHEN EXISTS (SELECT FROM artifact WHERE job_id = $2 AND key = $1 AND job_id <> ALL($3::uuid[])) THEN 'named'
    WHEN EXISTS (
        SELECT FROM artifact
        WHERE key = $1 AND key !~ '^outputs/[0-9a-f-]{32,36}/' AND job_id <> ALL($3::uuid[])
    ) THEN 'named'
    WHEN EXISTS (SELECT FROM job WHERE id = $2 AND finished_at IS NULL) THEN 'awaited'
    WHEN EXISTS (
        SELECT FROM publication p JOIN job j ON j.id = p.job_id
        WHERE p.key = $1 AND p.job_id <> $2 AND j.finished_at IS NULL
    ) THEN 'awaited'
END

-- name: unmark
UPDATE publication SET deleting_until = NULL WHERE key = $1 AND job_id = $2

-- name: drop_note
DELETE FROM publication WHERE key = $1 AND job_id = $2

-- name: forget
DELETE FROM job WHERE id = ANY($1::uuid[]) AND finished_at IS NOT NULL AND parent_id IS NULL

-- name: forget_batches
DELETE FROM batch b WHERE pending = 0 AND created_at < clock_timestamp() - interval '1 hour'
    AND NOT EXISTS (SELECT FROM job WHERE batch_id = b.id)
    AND NOT EXISTS (
        SELECT FROM webhook w WHERE w.batch_id = b.id AND w.delivered_at IS NULL AND w.gave_up_at IS NULL
    )

-- name: forget_keys
DELETE FROM idempotency WHERE created_at < clock_timestamp() - make_interval(secs => $1)

-- name: forget_workers
DELETE FROM worker WHERE seen_at < clock_timestamp() - interval '1 day'

-- name: make_setting
INSERT INTO setting (name, value) VALUES ($1, $2) ON CONFLICT DO NOTHING

-- name: get_setting
SELECT value FROM setting WHERE name = $1

-- name: announce
INSERT INTO worker (name, pool, slots, version, facts) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (name) DO UPDATE SET pool = excluded.pool, slots = excluded.slots, version = excluded.version,
    facts = excluded.facts, seen_at = clock_timestamp()

-- name: depart
DELETE FROM worker WHERE name = $1

-- name: get_workers
SELECT name, pool, slots, version, facts, extract(epoch FROM clock_timestamp() - seen_at)::float8 AS seen_s
FROM worker WHERE seen_at > clock_timestamp() - make_interval(secs => $1) ORDER BY pool, name
