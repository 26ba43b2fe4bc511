"""One call of a run: the loop in plain sight, and what stands around it."""
