"""Weight stream: decoder and tile buffer."""
