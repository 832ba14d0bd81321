"""The command line: `festina search`, `generate`, `front`, `sites`, `plan`, `zoo`."""

from festina.cli.main import main

__all__ = ["main"]
