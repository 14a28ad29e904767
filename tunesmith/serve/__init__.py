"""A trained model over HTTP, and the programs that talk to it."""
