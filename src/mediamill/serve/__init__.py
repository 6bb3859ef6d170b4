"""The supervisor: database, api, workers."""
