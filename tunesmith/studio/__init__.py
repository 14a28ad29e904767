"""The studio: the workstation in a browser. It does what the command line does, from the same code."""
