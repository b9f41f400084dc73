"""What every adapter shares; imported by each peer's own interpreter, so nothing but the standard library."""
