"""Chip families: what the cells that the blocks are built of become on each of them."""
