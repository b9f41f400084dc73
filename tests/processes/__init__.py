"""Real supervisors with real workers, for tests: an app, a program that supervises it, and a driver."""
