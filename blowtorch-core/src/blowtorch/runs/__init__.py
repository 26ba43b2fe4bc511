"""Finished and running runs, read without torch."""
