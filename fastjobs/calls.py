"""Calls to be stored: "this handler, with these arguments, under these options", and the typed handles to make them with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

import msgspec

from fastjobs.context import JobContext
from fastjobs.durations import Duration, duration_s, epoch_s
from fastjobs.envelope import Template
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.ids import id_text
from fastjobs.joblike import Job
from fastjobs.model import DEFAULT_MAX_LOSSES, DEFAULT_PRIORITY, DEFAULT_QUEUE, ENVELOPE_VERSION, Entry
from fastjobs.model import Job as StoredJob
from fastjobs.options import EnqueueOptions, QueueOptions
from fastjobs.registry import Finish, Handler
from fastjobs.retry import RetryPolicy, carry_policy

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")
R_co = TypeVar("R_co", covariant=True)

NO_OPTIONS: Final = EnqueueOptions()

MAX_PAYLOAD_BYTES: Final = 1024 * 1024
"""Largest payload unless the JobQueue says otherwise."""


class EnqueueKeywords(TypedDict, total=False):
    """The fields of `EnqueueOptions`, as keywords."""

    queue: str | None
    priority: int | None
    delay: Duration | None
    run_at: datetime | None
    max_attempts: int | None
    timeout: Duration | None
    retry: RetryPolicy | None
    max_losses: int | None


class HandlerKeywords(TypedDict, total=False):
    """The fields of `HandlerOptions`, as keywords; `ctx` apart, for it decides the function's type."""

    name: str | None
    queue: str | None
    priority: int | None
    max_attempts: int | None
    timeout: Duration | None
    retry: RetryPolicy | None
    max_losses: int | None
    check: bool
    isolate: bool


