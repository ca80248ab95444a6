"""The benchmark: measures MTP against mlx-lm's plain decoding on this machine, and reports the result."""
