"""README taken apart: its snippets, its commands, and the tables that are made from the option classes.

``python -m tests.readme`` writes the tables anew.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Final

from fastjobs import EnqueueOptions, HandlerOptions, QueueOptions, WorkerOptions
from fastjobs.cli.fields import comments

README: Final = Path(__file__).parents[1] / "README.md"
OPTIONS: Final[dict[str, type[Any]]] = {
    kind.__name__: kind for kind in (EnqueueOptions, HandlerOptions, QueueOptions, WorkerOptions)
}
_TABLE: Final = re.compile(r"<!-- options: (\w+) -->\n(?:`\1`:\n.*?<!-- end -->\n)?", re.DOTALL)


def files() -> dict[str, str]:
    """The Python snippets that README names as files."""
    return dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", README.read_text(), re.DOTALL))


def commands() -> list[str]:
    """Every shell command of README, in order, comments left out."""
    lines: list[str] = []
    for block in re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL):
        lines += [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]
    return lines


def options_table(kind: type[Any]) -> str:
    """A Markdown table of the fields of *kind*: name, default, and the comment beside it in the source."""
    said = comments(kind)
    rows = ["| option | default | meaning |", "|---|---|---|"]
    for field in fields(kind):
        default = "" if field.default is MISSING or field.default is None else f"`{field.default!r}`"
        meaning = said.get(field.name, "as in `EnqueueOptions`, for its jobs")
        rows.append(f"| `{field.name}` | {default} | {meaning} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """README's text with every options table as the classes say it."""
    return _TABLE.sub(
        lambda match: f"<!-- options: {match[1]} -->\n`{match[1]}`:\n\n{options_table(OPTIONS[match[1]])}\n<!-- end -->\n", text
    )


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
