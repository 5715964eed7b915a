"""Interprets the pickles that `torch.save` writes, without executing them.

A pickle is a program. `pickle.Unpickler` with a restricted `find_class` keeps it from calling arbitrary functions, but
not from filling the memory with nine bytes (a huge memo index) or from hashing nested tuples forever. So `pickletools`
splits the stream here, and `load` supports only the operations that build numbers, strings, tuples, lists, dicts and
descriptions of tensors. Everything else is refused by name.
"""

import pickletools
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

MAX_OPERATIONS = 1_000_000  # ResNet-101 with the state of its optimizer takes less than 100,000
MAX_NUMBER = 2**63  # sizes and strides are below
MAX_AXES = 32

# Storage class of torch -> NumPy type of an element in the file. A bfloat16 is read as an integer of its bits, a bool
# as a byte, since only 0 and 1 are safe in a NumPy bool.
STORAGES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
}
FUNCTIONS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",  # before PyTorch 0.4
    "torch._utils._rebuild_tensor_v2",
}


class Storage(NamedTuple):
    """A sequence of numbers in the file.

    Attributes:
        type_name: one of `STORAGES`.
        key: its name in the file.
        size: how many numbers it holds.
    """

    type_name: str
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage, as the file declares it; it may reach beyond the storage.

    Attributes:
        storage: the storage with its numbers.
        offset: index of its first number in the storage.
        size: its shape.
        stride: the step from one number to the next along each axis, in numbers.
    """

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


class _Global(NamedTuple):
    """The name of a class or function that the pickle refers to, never the class or function itself."""

    name: str


def load(stream: BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Interprets one pickle of plain values and tensors, and leaves the stream after its end.

    Args:
        stream: an io.BytesIO, so that no declared length can claim more memory than the file has.
        storages: if given, receives every storage that the pickle refers to, by key.

    Returns:
        The object; tensors are of class `Tensor`.

    Raises:
        ValueError: the pickle uses an operation, class or function that no state dict needs.
        Exception: anything that a damaged pickle leads to, such as an IndexError from an empty stack.
    """
    stack = []
    marks = []  # lengths of the stack at every open MARK
    memo = {}

    def pop_to_mark() -> list:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > MAX_OPERATIONS:
            raise ValueError(f"its pickle has more than {MAX_OPERATIONS} operations")
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case "NONE":
                stack.append(None)
            case "NEWTRUE":
                stack.append(True)
            case "NEWFALSE":
                stack.append(False)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                length = int(opcode.name[-1])
                values = tuple(stack[-length:])
                del stack[-length:]
                stack.append(values)
            case "TUPLE":
                stack.append(tuple(pop_to_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                value = stack.pop()
                _expect(stack[-1], list).append(value)
            case "APPENDS":
                values = pop_to_mark()
                _expect(stack[-1], list).extend(values)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [(key, value)])
            case "SETITEMS":
                values = pop_to_mark()
                _set_items(stack[-1], zip(values[::2], values[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_find_global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
                stack.append(_find_global(f"{module}.{name}"))
            case "BINPERSID":
                storage = _find_storage(_expect(stack.pop(), tuple))
                if storages is not None and storages.setdefault(storage.key, storage) != storage:
                    raise ValueError(f"storage {storage.key!r:.40} is declared twice, and differently")
                stack.append(storage)
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(_expect(function, _Global).name, _expect(arguments, tuple)))
            case "BUILD":
                stack.pop()  # the attributes of an OrderedDict: the _metadata of a state dict, versions of its layers
                _expect(stack[-1], dict)
            case other:
                raise ValueError(f"its pickle uses {other} {argument!r:.60}, which no state dict needs")
    raise ValueError("its pickle is truncated")


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _set_items(mapping: Any, items: Iterable[tuple[Any, Any]]) -> None:
    for key, value in items:
        # Only keys that hash quickly: a tuple of tuples of tuples may take forever.
        if not isinstance(key, str | int | float | None):
            raise ValueError(f"its pickle has a dict with a {type(key).__name__} as a key")
        _expect(mapping, dict)[key] = value


def _find_global(name: str) -> _Global:
    if name not in FUNCTIONS and name not in STORAGES:
        raise ValueError(f"it refers to {name!r:.100}; only tensors in plain dicts are read, nothing is executed")
    return _Global(name)


def _find_storage(description: tuple) -> Storage:
    """Checks the persistent id of a storage: ("storage", class, key, device, size[, part of another storage])."""
    match description:
        case ("storage", _Global(name), str(key), _, int(size)) | (
            "storage", _Global(name), str(key), _, int(size), None
        ) if name in STORAGES and 0 <= size < MAX_NUMBER:  # fmt: skip
            return Storage(name, key, size)
    raise ValueError("it refers to a storage in a way that is not understood")


def _call(name: str, arguments: tuple) -> Any:
    """Returns the result of a function of torch, on plain values."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "collections.OrderedDict", (list(pairs),):
            result = {}
            _set_items(result, ((key, value) for key, value in pairs))
            pairs.clear()  # a list that is converted a million times would take forever
            return result
        case "torch.Size", (tuple(size),):
            return size
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, *_):
            return tensor
        case (
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
            (Storage() as storage, int(offset), tuple(size), tuple(stride), *_),
        ) if len(size) == len(stride) <= MAX_AXES and all(
            isinstance(n, int) and 0 <= n < MAX_NUMBER for n in (offset, *size, *stride)
        ):
            return Tensor(storage, offset, size, stride)
    raise ValueError(f"it calls {name} with impossible arguments")
