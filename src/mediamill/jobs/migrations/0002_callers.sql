-- major: 1
-- Whose job it is, where unfinished jobs are counted by caller; and which jobs name an object in a caller's own folder.

ALTER TABLE job ADD COLUMN caller text; -- SHA-256 of the API key; null where nothing is counted
CREATE INDEX job_caller_idx ON job (caller)
    WHERE caller IS NOT NULL AND parent_id IS NULL AND status IN ('queued', 'running');

CREATE INDEX artifact_key_idx ON artifact (key) WHERE key !~ '^outputs/[0-9a-f-]{32,36}/';
