"""The terminal chat: a Textual application that knows the engine by the events of its process only."""
