"""The chain of schema migrations; `storage.migrate` runs it."""
