"""Arithmetic: lanes, softmax, vector unit."""
