"""What is measured and written down, and who is fed from it."""
