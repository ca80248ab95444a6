"""The engine in a process of its own: commands in, events out, a line of JSON each.

MLX arrays belong to the thread that made them, and a screen or a server in the same interpreter would slow the engine.
`client` is how other rooms talk to it; only `serve` imports the engine.
"""
