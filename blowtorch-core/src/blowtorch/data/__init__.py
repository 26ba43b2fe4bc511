"""Which samples come when, and how they reach the device."""
