"""Checkpoints: readers of their formats, and the model in float32."""
