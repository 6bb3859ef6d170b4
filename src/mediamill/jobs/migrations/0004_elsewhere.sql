-- major: 1
-- Work on somebody else's machines outlives the attempt that sent it there.

ALTER TABLE job ADD COLUMN elsewhere text; -- its handle there; null once it is known to have ended
CREATE INDEX job_left_elsewhere_idx ON job (finished_at) WHERE elsewhere IS NOT NULL AND finished_at IS NOT NULL;
