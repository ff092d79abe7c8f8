"""Drafts of tokens, which a pass of the model then verifies."""
