"""The command line: `nightmill` and its sub-commands. One file per group of commands; `main` is the entry point."""

from jobs.cli.frame import main

__all__ = ["main"]
