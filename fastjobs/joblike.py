"""The form of a handler for those who come from rustapi-jobs: a class with a name, a payload type and `execute`."""

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar, get_args, get_origin

from fastjobs.context import JobContext
from fastjobs.errors import ConfigError

Data = TypeVar("Data")


class Job(Generic[Data]):
    """Subclass as ``class Resize(Job[ResizeData])``, set `name`, write `execute`, and give an instance to `register_job`."""

    name: ClassVar[str] = ""

    async def execute(self, ctx: JobContext[Any], data: Data) -> Any:
        """Run the job with its payload *data*."""
        raise NotImplementedError(f"{type(self).__qualname__} must define: async def execute(self, ctx, data)")


def data_type(kind: type[Job[Any]]) -> Any:
    """The payload type in ``class X(Job[Payload])``. ConfigError if the class names none."""
    for parent in kind.__mro__:
        for base in getattr(parent, "__orig_bases__", ()):
            origin = get_origin(base)
            if isinstance(origin, type) and issubclass(origin, Job) and not isinstance(get_args(base)[0], TypeVar):
                return get_args(base)[0]
    raise ConfigError(f"{kind.__qualname__}: say its payload type: class {kind.__name__}(Job[YourData])")
