"""The demonstration: fine-tunes a small model offline on facts about Python's standard library."""
