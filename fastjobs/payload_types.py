"""The table of types that a payload may have, and what each asks of the check at the enqueue.

`examine` walks a type with all it contains. It refuses what cannot be stored before any job exists, which msgspec alone does
not: it takes any class and fails at the first job.
"""

from __future__ import annotations

import collections.abc
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final, TypeAlias

import msgspec
from msgspec import inspect as mi

Hook: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]
"""How values of one type are stored: to a JSON value, and back."""

Hooks: TypeAlias = Mapping[type, Hook]


class NotStorable(Exception):
    """A type that no payload can have. The message says which and what to use instead."""


@dataclass(slots=True)
class Traits:
    """What the check at the enqueue has to do for values of one type."""

    quick: str = ""  #: test of a value `{}` that proves that it arrives as it is; `{p}` stands before builtins; "": none

    exact: bool = True  #: `arrived == sent` proves that nothing changed; otherwise the values are walked
    bounded: bool = True  #: its JSON cannot be nested deeper than the type itself


SCALARS: Final = (
    mi.NoneType,
    mi.BoolType,
    mi.IntType,
    mi.FloatType,
    mi.StrType,
    mi.BytesType,
    mi.ByteArrayType,
    mi.MemoryViewType,
    mi.DateType,
    mi.TimeDeltaType,
    mi.UUIDType,
    mi.EnumType,
    mi.LiteralType,
)
"""Scalars for which equality proves that a value arrived as it was sent."""

WALKED: Final = (mi.DateTimeType, mi.TimeType, mi.DecimalType)
"""Scalars for which it does not: naive times, offsets with seconds and infinite decimals compare equal, a fold does not."""

KEYS: Final = (
    mi.AnyType,
    mi.StrType,
    mi.IntType,
    mi.BytesType,
    mi.DateType,
    mi.DateTimeType,
    mi.TimeDeltaType,
    mi.UUIDType,
    mi.DecimalType,
    mi.EnumType,
    mi.LiteralType,
)
"""What the keys of a dict may be; JSON has only str, and these come back from it. Any stands for str."""

ARRAYS: Final = (mi.ListType, mi.SetType, mi.FrozenSetType, mi.VarTupleType)
CLASSES: Final = (mi.TypedDictType, mi.NamedTupleType, mi.DataclassType, mi.StructType)

INSTEAD: Final[tuple[tuple[type, str], ...]] = (
    (PurePath, "str, or register a codec hook"),
    (collections.abc.Generator, "list"),
    (collections.abc.Iterator, "list"),
    (collections.abc.Iterable, "list, tuple, set or dict"),
    (complex, "a tuple of two floats, or register a codec hook"),
)
OTHERWISE: Final = "a dataclass, a msgspec.Struct or a JSON type, or register a codec hook"


def is_pydantic(cls: object) -> bool:
    """Whether *cls* is a pydantic model, found without importing pydantic."""
    return isinstance(cls, type) and hasattr(cls, "__pydantic_validator__") and hasattr(cls, "model_validate_json")


def type_name(kind: Any) -> str:
    """How people write the type *kind*: `Path`, `list[int]`, `int | None`."""
    if isinstance(kind, str):
        return kind
    if isinstance(kind, type) and not hasattr(kind, "__origin__"):
        return "None" if kind is type(None) else kind.__qualname__.rpartition("<locals>.")[2]
    return inspect.formatannotation(kind).replace("typing.", "")


def examine(kind: Any, hooks: Hooks) -> Traits:
    """What the check has to do for values of type *kind*. NotStorable if a payload cannot have it."""
    try:
        info = mi.type_info(kind)
    except (TypeError, ValueError, NameError, AttributeError, RecursionError) as error:
        reason = str(error).replace("`", "").removesuffix(f" - type {type_name(kind)} is not supported")
        hint = "; use msgspec Structs with tag=True" if "may not contain more than one" in reason else ""
        raise NotStorable(f"{type_name(kind)} cannot be stored: {reason}{hint}") from error
    walk = _Walk(hooks)
    walk.visit(info, "")
    walk.traits.quick = _quick(info)
    return walk.traits


_INT_MAX: Final = 2**63 - 1
"""Of these sizes every codec writes what every codec reads."""

_QUICK: Final[dict[type[mi.Type], str]] = {
    mi.StrType: "{p}type({}) is {p}str",
    mi.IntType: f"{{p}}type({{}}) is {{p}}int and {-_INT_MAX} <= {{}} <= {_INT_MAX}",
    mi.BoolType: "{p}type({}) is {p}bool",
    mi.NoneType: "{} is None",
}


def _quick(info: mi.Type) -> str:
    """The test of `Traits.quick` for *info*: the plain scalars that JSON has, without limits, and unions of them."""
    parts = info.types if isinstance(info, mi.UnionType) else (info,)
    tests = [_QUICK[type(part)] for part in parts if type(part) in _QUICK and part == type(part)()]
    return " or ".join(tests) if len(tests) == len(parts) else ""


