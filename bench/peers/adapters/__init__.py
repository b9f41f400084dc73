"""One module per peer: `producer`, `commands`, and where needed `prepare` and `work`; see `harness.__main__`."""
