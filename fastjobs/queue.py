"""`JobQueue`: the app. Register handlers, enqueue, run jobs in this process, look after what is stored."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Unpack, cast, overload

from fastjobs.appname import app_id_of, caller_module
from fastjobs.backends import make_store, mask_password, scheme_of
from fastjobs.backends.base import Store
from fastjobs.binding import compile_handler, compile_job
from fastjobs.bulk import enqueue_all
from fastjobs.calls import (
    MAX_PAYLOAD_BYTES,
    NO_OPTIONS,
    Call,
    ContextDecorator,
    EnqueueKeywords,
    HandlerKeywords,
    JobDecorator,
    JobFunction,
    JobHandle,
    JobName,
    PlainDecorator,
    Shape,
    bounded_call,
    make_options,
)
from fastjobs.codec import CodecName, PayloadCodec, checked_hooks
from fastjobs.codec import codec as codec_named
from fastjobs.context import JobContext
from fastjobs.dead import DeadLetters
from fastjobs.durations import Duration, duration_s
from fastjobs.embedded import process_one, run_worker
from fastjobs.errors import ConfigError, SerializationError
from fastjobs.habits import refuse_foreign
from fastjobs.joblike import Data, Job, data_type
from fastjobs.local import local_store
from fastjobs.model import Stats
from fastjobs.options import EnqueueOptions, HandlerOptions, QueueOptions, WorkerOptions, check_int, check_name
from fastjobs.producer import Producer
from fastjobs.registry import Handler, Registry
from fastjobs.syncdoor import SyncDoor
from fastjobs.worker import Lifespan

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")

URL_VARIABLE = "FASTJOBS_URL"
CODEC_VARIABLE = "FASTJOBS_CODEC"
DEFAULT_URL = "memory://"
MOST_SHAPES = 1000


class JobQueue:
    """An app: its handlers, and where its jobs are stored.

    *backend*: a store or its URL (``memory://``, ``redis://…``, ``postgresql://…``); default: FASTJOBS_URL, else ``memory://``.
    It is resolved at first use, never at import; connections belong to the event loop that first uses them.
    *lifespan*: an async context manager function, entered once per worker process; what it yields is `ctx.state`.
    *include*: modules with more handlers, imported when the app is loaded.
    *queues*: options for all jobs of a queue, where neither enqueue nor handler says.
    *codec*: "orjson" or "msgspec", which is pure C. *types*: {type: (to a storable value, from it)} for types of your own.
    *enqueue_timeout*: how long an enqueue is repeated while the store does not answer, at most 5 minutes.
    """

    def __init__(
        self,
        backend: Store | str | None = None,
        *,
        lifespan: Lifespan | None = None,
        include: Sequence[str] = (),
        queues: Mapping[str, QueueOptions] | None = None,
        codec: CodecName | None = None,
        types: Mapping[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] | None = None,
        worker: WorkerOptions | None = None,
        max_payload_bytes: int = MAX_PAYLOAD_BYTES,
        enqueue_timeout: Duration = 30.0,
    ) -> None:
        if max_payload_bytes is None:
            raise ConfigError("JobQueue(max_payload_bytes): must be a whole number of bytes, got None")
        check_int(max_payload_bytes, "JobQueue(max_payload_bytes)", 1, 512 * 1024 * 1024)
        if isinstance(backend, str):
            scheme_of(backend)
        elif backend is not None and not hasattr(backend, "exchange"):
            raise ConfigError(f"JobQueue(backend): must be a URL or a backend, got {type(backend).__name__}")
        if isinstance(include, str):
            raise ConfigError(f'JobQueue(include): must be a list of module names, got the text {include!r}; use ["{include}"]')
        if not all(isinstance(module, str) for module in include):
            raise ConfigError(f'JobQueue(include): must be a list of module names, ["shop.mail"], got {include!r:.100}')
        if queues is not None and not isinstance(queues, Mapping):
            raise ConfigError(f'JobQueue(queues): must be options by name, {{"mail": QueueOptions(…)}}, got {queues!r:.100}')
        for name, value in (queues or {}).items():
            check_name(name, "JobQueue(queues)")
            if not isinstance(value, QueueOptions):
                raise ConfigError(f"JobQueue(queues): {name!r} needs QueueOptions(…), got {value!r:.100}")
        if worker is not None and not isinstance(worker, WorkerOptions):
            raise ConfigError(f"JobQueue(worker): must be WorkerOptions(…), got {worker!r:.100}")
        _check_lifespan(lifespan)
        if codec not in (None, "orjson", "msgspec"):
            raise ConfigError(f'JobQueue(codec): must be "orjson" or "msgspec", got {codec!r:.100}')
        self.registry = Registry()
        self.queue_options: Mapping[str, QueueOptions] = MappingProxyType(dict(queues or {}))
        self.lifespan = lifespan
        self.include = tuple(include)
        self.worker_options = worker or WorkerOptions()
        self.module = caller_module()
        self._backend = backend
        self._codec_name = codec
        self._types = None if types is None else checked_hooks(types)
        self._codec: PayloadCodec | None = None
        self._shapes: dict[str, Shape] = {}  # of calls without options of their own
        self._max_payload_bytes = max_payload_bytes
        self._enqueue_timeout_s = min(duration_s(enqueue_timeout, "JobQueue(enqueue_timeout)"), 300.0)
        self._producers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[int, Producer]] = (
            weakref.WeakKeyDictionary()
        )
        self._sync = SyncDoor(self)
        self.dead = DeadLetters(lambda: self._producer().store)

    # -- handlers -----------------------------------------------------------------------------------------------------

    @overload
    def job(
        self, function: Callable[Concatenate[JobContext[S], P], R], /
    ) -> JobFunction[P, Concatenate[JobContext[S], P], R]: ...
    @overload
    def job(self, function: Callable[P, R], /) -> JobFunction[P, P, R]: ...
    @overload
    def job(self, /, *, ctx: Literal[False], **options: Unpack[HandlerKeywords]) -> PlainDecorator: ...
    @overload
    def job(self, /, *, ctx: Literal[True], **options: Unpack[HandlerKeywords]) -> ContextDecorator: ...
    @overload
    def job(self, /, **options: Unpack[HandlerKeywords]) -> JobDecorator: ...
    def job(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function as a handler: ``@jobs.job`` or ``@jobs.job(queue="mail", max_attempts=10, …)``.

        Async functions run in the worker's event loop, others in a thread. A first parameter annotated JobContext gets the
        context. Options are those of `HandlerOptions`. ConfigError, with file and line, for what cannot be a handler.
        """
        checked = _handler_options("job", options)

        def register(function: Callable[..., Any]) -> JobFunction[Any, Any, Any]:
            handler = compile_handler(function, checked, self._payload_codec, self._types)
            self.registry.add(handler)
            return JobFunction(function, handler, self)

        return register if function is None else register(function)

    def register_job(self, job: Job[Any], /, **options: Unpack[HandlerKeywords]) -> None:
        """Register an instance of a `Job` class. Options as for `job`; the name is the class's `name`, else its own name."""
        if not isinstance(job, Job):
            hint = f"{job.__name__}()" if isinstance(job, type) else "an instance of a Job class"
            raise ConfigError(f"register_job: give it {hint}; for a function use @jobs.job")
        if type(job).execute is Job.execute:
            raise ConfigError(f"register_job: {type(job).__qualname__} must define: async def execute(self, ctx, data)")
        checked = _handler_options("register_job", options)
        if checked.name is None:
            checked = replace(checked, name=_name_of(job))
        self.registry.add(compile_job(job, data_type(type(job)), checked, self._payload_codec, self._types))

    def load(self) -> None:
        """Import the `include` modules and resolve all handlers' annotations. ConfigError names one that cannot be stored."""
        for module in self.include:
            importlib.import_module(module)
        self.registry.resolve_all()

    def queues(self) -> tuple[str, ...]:
        """The queues of the registered handlers."""
        return tuple(self.registry.queues())

    def _payload_codec(self) -> PayloadCodec:
        if self._codec is None:
            self._codec = codec_named(self._codec_name or codec_from_environment(), types=self._types)
        return self._codec

    # -- enqueueing ---------------------------------------------------------------------------------------------------

    @overload
    def prepare(
        self,
        job: str | JobFunction[Any, Any, Any],
        data: Mapping[str, Any] | None = None,
        options: EnqueueOptions | None = None,
    ) -> Call: ...
    @overload
    def prepare(self, job: type[Job[Data]] | Job[Data], data: Data, options: EnqueueOptions | None = None) -> Call: ...
    def prepare(self, job: JobName, data: Any = None, options: EnqueueOptions | None = None) -> Call:
        """A call by name, `Job` class or registered function, as a value for `enqueue` and `enqueue_many`.

        *data*: the arguments by name, ``{"path": "a.png"}``, or the payload of a `Job` class. A name that is not registered
        here is allowed (producers need not have the code); its data is then only checked for being JSON.
        """
        return self._prepare(job, data, options)

    def _prepare(self, job: JobName, data: Any, options: EnqueueOptions | None) -> Call:
        handler = self._handler_of(job)
        name = job if isinstance(job, str) else handler.name if handler is not None else _name_of(job)
        check_name(name, "job name")
        if handler is not None:
            payload = handler.encode_data({} if data is None and handler.data_is_arguments else data)
        else:
            if data is not None and not isinstance(data, Mapping) and isinstance(job, str):
                raise SerializationError(
                    f"{name}: data must be the arguments by name, as {{'path': 'a.png'}}, got {data!r:.100}"
                )
            payload = self._payload_codec().encode({} if data is None else data)
        return bounded_call(self.shape_of(handler, options or NO_OPTIONS, name=name), payload)

    @overload
    async def enqueue(self, job: Call) -> JobHandle: ...
    @overload
    async def enqueue(
        self,
        job: str | JobFunction[Any, Any, Any],
        data: Mapping[str, Any] | None = None,
        options: EnqueueOptions | None = None,
        **keywords: Unpack[EnqueueKeywords],
    ) -> JobHandle: ...
    @overload
    async def enqueue(
        self,
        job: type[Job[Data]] | Job[Data],
        data: Data,
        options: EnqueueOptions | None = None,
        **keywords: Unpack[EnqueueKeywords],
    ) -> JobHandle: ...
    async def enqueue(
        self,
        job: JobName | Call,
        data: Any = None,
        options: EnqueueOptions | None = None,
        *rest: object,
        **keywords: Unpack[EnqueueKeywords],
    ) -> JobHandle:
        """Store one job; it is accepted when this returns. *job*: a prepared call, a name, a `Job` class, a function.

        Options as an `EnqueueOptions` or as keywords. Raises ConfigError, SerializationError and TypeError for bad input,
        BackendError when the store refuses it, EnqueueUncertain when the store did not answer in time.
        """
        return await self.enqueue_call(self.make_call(job, data, options, rest, keywords))

    async def enqueue_many(self, calls: Iterable[Call] | AsyncIterable[Call]) -> int:
        """Store prepared calls from any iterable or async iterable, in chunks, in constant memory. Returns how many.

        Raises EnqueueManyError when it stops before the end; its `accepted` says how many of the first are stored.
        """
        return await enqueue_all(self._producer(), calls)

    @property
    def sync(self) -> SyncDoor:
        """Enqueue from plain code without an event loop: ``jobs.sync.enqueue(f.prepare(…))``."""
        return self._sync

    def make_call(
        self,
        job: JobName | Call,
        data: Any,
        options: EnqueueOptions | None,
        rest: tuple[object, ...],
        keywords: EnqueueKeywords,
    ) -> Call:
        """What `enqueue` was given as a call. ConfigError shows the right way for calls as other libraries take them."""
        refuse_foreign(job, data, rest, keywords)
        if options is not None and not isinstance(options, EnqueueOptions):
            raise ConfigError(f"enqueue: options must be EnqueueOptions(…) or keywords, got {options!r:.100}")
        if keywords:
            if options is not None:
                raise ConfigError("enqueue: give the options as an EnqueueOptions or as keywords, not both")
            options = make_options(keywords)
        if isinstance(job, Call):
            if data is not None or options is not None:
                raise ConfigError("enqueue: a prepared call has its arguments and options; use f.options(…).prepare(…)")
            return job
        return self._prepare(job, data, options)

    def shape_of(self, handler: Handler | None, options: EnqueueOptions, *, name: str | None = None) -> Shape:
        """What calls of *handler*, or of a *name* without one, have in common under *options*."""
        called = name if name is not None else handler.name if handler is not None else ""
        known = self._shapes.get(called) if options is NO_OPTIONS else None
        if known is not None and known.handler is handler:
            return known
        limit = self.max_payload_bytes
        shape = Shape(called, handler, options, queue_options=self.queue_options, max_payload_bytes=limit)
        if options is NO_OPTIONS:
            if len(self._shapes) >= MOST_SHAPES:  # names made up at run time
                self._shapes.clear()
            self._shapes[called] = shape
        return shape

    async def enqueue_call(self, call: Call) -> JobHandle:
        """Store one prepared call."""
        entry = call.entry()
        await self._producer().enqueue(entry)
        return JobHandle(entry.id, call.name, call.queue)

    def _handler_of(self, job: JobName) -> Handler | None:
        if isinstance(job, str):
            return self.registry.get(job)
        if isinstance(job, JobFunction):
            return job.handler
        if isinstance(job, Job) or (isinstance(job, type) and issubclass(job, Job)):
            return self._handler_of_class(job if isinstance(job, type) else type(job))
        raise ConfigError(f"enqueue: a job is named by its function, class or name, got {type(job).__name__}")

    def _handler_of_class(self, kind: type[Job[Any]]) -> Handler | None:
        """The handler that an instance of *kind* was registered as, under whatever name."""
        for handler in self.registry.handlers():
            if type(getattr(handler.function, "__self__", None)) is kind:
                return handler
        return None

    # -- running jobs here --------------------------------------------------------------------------------------------

    async def process_one(self, queues: Sequence[str] | None = None) -> bool:
        """Claim and run one ready job in this task. False if none was ready. For tests and manual control.

        The job's own failure does not raise: it is retried or dead, as in a worker.
        """
        return await process_one(self, self._producer().store, queues)

    async def start_worker(self, options: WorkerOptions | None = None) -> None:
        """Run jobs in this event loop until cancelled; then drain: finish what runs within `grace`, give the rest back.

        A second cancellation ends the grace time. Its lease is renewed from a thread of its own.
        """
        await run_worker(self, options or self.worker_options)

    # -- the store ----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where the jobs are stored, the password included: for opening, not for printing."""
        if self._backend is None:
            return _url_from_environment()
        return self._backend if isinstance(self._backend, str) else self._backend.url

    @property
    def max_payload_bytes(self) -> int:
        """The largest payload that is accepted."""
        return self._max_payload_bytes

    @property
    def app_id(self) -> str:
        """Names this app on this machine: its module and directory. The broker's socket is named after it."""
        return app_id_of(self.module)

    def store(self, *, create: bool = True) -> Store:
        """A fresh, unopened backend. For ``memory://`` that of the running supervisor, else this process's own.

        Without *create* a Postgres schema that is missing is an error, not made: for those that only look.
        """
        backend = self._backend
        if backend is not None and not isinstance(backend, str):
            clone = backend.clone()
            clone.time_shift_s = backend.time_shift_s
            return clone
        url = self.url
        return local_store(self, self.app_id) if scheme_of(url) == "memory" else make_store(url, create=create)

    def use(self, backend: Store | str | None) -> None:
        """Store the jobs elsewhere from now on, in this process. Handlers stay."""
        if isinstance(backend, str):
            scheme_of(backend)
        self._backend = backend
        self._producers = weakref.WeakKeyDictionary()

    @contextmanager
    def override(self, backend: Store | str) -> Iterator[JobQueue]:
        """``with jobs.override("memory://"):`` swaps the store, for tests; ``memory://`` is a fresh one each time."""
        before, producers = self._backend, self._producers
        fresh = isinstance(backend, str) and scheme_of(backend) == "memory"
        self.use(make_store("memory://") if fresh else backend)
        try:
            yield self
        finally:
            self._backend, self._producers = before, producers

    async def stats(self) -> Stats:
        """Counts of all queues, in one step of the store."""
        return await self._producer().store.stats()

    async def purge(self, queue: str) -> int:
        """Delete the ready and delayed jobs of *queue*. Returns how many."""
        return await self._producer().store.purge(check_name(queue, "purge(queue)"))

    async def migrate(self) -> list[str]:
        """Bring the store's schema up to date. Returns the steps done."""
        return await self._producer().store.migrate()

    async def close(self) -> None:
        """Send what waits to be enqueued and close this event loop's connections. The queue may be used again."""
        _, producer = self._producers.pop(asyncio.get_running_loop(), (0, None))
        if producer is not None:
            await producer.close()

    async def __aenter__(self) -> JobQueue:
        await self._producer().store.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<JobQueue {self.module} on {mask_password(self.url)}, {len(self.registry.names())} jobs>"

    def _producer(self) -> Producer:
        """This event loop's; a fork starts with none."""
        loop = asyncio.get_running_loop()
        pid, producer = self._producers.get(loop, (0, None))
        if producer is None or pid != os.getpid():
            producer = Producer(self.store(), give_up_after_s=self._enqueue_timeout_s)
            self._producers[loop] = (os.getpid(), producer)
        if self._backend is not None and not isinstance(self._backend, str):
            producer.store.time_shift_s = self._backend.time_shift_s  # whoever gave it may move its clock
        return producer


def _url_from_environment() -> str:
    """FASTJOBS_URL, else memory. ConfigError, naming the variable, if it is no URL of a store."""
    url = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    try:
        scheme_of(url)
    except ConfigError as error:
        raise ConfigError(f"{URL_VARIABLE}: {error}") from None
    return url


def codec_from_environment() -> CodecName:
    """FASTJOBS_CODEC, else orjson. ConfigError if it names no codec."""
    name = os.environ.get(CODEC_VARIABLE) or "orjson"
    if name not in ("orjson", "msgspec"):
        raise ConfigError(f'{CODEC_VARIABLE}: must be "orjson" or "msgspec", got {name!r}')
    return cast(CodecName, name)


def _check_lifespan(lifespan: object) -> None:
    """ConfigError unless *lifespan* is None or may give an async context manager."""
    if lifespan is None:
        return
    odd = (inspect.isasyncgenfunction, inspect.isgeneratorfunction, inspect.iscoroutinefunction)
    if not callable(lifespan) or any(is_odd(lifespan) for is_odd in odd):
        hint = "decorate it with @contextlib.asynccontextmanager" if inspect.isasyncgenfunction(lifespan) else ""
        raise ConfigError(
            f"JobQueue(lifespan): must be a function that gives an async context manager, got {lifespan!r:.100}"
            + (f"; {hint}" if hint else "")
        )


def _handler_options(where: str, options: Mapping[str, Any]) -> HandlerOptions:
    """HandlerOptions from keywords. ConfigError names an option that does not exist."""
    unknown = options.keys() - HandlerOptions.__dataclass_fields__.keys()
    if unknown:
        known = ", ".join(HandlerOptions.__dataclass_fields__)
        raise ConfigError(f"{where}: no such option: {', '.join(sorted(unknown))}; there are: {known}")
    return HandlerOptions(**options)


def _name_of(job: object) -> str:
    kind = job if isinstance(job, type) else type(job)
    return getattr(kind, "name", "") or kind.__name__