class _Walk:
    """One walk over msgspec's description of a type. Descriptions of recursive types contain themselves."""

    def __init__(self, hooks: Hooks) -> None:
        self.hooks = hooks
        self.traits = Traits()
        self._open: set[int] = set()  # classes on the way here: met again, the type is recursive
        self._done: dict[int, mi.Type] = {}  # walked; kept alive so that no id is used twice

    def visit(self, node: mi.Type, where: str) -> None:
        """Walk *node*, which stands at *where* (`Config.path: `) inside the whole type."""
        if isinstance(node, mi.Metadata):
            self.visit(node.type, where)
        elif isinstance(node, SCALARS):
            pass
        elif isinstance(node, WALKED):
            self.traits.exact = False
        elif isinstance(node, mi.AnyType):
            self.traits.bounded = False
        elif isinstance(node, CLASSES):
            self._visit_class(node, where)
        elif isinstance(node, mi.CustomType):
            self._visit_custom(node.cls, where)
        else:
            self._visit_container(node, where)

    def _visit_container(self, node: mi.Type, where: str) -> None:
        if isinstance(node, (mi.SetType, mi.FrozenSetType)):
            self._check_hashable(node.item_type, where)
        if isinstance(node, ARRAYS):
            self.visit(node.item_type, where)
        elif isinstance(node, mi.TupleType):
            self._visit_all(node.item_types, where)
        elif isinstance(node, mi.UnionType):
            self._visit_all(node.types, where)
        elif isinstance(node, mi.DictType):
            self._check_key(node.key_type, where)
            self._visit_all((node.key_type, node.value_type), where)
        else:
            raise NotStorable(f"{where}{type(node).__name__.removesuffix('Type')} cannot be stored as JSON; use {OTHERWISE}")

    def _visit_all(self, nodes: Collection[mi.Type], where: str) -> None:
        for node in nodes:
            self.visit(node, where)

    def _visit_class(self, node: mi.TypedDictType | mi.NamedTupleType | mi.DataclassType | mi.StructType, where: str) -> None:
        if id(node) in self._done:
            self.traits.bounded = self.traits.bounded and id(node) not in self._open
            return
        self._done[id(node)] = node
        self._open.add(id(node))
        cls: Any = getattr(node.cls, "__origin__", node.cls)
        if isinstance(node, mi.DataclassType) and hasattr(cls, "__pydantic_validator__"):
            raise NotStorable(
                f"{where}{type_name(cls)} is a pydantic dataclass, whose validators would not run in the worker; "
                f"use a pydantic BaseModel or a standard dataclass"
            )
        if not _compares_all(node, cls):
            self.traits.exact = False
        for field in node.fields:
            self.visit(field.type, f"{type_name(cls)}.{field.name}: ")
        self._open.discard(id(node))

    def _visit_custom(self, cls: Any, where: str) -> None:
        cls = getattr(cls, "__origin__", cls)
        if cls is object:
            self.traits.bounded = False
        elif cls in self.hooks or is_pydantic(cls):
            self.traits.exact = self.traits.bounded = False
        elif cls is not msgspec.UnsetType:
            instead = next((text for base, text in INSTEAD if isinstance(cls, type) and issubclass(cls, base)), OTHERWISE)
            raise NotStorable(f"{where}{type_name(cls)} cannot be stored as JSON; use {instead}")

    def _check_key(self, node: mi.Type, where: str) -> None:
        if isinstance(node, mi.Metadata):
            self._check_key(node.type, where)
        elif isinstance(node, mi.UnionType):
            for part in node.types:
                self._check_key(part, where)
        elif not isinstance(node, KEYS) or (isinstance(node, mi.LiteralType) and None in node.values):
            raise NotStorable(
                f"{where}{_node_name(node)} cannot be a key in JSON; use str, int, bytes, UUID, Decimal, date, datetime, "
                f"timedelta or an Enum"
            )

    def _check_hashable(self, node: mi.Type, where: str) -> None:
        unhashable = (mi.ListType, mi.DictType, mi.SetType, mi.TypedDictType, mi.ByteArrayType)
        if isinstance(node, mi.Metadata):
            self._check_hashable(node.type, where)
        elif isinstance(node, unhashable) or (isinstance(node, CLASSES) and _origin(node.cls).__hash__ is None):
            raise NotStorable(f"{where}{_node_name(node)} cannot be hashed and so never be in a set; use a list")


def _origin(cls: Any) -> Any:
    return getattr(cls, "__origin__", cls)


def _node_name(node: mi.Type) -> str:
    cls = getattr(node, "cls", None)
    return type_name(_origin(cls)) if cls is not None else type(node).__name__.removesuffix("Type").lower()


def _compares_all(node: mi.Type, cls: Any) -> bool:
    """Whether `==` of two instances of *cls* compares all that is stored of them."""
    if isinstance(node, mi.StructType):
        return bool(cls.__struct_config__.eq)
    if isinstance(node, mi.DataclassType):
        params = getattr(cls, "__dataclass_params__", None)  # None: an attrs class
        return params is not None and params.eq and all(field.compare for field in cls.__dataclass_fields__.values())
    return True
