"""The command line: parses and prints, and decides nothing."""


def main() -> None:
    """Entry point of the `sweeper` command."""
    from sweeper.cli.app import app
    from trainers.contract.writing import guard_terminal

    guard_terminal()
    app()
