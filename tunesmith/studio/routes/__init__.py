"""The studio's API: one file a subject, each with `routes(studio)`."""
