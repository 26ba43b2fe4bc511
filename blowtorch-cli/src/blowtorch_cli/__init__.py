"""The command `blowtorch`: look at the installed extensions and at your runs."""

__version__ = "0.1.0"
