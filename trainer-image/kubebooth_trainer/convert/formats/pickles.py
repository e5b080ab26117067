"""What a pickle describes, found out by walking its opcodes: nothing is imported or called.

Tensors of torch become descriptions of where their bytes lie; everything else that would take
code becomes `Foreign` and is only named. It must not know archives or files of tensors.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

MAX_OPCODES = 2_000_000
MAX_PICKLE_BYTES = 32 << 20


class BadPickle(Exception):
    """The pickle is broken or beyond the bounds; the message says why, for people."""


@dataclass(frozen=True)
class Name:
    """A global that the pickle names; it is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Storage:
    """A run of values that some record of the file holds."""

    dtype: str
    """As safetensors spells it; `?` where the values are bytes until a tensor tells."""
    key: str
    values: int
    """Number of values, or of bytes while the dtype is `?`."""
    first: int = 0
    """Value of the record at which it begins: old files have views of storages."""
    untyped: bool = False
    """Whether `values` counts bytes though the dtype is known by now."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor over a storage; nothing of it is checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Foreign:
    """What only running code would make; `what` names the global."""

    what: str


@dataclass
class Found:
    """What one pickle describes."""

    value: Any
    foreign: set[str] = field(default_factory=set)
    """Globals that are named besides those of tensors."""
    storages: dict[str, Storage] = field(default_factory=dict)
    """Every storage that is referred to, by its key."""


_STORAGES: Mapping[str, str] = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "Float8_e4m3fnStorage": "F8_E4M3",
    "Float8_e5m2Storage": "F8_E5M2", "UntypedStorage": "?",
}  # fmt: skip
_DTYPES: Mapping[str, str] = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16",
    "half": "F16", "bfloat16": "BF16", "int64": "I64", "long": "I64", "int32": "I32", "int": "I32",
    "int16": "I16", "short": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
}  # fmt: skip
_ORDERED = Name("collections", "OrderedDict")
_SIZE = Name("torch", "Size")
_PARAMETER = {
    Name("torch._utils", "_rebuild_parameter"),
    Name("torch._utils", "_rebuild_parameter_with_state"),
}
_REBUILT = {
    Name("torch._utils", "_rebuild_tensor"),
    Name("torch._utils", "_rebuild_tensor_v2"),
    Name("torch._utils", "_rebuild_tensor_v3"),
}
_TYPED = Name("torch._tensor", "_rebuild_from_type_v2")
_PLAIN = {_ORDERED, _SIZE, _TYPED, *_PARAMETER, *_REBUILT}


class _Mark:
    """Where a group on the stack begins."""


_MARK = _Mark()
_BROKEN = (
    ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
    EOFError, struct.error, AssertionError,
)  # fmt: skip


def interpret(stream: IO[bytes]) -> Found:
    """Walk one pickle from where the stream stands to its end. Raises `BadPickle`."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise BadPickle(f"it has more than {MAX_OPCODES} opcodes")
            if machine.step(opcode.name, argument):
                return Found(machine.stack.pop(), machine.foreign, machine.storages)
    except _BROKEN as error:
        raise BadPickle(f"its opcodes make no sense ({str(error)[:100]})") from error
    raise BadPickle("it has no end")


class _Machine:
    """The stack and memo of a pickle; one method a group of opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.foreign: set[str] = set()
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> bool:
        """Do one opcode; true at the end of the pickle."""
        if name == "STOP":
            return True
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _PUTS:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self.memo[argument])
        elif name not in {"PROTO", "FRAME"}:
            action = _ACTIONS.get(name)
            if action is None:
                raise BadPickle(f"it uses the opcode {name}, which no checkpoint needs")
            action(self, argument)
        return False

    def marked(self) -> list[Any]:
        """Take the group after the last mark off the stack."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("a mark is missing")
        group = self.stack[at + 1 :]
        del self.stack[at:]
        return group

    def group(self, count: int) -> tuple[Any, ...]:
        """Take so many values off the stack."""
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        group = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return group

    def named(self, module: Any, name: Any) -> Name:
        """A global; it is remembered when it is none of those that tensors need."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise BadPickle("it computes the name of a global")
        found = Name(module[:200], name[:200])
        storage = module == "torch" and name in _STORAGES
        dtype = module == "torch" and name in _DTYPES
        typed = module == "torch.storage" and name in {"UntypedStorage", "TypedStorage"}
        if not (found in _PLAIN or storage or dtype or typed):
            self.foreign.add(str(found))
        return found

    def called(self, function: Any, arguments: Any) -> Any:
        """What a call would make: known calls of torch are described, others only named."""
        if isinstance(function, Foreign):
            return Foreign(function.what)
        if not isinstance(function, Name):
            return Foreign("a computed function")
        if function == _ORDERED:
            return {}
        if not isinstance(arguments, tuple):
            return Foreign(str(function))
        if function == _SIZE:
            return tuple(arguments[0])
        if function in _PARAMETER:
            return arguments[0]
        if function == _TYPED:
            return self.called(arguments[0], arguments[2])
        if function in _REBUILT:
            return _tensor(function, arguments)
        return Foreign(str(function))

    def persistent(self, pid: Any) -> Any:
        """A storage, from its persistent id."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage":
            raise BadPickle("it refers to something outside that is no storage")
        kind, key, values = pid[1], pid[2], pid[4]
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Name) else None
        if dtype is None or not isinstance(key, str) or type(values) is not int or values < 0:
            raise BadPickle(f"it refers to a storage of the kind {str(kind)[:60]!r}")
        known = self.storages.setdefault(key, Storage(dtype, key, values))
        if (known.dtype, known.values) != (dtype, values):
            raise BadPickle(f"it describes the storage {key[:40]!r} in two ways")
        view = pid[5] if len(pid) > 5 else None
        if view is None:
            return known
        _, first, length = view
        if type(first) is not int or type(length) is not int or not 0 <= first <= values - length:
            raise BadPickle(f"a view reaches out of the storage {key[:40]!r}")
        return Storage(dtype, key, length, first)


