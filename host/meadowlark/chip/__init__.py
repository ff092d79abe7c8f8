"""Bitstreams: synthesis, placement and routing, and the memory controllers of others."""
