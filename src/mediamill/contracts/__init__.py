"""One file a public wire format: pure mappings, no web framework, no I/O."""
