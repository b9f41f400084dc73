"""What the typed decoder says of a payload that does not fit, made into an error that names the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from fastjobs.errors import SerializationError
from fastjobs.payload_values import ABSENT, ROOT, check_sendable, describe, key_path, too_deep

Read = Callable[[bytes], Any]


class ModelError(ValueError):
    """What a pydantic model says of its JSON: the first complaint, and where in the model it is about."""

    def __init__(self, text: str, path: str = "") -> None:
        super().__init__(text)
        self.path = path


def model_error(error: ValueError) -> ModelError:
    """*error*, pydantic's or of a validator, as one line."""
    errors = getattr(error, "errors", None)
    found = errors() if callable(errors) else []
    if not found:
        return ModelError(" ".join(str(error).split()))
    first, more = found[0], len(found) - 1
    path = "".join(f"[{step}]" if isinstance(step, int) else key_path("", step) for step in first["loc"])
    return ModelError(first["msg"] + (f" (and {more} more)" if more else ""), path)


_AT: Final = re.compile(r" - at `(?:key in )?([^`]*)`$")
_FIELD: Final = re.compile(r"^Object (missing required|contains unknown) field (.*)$")
_GOT: Final = re.compile(r"^Expected (\S+(?: \| \S+)*), got (\S+)$")
_STEP: Final = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]|\[('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")\]")
_RAW_STEP: Final = re.compile(r"(?:\.([^.\[\]]+)|\[(\d+)\]|(\[\.\.\.\])())")


def decode_error(error: Exception, payload: bytes, read: Read, sent: Any = ABSENT) -> SerializationError:
    """What the typed decoder *read* said of *payload*, with the path of the field; with the value at that path in *sent*, where
    that is at hand."""
    if isinstance(error, RecursionError):
        return too_deep()
    if sent is not ABSENT:
        try:
            check_sendable(sent)
        except SerializationError as better:
            return better
    text = str(error)
    at = _AT.search(text)
    path = _with_keys(at[1], payload, read) if at else ROOT if isinstance(error, msgspec.ValidationError) else ""
    text = (text[: at.start()] if at else text).replace("`", "")
    if isinstance(error.__cause__, ModelError):
        return SerializationError(text, path=path + error.__cause__.path)
    field = _FIELD.search(text)
    if field:
        return SerializationError("missing" if field[1] == "missing required" else "unknown field", path=f"{path}.{field[2]}")
    found, value = _value_at(sent, path)
    got = _GOT.match(text)
    if got:
        return SerializationError(f"expected {got[1]}, got {describe(value) if found else got[2]}", path=path)
    shown = f" (it is {describe(value)})" if found else ""
    if text[1:2].islower():
        text = text[0].lower() + text[1:]
    return SerializationError(f"{text}{shown}", path=path)


def _value_at(value: Any, path: str) -> tuple[bool, Any]:
    """Whether *value* has something at *path*, and what."""
    if value is ABSENT or _STEP.sub("", path) != ROOT:
        return False, None
    for name, index, key in _STEP.findall(path):
        try:
            if key or isinstance(value, Mapping):
                value = value[name or ast.literal_eval(key)]
            else:
                value = value[int(index)] if index else getattr(value, name)
        except (LookupError, AttributeError, TypeError, ValueError, SyntaxError):
            return False, None
    return True, value


def _with_keys(path: str, payload: bytes, read: Read) -> str:
    """*path* with the keys of dicts, for which msgspec writes ``[...]``; as it is if they cannot be found."""
    try:
        return _named(path, payload, read) if "[...]" in path else path
    except (LookupError, TypeError, msgspec.MsgspecError, UnicodeError, RecursionError):
        return path  # a field renamed to something with a dot, say; or what follows the field is no JSON at all


def _named(path: str, payload: bytes, read: Read) -> str:
    """*path* with the keys of dicts, each found by bisecting the entries: log2(n) decodes."""
    whole = node = msgspec.json.decode(payload)
    passed, named = ROOT, ROOT
    for name, index, _, _ in _RAW_STEP.findall(path):
        step = f".{name}" if name else f"[{index or '...'}]"
        passed += step
        if name or index:
            node = node[name] if name else node[int(index)]
            named += step
        elif isinstance(node, dict):
            key = _culprit(whole, node, passed, read)
            node = node[key]
            named = key_path(named, key)
        else:  # a set: in no order
            return named + path[len(passed) - len(step) :]
    return named


def _culprit(whole: Any, node: dict[str, Any], path: str, read: Read) -> str:
    """The key of *node*, a part of *whole*, whose entry *read* refuses at *path*. Leaves only that one in *node*."""

    def refused() -> bool:
        try:
            read(msgspec.json.encode(whole))
        except Exception as error:
            at = _AT.search(str(error))
            return at is not None and at[1].startswith(path)
        return False

    keys, entries = list(node), dict(node)
    while len(keys) > 1:
        half = keys[: len(keys) // 2]
        node.clear()
        node.update((key, entries[key]) for key in half)
        keys = half if refused() else keys[len(half) :]
    node.clear()
    node[keys[0]] = entries[keys[0]]
    return keys[0]
