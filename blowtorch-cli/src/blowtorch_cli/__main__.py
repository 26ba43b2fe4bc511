"""`python -m blowtorch_cli` is the command `blowtorch`."""

from blowtorch_cli.main import main

main()
