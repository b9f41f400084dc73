"""What fastjobs' own code must never do with what comes from outside: no pickle, no eval, no SQL or Lua made of values."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastjobs
from fastjobs.backends.postgres import PostgresBackend
from fastjobs.errors import ConfigError
from tests.fuzz.strategies import ODD_TEXTS

PACKAGE = Path(fastjobs.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "yaml", "xmlrpc", "code"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "input"}

MADE_CODE = {("binding.py", "exec"), ("binding.py", "compile")}
"""The binder of a handler's arguments is made of its own parameter names, when it is registered (binding.py)."""


def _nodes() -> Iterator[tuple[str, ast.AST]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            yield str(path.relative_to(PACKAGE)), node


def test_nothing_is_unpickled_and_no_text_becomes_code() -> None:
    found = set()
    for name, node in _nodes():
        if isinstance(node, ast.Import):
            found |= {(name, alias.name) for alias in node.names if alias.name.partition(".")[0] in UNSAFE_MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
            found.add((name, str(node.module)))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in UNSAFE_CALLS:
            found.add((name, node.func.id))
    assert found == MADE_CODE


def test_no_shell_is_started() -> None:
    for name, node in _nodes():
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("os.system", "os.popen", "subprocess.getoutput", "asyncio.create_subprocess_shell"), name
            assert not any(keyword.arg == "shell" for keyword in node.keywords), f"{name}: {ast.unparse(node)}"


ALLOWED_IN_SQL = {
    "address.quoted_schema",
    "self._address.quoted_schema",
    "self._lane.address.quoted_schema",
    "self.lane.address.quoted_schema",
    "function",  # names of our own functions, and as many $1, $2, … as they take
    "marks",
    "NAME",  # of the benchmark's own schema, a constant
    "table",  # of our own schema, quoted
}


def test_only_the_quoted_schema_and_our_own_words_are_put_into_sql() -> None:
    pieces = set()
    for name, node in _nodes():
        if not isinstance(node, ast.JoinedStr) or not name.startswith(("backends/postgres", "benchmark/")):
            continue
        literal = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
        if re.match(r"\s*(select|insert|update|delete|create|drop|truncate|lock|vacuum)\b", literal, re.IGNORECASE):
            pieces |= {ast.unparse(part.value) for part in node.values if isinstance(part, ast.FormattedValue)}
    assert pieces <= ALLOWED_IN_SQL, pieces - ALLOWED_IN_SQL


SCHEMAS = (*ODD_TEXTS, 'a"b', 'x"; drop schema public; --', "a.b", "ä", "s" * 55, "pg_catalog", "1a", "a b", "a$", "a'b", "-a")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_schema_that_would_need_more_than_quotes_is_refused(schema: str) -> None:
    with pytest.raises(ConfigError, match="schema"):
        PostgresBackend("postgresql://h/d", schema=schema)


@pytest.mark.parametrize("schema", ["fastjobs", "A", "_", "Jobs-of_shop", "s" * 54, "select", "user"])
def test_a_schema_with_its_channel_fits_into_an_identifier(schema: str) -> None:
    address = PostgresBackend("postgresql://h/d", schema=schema)._address
    assert address.quoted_schema == f'"{schema}"'
    assert len(address.channel.encode()) <= 63


def test_lua_scripts_are_files_that_are_sent_as_they_are() -> None:
    for name, node in _nodes():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert "redis.call(" not in node.value, f"{name}: Lua in a string"
    for path in PACKAGE.rglob("*.lua"):
        text = path.read_text("utf-8")
        assert not re.search(r"\b(loadstring|load|dofile|require)\s*\(", text), path.name
        assert "{schema}" not in text
