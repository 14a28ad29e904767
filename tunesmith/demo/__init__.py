"""The main job on real data, offline: a small model learns facts about Python's standard library."""
