"""The run folder: its name, its owner, and what stands in it."""
