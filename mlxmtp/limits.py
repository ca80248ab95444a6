"""Limits and choices that the command line, the screen, the server and the engine share."""

from typing import Literal

MAX_DEPTH = 16
"""Most drafts in a round."""
MAX_LOGPROBS = 20
"""Most log-probabilities that are returned for a token, as in OpenAI's API."""

VerifyMode = Literal["token", "block", "seeded"]
"""How drafts are verified when sampling."""
