"""Which handler a job name leads to."""

from __future__ import annotations

import re
from typing import Any

import pytest

from fastjobs.binding import compile_handler
from fastjobs.codec import codec
from fastjobs.errors import ConfigError
from fastjobs.options import HandlerOptions
from fastjobs.registry import Handler, Registry
from fastjobs.retry import RetryPolicy

CODEC = codec("msgspec")


def resize(path: str) -> None: ...


def send_mail(to: str) -> None: ...


def broken(thing: complex) -> None: ...


def handler_of(function: Any, **options: Any) -> Handler:
    return compile_handler(function, HandlerOptions(**options), CODEC)


def test_a_handler_is_found_by_its_name() -> None:
    registry = Registry()
    mail, other = handler_of(send_mail, name="mail.send", queue="mail"), handler_of(resize)
    registry.add(mail)
    registry.add(other)
    assert registry.get("mail.send") is mail
    assert registry.get("resize") is other
    assert registry.get("send_mail") is None
    assert registry.names() == ["mail.send", "resize"]
    assert registry.handlers() == [mail, other]
    assert registry.queues() == ["mail", "default"]
    assert len(registry) == 2
    assert "resize" in registry
    assert "nope" not in registry


def test_queues_are_named_once() -> None:
    registry = Registry()
    registry.add(handler_of(resize))
    registry.add(handler_of(send_mail))
    assert registry.queues() == ["default"]


def test_options_become_attributes_and_the_unset_stays_unset() -> None:
    policy = RetryPolicy(base=3)
    handler = handler_of(resize, timeout="30s", max_attempts=4, retry=policy, max_losses=2)
    assert (handler.timeout_s, handler.max_attempts, handler.policy, handler.max_losses) == (30.0, 4, policy, 2)
    assert (handler.module, handler.qualname) == (__name__, "resize")
    assert re.fullmatch(r".*test_registry\.py:\d+", handler.place)
    plain = handler_of(resize)
    assert (plain.timeout_s, plain.max_attempts, plain.policy, plain.max_losses) == (None, None, None, None)


def test_another_function_under_a_taken_name_is_refused_with_both_places() -> None:
    registry = Registry()
    first = handler_of(resize)
    registry.add(first)
    with pytest.raises(ConfigError) as refused:
        registry.add(handler_of(send_mail, name="resize"))
    line = send_mail.__code__.co_firstlineno
    assert first.place in str(refused.value)
    assert f"test_registry.py:{line}" in str(refused.value)
    assert registry.get("resize") is first


def define(body: str, module: str, file: str) -> Any:
    space: dict[str, Any] = {"__name__": module}
    exec(compile(body, file, "exec"), space)
    return space["task"]


def test_the_same_module_and_qualified_name_replaces() -> None:
    registry = Registry()
    registry.add(handler_of(define("def task(): ...", "notebook", "cell-1")))
    again = handler_of(define("\n\ndef task(a: int): ...", "notebook", "cell-2"))
    registry.add(again)
    assert registry.get("task") is again


def test_a_script_that_is_imported_again_under_its_own_name_replaces() -> None:
    registry = Registry()
    registry.add(handler_of(define("def task(): ...", "__main__", "/app/shop.py")))
    registry.add(handler_of(define("def task(): ...", "shop", "/app/shop.py")))
    with pytest.raises(ConfigError, match="is taken"):
        registry.add(
            handler_of(define("def task(): ...", "shop", "/app/shop.py") and define("def task(): ...", "b", "/app/b.py"))
        )


def test_resolve_all_refuses_what_cannot_be_stored() -> None:
    registry = Registry()
    registry.add(handler_of(resize))
    registry.add(handler_of(broken))
    with pytest.raises(ConfigError, match=re.escape("broken(thing: complex) at ")):
        registry.resolve_all()
    resolved = registry.get("resize")
    assert resolved is not None
    assert resolved.resolved


def test_a_stale_reference_to_bind_goes_on_working() -> None:
    handler = handler_of(resize)
    early = handler.bind
    assert early("a") == early("a") == handler.bind("a") == b'{"path":"a"}'
