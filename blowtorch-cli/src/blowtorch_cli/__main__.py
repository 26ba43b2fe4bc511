"""`python -m blowtorch_cli` is the command `blowtorch`."""

from blowtorch_cli.entry import main

main()
