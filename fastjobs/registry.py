"""Job name → handler. A handler is what its function's compiled form and its options make of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, TypeAlias

from fastjobs.durations import duration_s
from fastjobs.errors import ConfigError
from fastjobs.model import DEFAULT_QUEUE
from fastjobs.options import HandlerOptions
from fastjobs.retry import RetryPolicy


class Finish(NamedTuple):
    """What is made of a payload: ``make(of, payload)``; *refuse*, which raises, gets one of more than *limit* bytes first."""

    make: Callable[[Any, bytes], Any]
    of: Any
    limit: int
    refuse: Callable[[bytes], NoReturn]


BindInto: TypeAlias = Callable[[Finish], Callable[..., Any]]
"""`bind` with that behind it, as one function: each call that it saves is a tenth of enqueueing."""


class Compiled(NamedTuple):
    """What binding makes of a function and its annotations. See the attributes of `Handler`."""

    wants_ctx: bool
    bind: Callable[..., bytes]
    bind_into: BindInto
    encode_data: Callable[[Any], bytes]
    read: Callable[[bytes], Any]
    decode: Callable[[bytes], Any]
    call: Callable[[Any, Any], Any]


class Handler:
    """What runs the jobs of one name.

    Its annotations are resolved by `resolve`, at the latest at the first `bind`, `encode_data`, `decode` or `call`: they
    may name what is defined after the function. Each of these raises ConfigError then if a payload cannot have such a type.
    """

    __slots__ = (
        "_bind_into",
        "_compile",
        "bind",
        "call",
        "data_is_arguments",
        "decode",
        "encode_data",
        "function",
        "gives_coroutine",
        "is_async",
        "max_attempts",
        "max_losses",
        "module",
        "name",
        "options",
        "place",
        "policy",
        "qualname",
        "queue",
        "read",
        "resolved",
        "timeout_s",
        "wants_ctx",
    )

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        options: HandlerOptions,
        compile: Callable[[], Compiled],
        *,
        place: str,
        module: str,
        qualname: str,
        is_async: bool,
        gives_coroutine: bool = False,
        data_is_arguments: bool = True,
    ) -> None:
        self.name = name
        self.function = function
        self.options = options
        self.place = place  #: "shop.py:12"
        self.module = module
        self.qualname = qualname
        self.is_async = is_async  #: `call` returns an awaitable; otherwise it runs the function
        self.gives_coroutine = gives_coroutine  #: not async itself, but what it returns may be a coroutine to be awaited
        self.data_is_arguments = data_is_arguments  #: the payload is an object of arguments by name; False: any one value
        self.queue = options.queue or DEFAULT_QUEUE
        self.timeout_s = None if options.timeout is None else duration_s(options.timeout, "job(timeout)")
        self.max_attempts = options.max_attempts
        self.max_losses = options.max_losses
        self.policy: RetryPolicy | None = options.retry
        self._compile = compile
        self._bind_into: BindInto
        self.resolved = False
        self.wants_ctx = False  #: known once resolved
        #: the arguments of a call → payload. TypeError as Python raises it, SerializationError with `.path` for a value
        self.bind: Callable[..., bytes] = self._first_bind
        #: arguments by name, or the one value, as JSON or Python values → payload. SerializationError for anything wrong
        self.encode_data: Callable[[Any], bytes] = self._first_encode_data
        #: payload → what `call` takes, in C. Any exception: `decode` says what is wrong
        self.read: Callable[[bytes], Any] = self._first_read
        #: the same. SerializationError with `.path` if it does not fit the function
        self.decode: Callable[[bytes], Any] = self._first_decode
        #: (JobContext, or anything if not `wants_ctx`; decoded payload) → the function's result
        self.call: Callable[[Any, Any], Any] = self._first_call

    def resolve(self) -> None:
        """Resolve the annotations and compile; repeatable. ConfigError with file and line for what cannot be stored."""
        if not self.resolved:
            compiled = self._compile()
            self.wants_ctx, self.bind, self._bind_into, self.encode_data, self.read, self.decode, self.call = compiled
            self.resolved = True

    def bind_into(self, finish: Finish) -> Callable[..., Any]:
        """`bind` and *finish* as one function with the handler's own parameters."""
        self.resolve()
        return self._bind_into(finish)

    def _first_bind(self, /, *args: Any, **kwargs: Any) -> bytes:
        self.resolve()
        return self.bind(*args, **kwargs)

    def _first_encode_data(self, data: Any) -> bytes:
        self.resolve()
        return self.encode_data(data)

    def _first_read(self, payload: bytes) -> Any:
        self.resolve()
        return self.read(payload)

    def _first_decode(self, payload: bytes) -> Any:
        self.resolve()
        return self.decode(payload)

    def _first_call(self, ctx: Any, arguments: Any) -> Any:
        self.resolve()
        return self.call(ctx, arguments)

    def __repr__(self) -> str:
        return f"<Handler {self.name} at {self.place}>"


class Registry:
    """The handlers of one app, in the order of registration."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}
        self.get: Callable[[str], Handler | None] = self._handlers.get
        """The handler of a name, or None. The dict's own method: one look-up per job."""

    def add(self, handler: Handler) -> None:
        """Register *handler*. ConfigError if another function has its name.

        The same module and qualified name again replaces it (notebooks, reload), and so does the same line of the same file
        (a script imported a second time under its own name).
        """
        other = self._handlers.get(handler.name)
        if other is not None and not _is_same(other, handler):
            raise ConfigError(
                f"job name {handler.name!r} is taken: {other.module}.{other.qualname} at {other.place} and "
                f"{handler.module}.{handler.qualname} at {handler.place}; give one of them another: @jobs.job(name=…)"
            )
        self._handlers[handler.name] = handler

    def names(self) -> list[str]:
        """All job names."""
        return list(self._handlers)

    def handlers(self) -> list[Handler]:
        """All handlers."""
        return list(self._handlers.values())

    def queues(self) -> list[str]:
        """The queues of all handlers, each once."""
        return list(dict.fromkeys(handler.queue for handler in self._handlers.values()))

    def resolve_all(self) -> None:
        """Resolve every handler; before the fork, so that workers share the result. ConfigError for the first that fails."""
        for handler in self.handlers():
            handler.resolve()

    def __len__(self) -> int:
        return len(self._handlers)

    def __contains__(self, name: object) -> bool:
        return name in self._handlers


def _is_same(one: Handler, other: Handler) -> bool:
    if one.qualname != other.qualname:
        return False
    return one.module == other.module or one.place == other.place
