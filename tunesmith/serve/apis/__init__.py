"""The APIs, a file each, and what their requests share."""
