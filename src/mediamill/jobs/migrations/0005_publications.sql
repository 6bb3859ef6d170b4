-- major: 1
-- Final keys that hold, or are about to hold, an object that its job does not name (yet). The job's end with its files
-- takes the rows of those files away; what is left when it ended otherwise is deleted by whoever sees it.

CREATE TABLE publication (
    key text NOT NULL,
    job_id uuid NOT NULL, -- no reference: a job may be forgotten before its leftovers
    digests text[] NOT NULL, -- SHA-256 of what this job's attempts put there
    noted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    deleting_until timestamptz, -- somebody deletes the object until then at the latest
    PRIMARY KEY (key, job_id)
);
CREATE INDEX publication_job_idx ON publication (job_id);

-- A queue is long one minute and empty the next: by the default of a fifth of all jobs ever kept, its statistics and the
-- entries of jobs that began would stay for hours.
ALTER TABLE job SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
