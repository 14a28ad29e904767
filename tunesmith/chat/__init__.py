"""The terminal chat: the conversations with a run's two models, and the editor that messages are typed in."""
