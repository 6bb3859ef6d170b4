"""mediamill: media generation and processing on one durable job core."""

__version__ = "0.1.0"
