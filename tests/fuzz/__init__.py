"""What comes from outside, invented by Hypothesis: documented errors only, no crash, no hang, no silent acceptance.

`python -m tests.fuzz --inputs 1000000` (or ``tox -e fuzz``) runs so many and prints a table; the ordinary tests run a few
hundred of each surface.
"""
