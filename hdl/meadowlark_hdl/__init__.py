"""Meadowlark: gateware that runs a language model from one stream of packed weights."""
