"""Where a job runs. One file a place."""
