"""The command `blowtorch`: launch a script in several processes; look at the installed extensions and at your runs."""

__version__ = "0.1.0"
