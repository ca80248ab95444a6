"""Changes to single modules of mlx-lm, so that a verify pass can be rolled back and has the bits of plain decoding."""
