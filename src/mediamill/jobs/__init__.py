"""The job core: rows, tickets, workers, webhooks, events."""
