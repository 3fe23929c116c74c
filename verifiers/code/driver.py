"""What runs in the candidate's process: defines the candidate's functions, then answers one question at a time.

The parent sends this file's code object over the pipe, so nothing of it need be visible in the sandbox, and
it imports nothing that Python has not loaded already: half the cost of a check is the start of a process.
Nothing here is trusted. The candidate shares this process and may rewrite all of it, and then it can claim
any *value* it likes; it is never told which value is wanted, and says nothing about the verdict.

A message is four bytes of length and a body. To here, marshalled: (nonce, source, variables, want).
From here, JSON: [nonce, kind, payload, variables], with values as values.py reads them.
"""

# ruff: noqa: UP031 - one style of formatting for all of it
import builtins
import marshal
import posix
import sys

LIMIT = 4 << 20  # bytes of one answer
MAX_DEPTH = 100
MAX_ITERATED = 1_000_000

_type, _len, _str, _int, _bool, _list = type, len, str, int, bool, list
_isinstance, _issubclass, _repr, _bytes, _exception = isinstance, issubclass, repr, bytes, BaseException


class Unplain(Exception):
    """The value is not plain data."""


def _escape(text):
    """`text` as a JSON string, ASCII only."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return '"' + text + '"'
    out = []
    for character in text:
        code = ord(character)
        if character in '"\\':
            out.append("\\" + character)
        elif 32 <= code < 127:
            out.append(character)
        elif code < 0x10000:
            out.append(f"\\u{code:04x}")
        else:
            code -= 0x10000
            out.append(f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}")
    return '"' + "".join(out) + '"'


def _scalar_number(value):
    """A numpy scalar as what it holds; other values as they are."""
    kind = _type(value)
    if kind.__module__ == "numpy" and _type(kind.__mro__) is tuple:
        numpy = sys.modules.get("numpy")
        if numpy is not None and _isinstance(value, numpy.generic):
            return value.item()
    return value


class Writer:
    """One value as JSON text, at most LIMIT bytes of it."""

    def __init__(self):
        self.left = LIMIT

    def _spend(self, text):
        self.left -= _len(text)
        if self.left < 0:
            raise Unplain("more than %d bytes" % LIMIT)
        return text

    def write(self, value, depth=0):
        kind = _type(value)
        if value is None or value is True or value is False:
            return self._spend("null" if value is None else "true" if value else "false")
        if kind is _str:
            return self._spend(_escape(value))
        if kind is _int:
            return self._int(value)
        if kind is float:
            return self._float(value)
        if depth > MAX_DEPTH:
            raise Unplain("nested deeper than %d" % MAX_DEPTH)
        return self._container(value, kind, depth + 1)

    def _int(self, value):
        if -(10**15) < value < 10**15:
            return self._spend(_repr(value))
        return self._spend(f'["i","{value:x}"]' if value >= 0 else '["i","-%x"]' % -value)

    def _float(self, value):
        if value != value or value in (float("inf"), float("-inf")):
            return self._spend(f'["n","{value!r}"]')
        return self._spend(_repr(value))

    def _many(self, tag, values, depth):
        parts = ['["' + tag + '"']
        for value in values:
            parts.append(self.write(value, depth))
            self.left -= 1
        return ",".join(parts) + "]"

    def _container(self, value, kind, depth):
        if kind is _list:
            return self._many("l", value, depth)
        if kind is tuple:
            return self._many("t", value, depth)
        if kind is dict:
            return self._many("d", [part for item in value.items() for part in item], depth)
        if kind is set:
            return self._many("s", value, depth)
        if kind is frozenset:
            return self._many("f", value, depth)
        if kind is complex:
            return '["c",' + self._float(value.real) + "," + self._float(value.imag) + "]"
        if kind is _bytes:
            return self._spend('["b","' + value.hex() + '"]')
        if kind is bytearray:
            return self._spend('["y","' + value.hex() + '"]')
        if kind is range:
            return self._many("r", (value.start, value.stop, value.step), depth)
        return self.write(self._reduced(value, kind), depth)

    def _reduced(self, value, kind):
        """What a subclass of a built-in type holds, by that type's own methods; a numpy scalar's number."""
        number = _scalar_number(value)
        if number is not value:
            return number
        for base, reduce in (
            (_str, lambda v: _str.__str__(v)),
            (_int, lambda v: _int.__add__(v, 0)),
            (float, lambda v: float.__add__(v, 0.0)),
            (tuple, lambda v: (*tuple.__iter__(v),)),
            (_list, lambda v: [*_list.__iter__(v)]),
            (dict, lambda v: {k: dict.__getitem__(v, k) for k in dict.__iter__(v)}),
            (set, lambda v: {*set.__iter__(v)}),
            (frozenset, lambda v: frozenset([*frozenset.__iter__(v)])),
        ):
            if _issubclass(kind, base):
                reduced = reduce(value)
                if _type(reduced) is base:
                    return reduced
        raise Unplain(f"a value of type {_str(kind.__name__)[:80]}, which is no plain data")


def _materialised(value):
    """An iterable that is no plain data (a generator, a view, an array) as a list of bounded length."""
    if _isinstance(value, (_str, _bytes, bytearray, _list, tuple, dict, set, frozenset, range)):
        return value
    numpy = sys.modules.get("numpy")
    if _type(value).__module__ == "numpy" and _isinstance(value, getattr(numpy, "ndarray", ())):
        return value.tolist()
    try:
        iterator = iter(value)
    except TypeError:
        return value
    found = []
    for member in iterator:
        found.append(member)
        if _len(found) > MAX_ITERATED:
            raise Unplain("an iterable of more than %d members" % MAX_ITERATED)
    return found


def answer(namespace, source, variables, want):
    """(kind, payload) for one question: "v" a value, "o" one that is not plain, "x" an exception."""
    try:
        for name, held in variables.items():
            namespace[name] = held
        if want == "exec":
            exec(compile(source, "<candidate>", "exec", dont_inherit=True), namespace)
            return '"v"', "null"
        if want == "call":
            function, arguments, named = source
            value = _function(namespace, function)(*arguments, **named)
        else:
            value = eval(compile(source, "<test>", "eval", dont_inherit=True), namespace)
        if want == "iterable":
            value = _materialised(value)
        try:
            return '"v"', Writer().write(value)
        except Unplain:
            if want != "truth":
                raise
            return '"v"', "true" if value else "false"
    except Unplain as fault:
        return '"o"', _escape(_str(fault))
    except _exception as fault:
        return '"x"', _described(fault)


def _function(namespace, name):
    """The function called `name`: a plain one, or a method of the class Solution."""
    if name in namespace:
        return namespace[name]
    solution = namespace.get("Solution")
    if solution is not None:
        return getattr(solution(), name)
    raise NameError(f"name {name!r} is not defined")


def _described(fault):
    """The names of an exception's classes, from its own up, and its message."""
    try:
        names = [_str(kind.__name__)[:80] for kind in _type(fault).__mro__ if kind is not object]
        text = _str(fault)[:300]
    except _exception:
        names, text = ["BaseException"], ""
    return "[[" + ",".join(_escape(name) for name in names) + "]," + _escape(text) + "]"


