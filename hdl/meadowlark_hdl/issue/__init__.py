"""Executes instructions: from a list of operators to a beat of control a cycle."""
