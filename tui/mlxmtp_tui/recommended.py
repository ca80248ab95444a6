"""Models with MTP heads to begin with, by the memory that they need."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RecommendedModel:
    """A 4-bit conversion of the Hub.

    Args:
        gigabytes: approximate size.
        head: repo of the original, where the conversion has lost its head; None where it has one, or it is found by
            name.
    """

    repo: str
    gigabytes: float
    head: str | None
    about: str


# names and sizes: the repositories' users (Rapid-MLX 159, exo 1909, omlx 1124 and 3489, llmfit 260 on GitHub)
RECOMMENDED = (
    RecommendedModel("mlx-community/gemma-4-e4b-it-4bit", 5, None, "small and quick"),
    RecommendedModel("mlx-community/Qwen3.5-9B-MLX-4bit", 6, "Qwen/Qwen3.5-9B", "good at its size"),
    RecommendedModel("mlx-community/Qwen3.8-27B-4bit", 15, "Qwen/Qwen3.8-27B", "dense, good at code"),
    RecommendedModel("mlx-community/gemma-4-26b-a4b-it-4bit", 16, None, "experts, quick"),
    RecommendedModel("mlx-community/gemma-4-31b-it-4bit", 19, None, "dense"),
    RecommendedModel("mlx-community/Qwen3.6-35B-A3B-4bit", 20, "Qwen/Qwen3.6-35B-A3B", "experts, quick"),
)
