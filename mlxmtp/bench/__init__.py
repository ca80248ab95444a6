"""What MTP brings on this machine: measured beside mlx-lm's plain decoding, priced, and reported."""
