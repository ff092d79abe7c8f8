"""External memory: port, reader, store unit."""
