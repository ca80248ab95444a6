"""Limits and choices that the command line, the screen, the server and the engine share."""

from typing import Literal, get_args

MAX_DEPTH = 16
"""Most drafts in a round."""
MAX_PARALLEL = 64
"""Most turns that run at once. Each has caches of its own."""
MAX_LOGPROBS = 20
"""Most log-probabilities that are returned for a token, as in OpenAI's API."""

VerifyMode = Literal["token", "block", "seeded"]
"""How drafts are verified when sampling."""

Device = Literal["cpu", "gpu"]
"""A device that MLX computes on; "gpu" is Metal or CUDA."""
DEVICES: tuple[Device, ...] = get_args(Device)
