"""The demo: its models, its input, and the one run that `make demo` shows."""
