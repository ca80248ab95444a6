"""Convert checkpoints to MLX's layout with their heads, attach heads to converted models, and describe both."""