def _tensor(function: Name, arguments: tuple[Any, ...]) -> StoredTensor:
    storage, offset, shape, strides = arguments[:4]
    if function.name.endswith("_v3"):
        dtype = _DTYPES.get(arguments[6].name) if isinstance(arguments[6], Name) else None
        untyped = storage.dtype == "?"
        storage = Storage(dtype or "", storage.key, storage.values, storage.first, untyped)
    if not isinstance(storage, Storage) or not storage.dtype:
        raise BadPickle("a tensor has no storage or an unknown dtype")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise BadPickle("a tensor has no valid shape")
    if len(shape) > 16:
        raise BadPickle("a tensor has more than 16 dimensions")
    return StoredTensor(storage, offset, tuple(shape), tuple(strides))


def _key(value: Any) -> str:
    """Keys are text from here on, so that no hostile numbers can make a table slow."""
    return value if isinstance(value, str) else f"<{type(value).__name__}> {str(value)[:60]}"


def _set_items(target: Any, items: list[Any]) -> None:
    if isinstance(target, dict):
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value


def _append(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _pairs(items: list[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    _set_items(made, items)
    return made


def _object(machine: _Machine) -> None:
    group = machine.marked()
    machine.stack.append(machine.called(group[0], tuple(group[1:])))


def _inst(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(machine.called(machine.named(module, name), tuple(machine.marked())))


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")
    machine.stack.append(machine.named(module, name))


def _with_two(action: Callable[[_Machine, Any, Any], Any]) -> Callable[[_Machine, Any], None]:
    """An opcode that replaces two values by one."""

    def act(machine: _Machine, _: Any) -> None:
        first, second = machine.group(2)
        machine.stack.append(action(machine, first, second))

    return act


def _with_group(action: Callable[[list[Any]], Any]) -> Callable[[_Machine, Any], None]:
    """An opcode that replaces the group after the last mark by one value."""
    return lambda machine, _: machine.stack.append(action(machine.marked()))


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(machine.group(count))


def _onto_last(action: Callable[[Any, list[Any]], None]) -> Callable[[_Machine, Any], None]:
    """An opcode that adds the group after the last mark to the value before it."""

    def act(machine: _Machine, _: Any) -> None:
        items = machine.marked()
        action(machine.stack[-1], items)

    return act


def _onto_last_of(
    count: int, action: Callable[[Any, list[Any]], None]
) -> Callable[[_Machine, Any], None]:
    def act(machine: _Machine, _: Any) -> None:
        items = machine.group(count)
        action(machine.stack[-1], list(items))

    return act


_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": lambda: Foreign("set"),
    "MARK": lambda: _MARK,
}  # fmt: skip
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_ACTIONS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "POP": lambda machine, _: machine.group(1),
    "POP_MARK": lambda machine, _: machine.marked(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    "LIST": _with_group(list),
    "TUPLE": _with_group(tuple),
    "DICT": _with_group(_pairs),
    "FROZENSET": _with_group(lambda _: Foreign("frozenset")),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _onto_last_of(1, _append),
    "APPENDS": _onto_last(_append),
    "ADDITEMS": _onto_last(lambda _target, _items: None),
    "SETITEM": _onto_last_of(2, _set_items),
    "SETITEMS": _onto_last(_set_items),
    "GLOBAL": _global,
    "STACK_GLOBAL": _with_two(lambda machine, module, name: machine.named(module, name)),
    "REDUCE": _with_two(lambda machine, function, arguments: machine.called(function, arguments)),
    "NEWOBJ": _with_two(lambda machine, kind, arguments: machine.called(kind, arguments)),
    "NEWOBJ_EX": lambda machine, _: machine.stack.append(machine.called(*machine.group(3)[:2])),
    "BUILD": _with_two(lambda _machine, made, _state: made),
    "OBJ": lambda machine, _: _object(machine),
    "INST": _inst,
    "BINPERSID": lambda machine, _: machine.stack.append(machine.persistent(*machine.group(1))),
}
