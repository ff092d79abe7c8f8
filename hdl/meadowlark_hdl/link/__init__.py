"""Host link: frames, registers."""
