"""Text in, text out: prompts, turns and the engine."""
