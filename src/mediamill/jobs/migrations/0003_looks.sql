-- major: 1
-- What a caller sees of a job while it runs: when it should end, and a look at unfinished work.

ALTER TABLE job ADD COLUMN expected_at timestamptz; -- as the engine last said
ALTER TABLE job ADD COLUMN preview text; -- storage key
