"""Limits that the command line, the screen and the engine share."""

MAX_DEPTH = 16
"""Drafts a round, at most."""
