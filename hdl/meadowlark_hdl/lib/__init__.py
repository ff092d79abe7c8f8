"""What any block may be built of: registers near those that hear them, delays, counts, queues."""