def _changed(namespace, variables):
    """The variables that were handed in, as they are now: a function may have changed a list of the test's."""
    parts = []
    for name in variables:
        try:
            parts.append(_escape(name) + ":" + Writer().write(namespace.get(name)))
        except Unplain:
            continue
    return "{" + ",".join(parts) + "}"


def _read_exactly(fd, size):
    data = b""
    while _len(data) < size:
        part = posix.read(fd, size - _len(data))
        if not part:
            posix._exit(0)
        data += part
    return data


def receive(fd):
    """The next message; the end of the pipe ends the process."""
    return marshal.loads(_read_exactly(fd, _int.from_bytes(_read_exactly(fd, 4), "big")))


def send(fd, text):
    body = text.encode("ascii")
    data = _len(body).to_bytes(4, "big") + body
    while data:
        data = data[posix.write(fd, data) :]


def serve(source_fd, reply_fd):
    """Answer questions until the pipe ends."""
    module = _type(sys)("candidate")
    sys.modules["candidate"] = module
    namespace = module.__dict__
    vars(builtins).update(
        exit=sys.exit, quit=sys.exit
    )  # as the site module, which is left out, would have them
    send(reply_fd, '["hello"]')
    while True:
        nonce, source, variables, want = receive(source_fd)
        kind, payload = answer(namespace, source, variables, want)
        try:
            changed = _changed(namespace, variables)
        except _exception:
            changed = "{}"
        send(reply_fd, "[" + _escape(nonce) + "," + kind + "," + payload + "," + changed + "]")


def channel():
    """The pipe's two ends, moved away from the standard streams, which code may print to and read from."""
    source_fd, reply_fd = posix.dup(0), posix.dup(1)
    null = posix.open("/dev/null", posix.O_RDWR)
    for stream in (0, 1, 2):
        posix.dup2(null, stream)
    return source_fd, reply_fd


def start():
    serve(*channel())
