"""The HTTP shim: one core, and an adapter for each protocol that coding agents speak."""
