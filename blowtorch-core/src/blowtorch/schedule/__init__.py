"""When learning rates change."""
