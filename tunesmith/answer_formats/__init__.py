"""How a model writes what is not plain text: reasoning and tool calls."""
