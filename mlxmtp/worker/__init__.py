"""The engine in a process of its own: typed commands in, typed events out, a line of JSON each.

A process, because MLX arrays belong to the thread that made them and because a screen or a server in the same
interpreter would take the engine's time. Nothing here but `serve` imports the engine.
"""
