"""One thin file a contract."""
