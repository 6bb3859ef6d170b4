-- major: 1
-- The tables of the job core. The queue's own tables are PgQueuer's, installed before these.

CREATE TABLE setting (
    name text PRIMARY KEY,
    value bytea NOT NULL
);

-- What a queue ticket's entrypoint may be: one row for each pool and thing that stays loaded.
CREATE TABLE lane (
    name text PRIMARY KEY,
    pool text NOT NULL,
    affinity text NOT NULL
);

CREATE TABLE batch (
    id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    contract text NOT NULL,
    webhook_url text,
    metadata jsonb,
    pending int NOT NULL -- jobs that have not ended
);

CREATE TABLE job (
    id uuid PRIMARY KEY,
    model text NOT NULL,
    contract text NOT NULL,
    pool text NOT NULL,
    lane text NOT NULL,
    status text NOT NULL DEFAULT 'queued'
        CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')),
    phase text,
    progress double precision NOT NULL DEFAULT 0,
    message text,
    priority int NOT NULL DEFAULT 0,
    input jsonb NOT NULL,
    output jsonb,
    metadata jsonb,
    warnings jsonb NOT NULL DEFAULT '[]',
    timings jsonb NOT NULL DEFAULT '{}',
    error_code text,
    error_message text,
    sealed bytea, -- the caller's secrets, encrypted by whoever wrote them; erased with the job's end
    webhook_url text,

    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    ready_at timestamptz NOT NULL DEFAULT clock_timestamp(), -- not to be started before
    started_at timestamptz,
    finished_at timestamptz,
    queued_timeout_s double precision NOT NULL,
    run_timeout_s double precision NOT NULL,
    queue_deadline_at timestamptz NOT NULL,
    run_deadline_at timestamptz,

    attempt int NOT NULL DEFAULT 0,      -- the fence
    crashes int NOT NULL DEFAULT 0,      -- of the child that ran it
    lost_workers int NOT NULL DEFAULT 0, -- leases that ran out
    worker text,
    beat_at timestamptz,
    cancel_requested boolean NOT NULL DEFAULT false,
    queue_id bigint, -- its ticket, or the last one it had; a parent has none

    parent_id uuid REFERENCES job ON DELETE CASCADE,
    part int NOT NULL DEFAULT 0,    -- index among the parent's parts, or in the batch
    parts int NOT NULL DEFAULT 0,   -- how many parts it has; 0: it runs itself
    pending int NOT NULL DEFAULT 0, -- parts that have not ended
    batch_id uuid REFERENCES batch ON DELETE SET NULL
) WITH (fillfactor = 80);

CREATE INDEX job_position_idx ON job (pool, (-priority), queue_id) WHERE status = 'queued' AND parts = 0;
CREATE INDEX job_pick_idx ON job (lane, (-priority), queue_id) WHERE status = 'queued' AND parts = 0;
CREATE INDEX job_served_idx ON job (lane, started_at) WHERE started_at IS NOT NULL;
CREATE INDEX job_running_idx ON job (lane) WHERE status = 'running' AND parts = 0;
CREATE INDEX job_queue_deadline_idx ON job (queue_deadline_at) WHERE status = 'queued' AND parts = 0;
CREATE INDEX job_parent_idx ON job (parent_id, part) WHERE parent_id IS NOT NULL;
CREATE INDEX job_batch_idx ON job (batch_id, part) WHERE batch_id IS NOT NULL;
CREATE INDEX job_status_idx ON job (status, id) WHERE parent_id IS NULL;
CREATE INDEX job_model_idx ON job (model, id) WHERE parent_id IS NULL;
CREATE INDEX job_created_idx ON job (created_at) WHERE parent_id IS NULL;
CREATE INDEX job_finished_idx ON job (finished_at) WHERE parent_id IS NULL AND finished_at IS NOT NULL;
CREATE INDEX job_metadata_idx ON job USING gin (metadata jsonb_path_ops) WHERE metadata IS NOT NULL;

CREATE TABLE artifact (
    job_id uuid NOT NULL REFERENCES job ON DELETE CASCADE,
    position int NOT NULL,
    name text NOT NULL,
    key text NOT NULL,
    media_type text NOT NULL,
    size_bytes bigint NOT NULL,
    sha256 text NOT NULL,
    facts jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (job_id, position)
);

CREATE TABLE idempotency (
    caller text NOT NULL,
    key text NOT NULL,
    fingerprint text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- checked at the commit: the key is claimed before anything else is written
    job_id uuid REFERENCES job ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    batch_id uuid REFERENCES batch ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED,
    PRIMARY KEY (caller, key)
);
CREATE INDEX idempotency_created_idx ON idempotency (created_at);
CREATE INDEX idempotency_job_idx ON idempotency (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX idempotency_batch_idx ON idempotency (batch_id) WHERE batch_id IS NOT NULL;

CREATE TABLE webhook (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    job_id uuid REFERENCES job ON DELETE CASCADE,
    batch_id uuid REFERENCES batch ON DELETE CASCADE,
    url text NOT NULL,
    body bytea, -- made at the first delivery, the same ever after
    attempts int NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    next_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    leased_until timestamptz,
    delivered_at timestamptz,
    gave_up_at timestamptz,
    CHECK ((job_id IS NULL) <> (batch_id IS NULL))
);
CREATE INDEX webhook_due_idx ON webhook (next_at) WHERE delivered_at IS NULL AND gave_up_at IS NULL;
CREATE INDEX webhook_job_idx ON webhook (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX webhook_batch_idx ON webhook (batch_id) WHERE batch_id IS NOT NULL;

CREATE TABLE webhook_try (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    webhook_id uuid NOT NULL REFERENCES webhook ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    status int, -- of the HTTP reply; null: there was none
    error text,
    duration_ms double precision NOT NULL
);
CREATE INDEX webhook_try_webhook_idx ON webhook_try (webhook_id, id);

-- Worker processes that were heard of, so that any API process can say which pools are up.
CREATE TABLE worker (
    name text PRIMARY KEY,
    pool text NOT NULL,
    slots int NOT NULL,
    version text NOT NULL,
    facts jsonb NOT NULL DEFAULT '{}',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
