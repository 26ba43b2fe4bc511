"""The configuration: where values come from, and how they are read."""
