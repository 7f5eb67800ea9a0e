"""Pickles read as data: no module is imported, no class is looked up, nothing of the file is called.

A pickle is a program for a stack machine, and the machine of the module pickle can be made to call
anything. This one is another machine: of the opcodes it has those that protocols 2 to 5 write, a
global is a name and no object, and a call of it is recorded in an `Opaque`, unless the name is among
the few functions of our own that the caller gives.

What is unknown becomes an `Opaque` and is not refused: an `Opaque` can do as little as a string, and
the checkpoints that people have hold members of enums, devices and random states which nobody needs.

Opcodes are split by pickletools.genops, which checks every length against the bytes that are there.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field

# Two thousand tensors with their names take 0.3 MB and 60,000 opcodes.
MOST_BYTES, _MOST_OPCODES = 8 * 2**20, 2_000_000
_LONGEST_NAME, _MOST_ARGUMENTS = 500, 10

_VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}


@dataclass(eq=False)  # compared and hashed as itself: what it holds may be deep, or hold itself
class Opaque:
    """A global of a pickle, or what a call of one would have made.

    function: the global's name ("torch.float16"), or the Opaque that was called.
    args: of the call; None for a global itself.
    state: what would have become its __dict__, or gone to __setstate__.
    items: what would have been appended to it, or set in it as pairs (key, value).
    """

    function: "str | Opaque"
    args: tuple | None = None
    state: object = None
    items: list = field(default_factory=list)

    def __repr__(self) -> str:
        name = self.function if isinstance(self.function, str) else "(...)"
        if self.args is None:
            return name
        return f"{name}({', '.join(map(_short, self.args[:_MOST_ARGUMENTS]))})"


def _short(value: object) -> str:
    """One level only, and not much of it: what is nested can be endless."""
    if isinstance(value, str | bytes):
        return repr(value[:100])
    if value is None or isinstance(value, int | float):
        return repr(value)
    return repr(value) if isinstance(value, Opaque) and value.args is None else "..."


def load(data: bytes, functions: dict[str, Callable], persistent: Callable) -> object:
    """What a pickle describes: None, numbers, str, bytes, tuples, lists, dicts, sets, and `Opaque`s.

    Lists and dicts may hold themselves; whoever walks through them has to count the steps.

    Args:
      functions: what is called in place of the globals of these names.
      persistent: from a persistent id, a tuple, to the object.

    Raises:
      ValueError: damaged, larger than any checkpoint's, opcodes that pickle no longer writes, or
        what `functions` and `persistent` raise.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"a pickle of {len(data)} bytes is larger than any checkpoint's")
    machine, reached = _Machine(functions, persistent), "its begin"
    try:
        for number, (opcode, arg, at) in enumerate(pickletools.genops(data)):
            reached = f"byte {at} ({opcode.name})"
            if number == _MOST_OPCODES:
                raise ValueError(f"more than {number} opcodes are no checkpoint's")
            machine.step(opcode.name, arg)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        # Each can come of a wrong file: an empty stack, an unknown memo, an argument of no sense.
        raise ValueError(f"the pickle cannot be read on from {reached}: {error}") from error
    if not machine.stack:
        raise ValueError("an empty pickle")
    return machine.stack[-1]


