"""Giving models their heads: inspect, convert, attach and pull, as the commands of the same names do it."""
