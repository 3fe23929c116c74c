"""What runs in the checker's process: a test as its author wrote it, whose calls of the candidate are passed on.

This process holds the wanted values and shares nothing with the candidate's: a call goes to the parent as
plain data, the parent puts it to the candidate's process, and the answer comes back as plain data.
It is shut in like the candidate, since a data set's tests are nobody's trusted code either.

From here: ["call", function, arguments, named arguments] or ["done", outcome, text]. To here, marshalled:
the work, then for each call (kind, value, arguments as the call left them).
"""

import builtins
import sys

from verifiers.code.driver import Unplain, Writer, _escape, channel, receive, send


class NotSendable(BaseException):
    """An argument is no plain data, so the call cannot leave this process."""


def _proxy(name, in_place, source_fd, reply_fd, answered):
    def candidate(*arguments, **named):
        try:
            text = f"{Writer().write(list(arguments))},{Writer().write(named)}"
        except Unplain as fault:
            # A value's type is of the test's choosing; its size and depth may be of the program's, once it answered
            if not answered or " of type " in str(fault):
                raise NotSendable(str(fault)) from None
            raise AssertionError(f"called with a value that is {fault}") from None
        send(reply_fd, f'["call",{_escape(name)},{text}]')
        kind, value, changed = receive(source_fd)
        answered.add(name)
        for ours, theirs in zip(arguments, changed, strict=True) if in_place else ():
            _take_over(ours, theirs)
        if kind == "raise":
            raise _exception(*value)
        return value

    candidate.__name__ = candidate.__qualname__ = name
    return candidate


def _take_over(ours, theirs):
    """What the candidate did to an argument is done to the test's own."""
    if type(ours) is list and type(theirs) is list:
        ours[:] = theirs
    elif (type(ours) is dict and type(theirs) is dict) or (type(ours) is set and type(theirs) is set):
        ours.clear()
        ours.update(theirs)


def _exception(names, text):
    """The built-in exception nearest to what the candidate raised."""
    for name in names:
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            if issubclass(kind, (StopIteration, StopAsyncIteration)):
                break  # it would end a loop over map(f, ...) as if there were no more to check
            try:
                return kind(text)
            except TypeError:  # one that wants more arguments
                continue
    return RuntimeError(text)


# What numpy says of nothing and something: that they agree, as there is nothing to differ
_AGREEING = ("allclose", "isclose")
_ASSERTING = ("assert_allclose", "assert_array_equal", "assert_almost_equal", "assert_array_almost_equal", "assert_equal")  # fmt: skip


def _make_numpy_strict():
    """An empty answer is close to nothing but an empty one."""
    try:
        import numpy
        import numpy.testing
    except ImportError:
        return

    def strict(function):
        def compared(*values, **named):
            sides = [*values, *named.values()][:2]
            if len({numpy.size(side) == 0 for side in sides}) == 2:
                raise AssertionError("something is compared with nothing")
            return function(*values, **named)

        return compared

    for module, names in ((numpy, _AGREEING), (numpy.testing, _ASSERTING)):
        for name in names:
            setattr(module, name, strict(getattr(module, name)))


def _outcome(work, source_fd, reply_fd):
    module = type(sys)("test")
    sys.modules["test"] = module
    namespace = module.__dict__
    answered: set[str] = set()
    if "random" in work["source"]:
        import random

        random.seed(0)  # the same candidate is given the same inputs every time
    if "numpy" in work["source"] or "numpy" in work["setup"]:
        _make_numpy_strict()
    try:
        exec(compile(work["setup"], "<setup>", "exec", dont_inherit=True), namespace)
        proxies = {
            name: _proxy(name, work["in_place"], source_fd, reply_fd, answered) for name in work["proxies"]
        }
        namespace.update(proxies)
        code = compile(work["source"], "<test>", "exec", dont_inherit=True)
        exec(code, namespace)
        if work["check"]:
            namespace.update(proxies)
            namespace[work["check"]](proxies[work["proxies"][0]])
    except NotSendable as fault:
        return "unsendable", str(fault)
    except AssertionError as fault:
        return "fails", str(fault)[:200]
    except BaseException as fault:
        return "raises", f"{type(fault).__name__}: {str(fault)[:200]}"
    return "passes", ""


def start():
    source_fd, reply_fd = channel()
    send(reply_fd, '["hello"]')
    outcome, text = _outcome(receive(source_fd), source_fd, reply_fd)
    send(reply_fd, f'["done",{_escape(outcome)},{_escape(text)}]')
