"""The HTTP server: one way from a request to its events, and an adapter for each protocol of coding agents."""