class _Machine:
    """The stack, the positions of the marks in it, and the memo."""

    def __init__(self, functions: dict[str, Callable], persistent: Callable):
        self.stack, self._marks, self._memo = [], [], {}
        self._functions, self._persistent = functions, persistent

    def step(self, opcode: str, arg: object):
        stack, pop = self.stack, self.stack.pop
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case "POP":
                pop()
            case "POP_MARK":
                self._marked()
            case "BINPUT" | "LONG_BINPUT":
                self._memo[arg] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[arg])
            case "TUPLE":
                stack.append(tuple(self._marked()))
            case "APPEND":
                _extend(stack[-2], [pop()])
            case "APPENDS":
                items = self._marked()
                _extend(stack[-1], items)
            case "SETITEM":
                value, key = pop(), pop()
                _set(stack[-1], [key, value])
            case "SETITEMS":
                items = self._marked()
                _set(stack[-1], items)
            case "ADDITEMS":
                items = self._marked()
                _extend(stack[-1], items, set)
            case "FROZENSET":
                stack.append(frozenset(map(_key, self._marked())))
            case "GLOBAL":
                stack.append(_global(*arg.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = pop(), pop()
                stack.append(_global(module, name))
            case "REDUCE" | "NEWOBJ":
                args, function = pop(), pop()
                stack.append(call(self._functions, function, args))
            case "NEWOBJ_EX":
                named, args, function = pop(), pop(), pop()
                stack.append(call({}, function, (args, named)))
            case "BUILD":
                state = pop()
                _build(stack[-1], state)
            case "BINPERSID":
                stack.append(self._persistent(pop()))
            case _ if opcode in _LITERALS:
                if isinstance(arg, str):
                    arg.encode()  # refuses halves of surrogate pairs, which cannot be printed
                stack.append(arg)
            case _ if opcode in _VALUES:
                stack.append(_VALUES[opcode])
            case _ if opcode in _EMPTY:
                stack.append(_EMPTY[opcode]())
            case _ if opcode in _TUPLES:
                items = [pop() for _ in range(_TUPLES[opcode])]
                stack.append(tuple(items[::-1]))
            case _:
                raise ValueError("an opcode that torch does not write")

    def _marked(self) -> list:
        """Takes what is above the last mark off the stack."""
        mark = self._marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items


def call(functions: dict[str, Callable], function: object, args: object) -> object:
    """What one of `functions` gives for a global of its name; of any other, a record of the call."""
    if not isinstance(function, Opaque) or not isinstance(args, tuple):
        raise ValueError(f"a {type(function).__name__} is called with a {type(args).__name__}")
    ours = functions.get(function.function) if function.args is None else None
    if ours is None:
        return Opaque(function.function if function.args is None else function, args)
    if len(args) > _MOST_ARGUMENTS:
        raise ValueError(f"{function} is called with {len(args)} arguments")
    return ours(*args)


def _global(module: object, name: object) -> Opaque:
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("the name of a global is no text")
    if len(module) + len(name) > _LONGEST_NAME:
        raise ValueError(f"the name of a global has {len(module) + len(name)} characters")
    if not (module + name).isprintable():  # it ends up in messages
        raise ValueError(f"the name of a global is {name[:99]!r} of {module[:99]!r}")
    return Opaque(f"{module}.{name}")


def _key(value: object) -> object:
    """A key of a dict, if hashing it is safe.

    A tuple in a tuple in a tuple ... is hashed by recursion in C, which ends the process; and of
    longer integers or of tuples many can be made with the same hash, which takes hours.
    """
    if isinstance(value, int) and abs(value) >= 2**60:
        raise ValueError("a key of a dictionary is a number of more than 60 bits")
    if value is not None and not isinstance(value, str | bytes | int | float | Opaque):
        raise ValueError(f"a key of a dictionary is a {type(value).__name__}")
    return value


def _extend(target: object, items: list, kind: type = list):
    if isinstance(target, Opaque):
        target.items.extend(items)
    elif not isinstance(target, kind):
        raise ValueError(f"items are added to a {type(target).__name__}")
    elif kind is set:
        target.update(map(_key, items))
    else:
        target.extend(items)


def _set(target: object, items: list):
    if not isinstance(target, dict | Opaque) or len(items) % 2:
        raise ValueError(f"{len(items)} keys and values are set in a {type(target).__name__}")
    pairs = zip(items[::2], items[1::2])
    if isinstance(target, dict):
        target.update((_key(key), value) for key, value in pairs)
    else:
        target.items.extend(pairs)


def _build(target: object, state: object):
    """An OrderedDict's state is dropped: in torch's it is notes on versions of modules."""
    if isinstance(target, Opaque):
        target.state = state
    elif not isinstance(target, dict):
        raise ValueError(f"a {type(target).__name__} is given a state")
