"""Operations: demo models and data, benchmarks. Never part of the installed program."""
