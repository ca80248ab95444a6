"""Pure decoding: sampling, drafting, verification, depth, the round loop, statistics. No text, no model types."""