class JobHandle:
    """A job that was accepted. `str()` of it is its id."""

    __slots__ = ("_id", "name", "queue")

    def __init__(self, id: bytes, name: str, queue: str) -> None:
        self._id = id
        self.name = name
        self.queue = queue

    @property
    def id(self) -> str:
        """The job's id: a UUID, version 7."""
        return id_text(self._id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<JobHandle {self.name} {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JobHandle) and other._id == self._id

    def __hash__(self) -> int:
        return hash(self._id)


class Shape:
    """What all calls of one handler, or name, under the same options have in common. Nearest wins: enqueue, handler, queue."""

    __slots__ = ("handler", "max_payload_bytes", "name", "queue", "template")

    def __init__(
        self,
        name: str,
        handler: Handler | None,
        options: EnqueueOptions,
        *,
        queue_options: Mapping[str, QueueOptions],
        max_payload_bytes: int,
    ) -> None:
        self.name = name
        self.handler = handler
        self.max_payload_bytes = max_payload_bytes
        self.queue = options.queue or (handler.queue if handler is not None else DEFAULT_QUEUE)
        of_handler = handler.max_losses if handler is not None else None
        priority = _priority(options, handler, queue_options.get(self.queue))
        job = StoredJob(ENVELOPE_VERSION, priority, bytes(16), name, self.queue, b"", 0.0)
        job.max_attempts = options.max_attempts
        job.max_losses = options.max_losses or of_handler or DEFAULT_MAX_LOSSES
        job.timeout_s = None if options.timeout is None else duration_s(options.timeout, "timeout")
        job.headers = None if options.retry is None else carry_policy(options.retry)
        run_at = None if options.run_at is None else epoch_s(options.run_at, "run_at")
        self.template = Template(job, run_at, 0.0 if options.delay is None else duration_s(options.delay, "delay"))


def _priority(options: EnqueueOptions, handler: Handler | None, of_queue: QueueOptions | None) -> int:
    if options.priority is not None:
        return options.priority
    if handler is not None and handler.options.priority is not None:
        return handler.options.priority
    return DEFAULT_PRIORITY if of_queue is None or of_queue.priority is None else of_queue.priority


class Call(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One call, arguments encoded and checked, not yet stored. May be enqueued any number of times: a new job each time."""

    shape: Shape
    payload: bytes

    @property
    def name(self) -> str:
        """Of the job."""
        return self.shape.name

    @property
    def queue(self) -> str:
        """Where it goes."""
        return self.shape.queue

    def entry(self) -> Entry:
        """A new job for this call, as it is stored."""
        return self.shape.template.entry(self.payload)

    def __repr__(self) -> str:
        return f"<Call of {self.name}, {len(self.payload)} bytes>"


def bounded_call(shape: Shape, payload: bytes) -> Call:
    """The call. SerializationError for a payload over the limit."""
    if len(payload) > shape.max_payload_bytes:
        _refuse(shape, payload)
    return Call(shape, payload)


def _refuse(shape: Shape, payload: bytes) -> NoReturn:
    raise SerializationError(
        f"{shape.name}: a payload of {len(payload):,} bytes is over the limit of {shape.max_payload_bytes:,}; "
        f"store the data elsewhere and pass a reference, or raise JobQueue(max_payload_bytes=…)"
    )


class Door(Protocol):
    """What a function's handle needs of its JobQueue."""

    def shape_of(self, handler: Handler, options: EnqueueOptions) -> Shape: ...
    async def enqueue_call(self, call: Call) -> JobHandle: ...


class JobFunction(Generic[P, Q, R_co]):
    """A function registered as a handler.

    Calling it calls the function as ever. `enqueue` and `prepare` take the same arguments without the context, checked by
    mypy and pyright like the function itself.
    """

    def __init__(self, function: Callable[Q, R_co], handler: Handler, door: Door) -> None:
        functools.update_wrapper(self, function)
        self.handler = handler
        self._function = function
        self._door = door
        self._shape = door.shape_of(handler, NO_OPTIONS)

    @property
    def name(self) -> str:
        """The job's name."""
        return self.handler.name

    def __call__(self, /, *args: Q.args, **kwargs: Q.kwargs) -> R_co:
        return self._function(*args, **kwargs)

    def prepare(self, /, *args: P.args, **kwargs: P.kwargs) -> Call:
        """This call as a value, for `enqueue_many` and `jobs.enqueue`.

        TypeError for arguments the function does not take, SerializationError for values it does not.
        """
        prepare: Callable[P, Call] | None = self.__dict__.get("prepare")
        if prepare is None:
            shape = self._shape
            finish = Finish(Call, shape, shape.max_payload_bytes, functools.partial(_refuse, shape))
            # In the place of this method, but for who has got hold of it before: one function without starred arguments.
            prepare = self.__dict__["prepare"] = self.handler.bind_into(finish)
        return prepare(*args, **kwargs)

    async def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """Store this call as a job; it is accepted when this returns.

        Raises as `prepare`, BackendError when the store refuses it, EnqueueUncertain when the store did not answer in time.
        """
        return await self._door.enqueue_call(bounded_call(self._shape, self.handler.bind(*args, **kwargs)))

    def options(self, **options: Unpack[EnqueueKeywords]) -> ConfiguredFunction[P]:
        """The same function with options of one enqueue: ``f.options(delay="5m", priority=9).enqueue(…)``.

        ConfigError names an option that is wrong.
        """
        return ConfiguredFunction(self.handler, self._door, make_options(options))

    def __get__(self, instance: object, owner: type | None = None) -> JobFunction[P, Q, R_co]:
        return self

    if not TYPE_CHECKING:  # to a type checker any attribute would exist then

        def __getattr__(self, name: str) -> NoReturn:
            raise _no_attribute(self, name, f"{self.handler.name}.enqueue(…)")

    def __repr__(self) -> str:
        return f"<JobFunction {self.handler.name} at {self.handler.place}>"


_FOREIGN: Final = {"delay", "apply_async", "send", "send_with_options", "kiq", "kicker", "defer", "s", "si", "schedule"}


def _no_attribute(of: object, name: str, instead: str) -> AttributeError:
    """For an attribute that is not there; where other libraries have it, with what to write *instead*."""
    if name in _FOREIGN:
        return AttributeError(f"fastjobs has no .{name}(); write: await {instead}")
    return AttributeError(f"{type(of).__name__!r} object has no attribute {name!r}")


class ConfiguredFunction(Generic[P]):
    """A registered function with options of one enqueue."""

    __slots__ = ("_door", "_handler", "_shape")

    def __init__(self, handler: Handler, door: Door, options: EnqueueOptions) -> None:
        self._handler = handler
        self._door = door
        self._shape = door.shape_of(handler, options)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            raise _no_attribute(self, name, f"{self._handler.name}.options(…).enqueue(…)")

    def prepare(self, /, *args: P.args, **kwargs: P.kwargs) -> Call:
        """As `JobFunction.prepare`, with the options."""
        return bounded_call(self._shape, self._handler.bind(*args, **kwargs))

    async def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> JobHandle:
        """As `JobFunction.enqueue`, with the options."""
        return await self._door.enqueue_call(self.prepare(*args, **kwargs))


JobName: TypeAlias = str | type[Job[Any]] | Job[Any] | JobFunction[Any, Any, Any]
"""How an enqueue may name its job."""


class JobDecorator(Protocol):
    """What ``@jobs.job(…)`` returns: a first parameter of type JobContext is not an argument of the job."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[JobContext[S], P], R], /
    ) -> JobFunction[P, Concatenate[JobContext[S], P], R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> JobFunction[P, P, R]: ...


class ContextDecorator(Protocol):
    """What ``@jobs.job(ctx=True, …)`` returns: the first parameter takes the context, whatever its annotation."""

    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> JobFunction[P, Concatenate[Any, P], R]: ...


class PlainDecorator(Protocol):
    """What ``@jobs.job(ctx=False, …)`` returns: every parameter is an argument of the job."""

    def __call__(self, function: Callable[P, R], /) -> JobFunction[P, P, R]: ...


def make_options(options: EnqueueKeywords) -> EnqueueOptions:
    """EnqueueOptions from keywords. ConfigError names an option that does not exist."""
    unknown = options.keys() - EnqueueOptions.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(EnqueueOptions.__dataclass_fields__)
        raise ConfigError(f"no such option: {', '.join(sorted(unknown))}; an enqueue takes: {known}")
    return EnqueueOptions(**options)
