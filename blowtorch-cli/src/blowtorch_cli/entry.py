"""Where the command begins; says so when another package has taken the place of `blowtorch-core`."""

import importlib.metadata
import sys


def main() -> None:
    """Run the command `blowtorch`."""
    try:
        from blowtorch_cli.main import main as command
    except ImportError:
        if reason := describe_foreign_package():
            sys.exit(f"Error: {reason}")
        raise
    command(prog_name="blowtorch")


def describe_foreign_package() -> str:
    """Say what to do about the package that is called `blowtorch` and is not ours; nothing when it is not installed."""
    try:
        version = importlib.metadata.version("blowtorch")
    except importlib.metadata.PackageNotFoundError:
        return ""
    return (
        f"the package 'blowtorch' {version} is another project that puts its files into the folder of blowtorch-core: "
        "run `pip uninstall blowtorch`, then `pip install --force-reinstall --no-deps blowtorch-core`"
    )
