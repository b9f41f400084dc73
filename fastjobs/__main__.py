"""``python -m fastjobs``: the command line."""

from __future__ import annotations

from fastjobs.cli import main

if __name__ == "__main__":
    main(prog_name="fastjobs")
