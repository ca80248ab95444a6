"""Which identity with plain decoding holds on this machine: measured, and where it can be had, brought about."""
