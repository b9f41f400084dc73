"""Chaos with exact accounts: real processes and servers under faults picked by a seed. See `__main__`."""
