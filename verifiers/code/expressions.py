"""A test's expressions, taken apart: what the candidate is asked, and what is computed from its answers here.

`sorted(f([3, 1])) == [1, 3]` becomes: ask the candidate's process for `f([3, 1])`, sort the answer here,
compare here with [1, 3]. The candidate's process is sent the call and never the wanted value.

An expression is the candidate's when it begins with a name that is neither a built-in function, nor a module,
nor a variable of the test. What this cannot take apart raises Unsupported when the reference is read, not
when a candidate is judged.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Callable, Iterator
from typing import Any

from verifiers.code import functions
from verifiers.code.functions import BINARY, COMPARE, FUNCTIONS, METHODS, MODULES, TYPES, UNARY
from verifiers.code.names import Expression, Names, Run, State, Unsupported

PREFIX = "_test_"  # of a test's variables in the candidate's process, which must not shadow its own names


class _Renamed(ast.NodeTransformer):
    """Every variable of the test under its name in the candidate's process."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(PREFIX + node.id, node.ctx) if node.id in self.names else node


class Compiler:
    """Turns expressions into functions of a State. Raises Unsupported."""

    def __init__(self, names: Names) -> None:
        self.names = names

    # ------------------------------------------------------------ what the candidate is asked

    def source(self, node: ast.AST) -> tuple[str, list[str]]:
        """The source to send for `node`, and the variables of ours that go with it."""
        used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        bound = {part.arg for part in ast.walk(node) if isinstance(part, ast.arg)}
        bound |= {p.id for p in ast.walk(node) if isinstance(p, ast.Name) and isinstance(p.ctx, ast.Store)}
        if self.names.only is not None:
            known = self.names.only | self.names.ours | self.names.theirs | sys.stdlib_module_names
            known |= bound
            if any(name not in known and not hasattr(builtins, name) for name in used):
                raise Unsupported("another function than the candidate's")
        ours = used & self.names.ours
        renamed = ours | (used & self.names.theirs)
        if not renamed:
            return ast.unparse(node), []
        if bound & renamed:
            raise Unsupported("a name bound twice")
        copy = ast.parse(ast.unparse(node), mode="eval").body
        return ast.unparse(_Renamed(renamed).visit(copy)), sorted(ours)

    def asked(self, node: ast.expr, want: str, in_place: bool = False) -> Expression:
        """Ask for `node`. `in_place`: what the call did to the variables that it was given is kept.

        Only a call that stands alone (`sort(x)`) is taken to work in place: in `assert f(x) == sum(x)` the
        candidate could otherwise change what it is compared with.
        """
        root = self.names.root(node)
        if root in self.names.helpers and any(
            self.names.root(part) not in (None, root) for part in ast.walk(node) if isinstance(part, ast.Call)
        ):
            raise Unsupported(f"{root} is the test's own function")
        source, used = self.source(node)

        def run(state: State) -> Any:
            variables = {PREFIX + name: state.variables[name] for name in used}
            value = state.ask(source, variables, want)
            for name in used if in_place else ():
                if type(state.variables[name]) in (list, dict, set, bytearray):
                    state.variables[name] = variables[PREFIX + name]
            return value

        return Expression(run, True, self._vouches(node, want))

    def _vouches(self, node: ast.expr, want: str) -> bool:
        """Whether the candidate is asked to confirm an answer of its own, perhaps with the wanted one beside it:
        `assert same(f(x), 5)` where it defines `same`, `f(x).equals(5)`.
        """
        if not isinstance(node, ast.Call) or not node.args:
            return False
        inner = [part for argument in node.args for part in ast.walk(argument) if isinstance(part, ast.Call)]
        if want == "truth" and any(self.names.root(part) is not None for part in inner):
            return True
        return (
            isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Call)
            and not self.is_object(node.func.value)
        )

    def is_object(self, node: ast.expr) -> bool:
        """Whether this is likely an object of the candidate's own class, or a variable kept with it."""
        if isinstance(node, ast.Name):
            return self.names.root(node) is not None
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return any(self.is_object(part) for part in node.elts)
        return (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and self.names.root(node) is not None
            and node.func.id[:1].isupper()
            and not node.func.id.isupper()
        )

    # ------------------------------------------------------------ truth

    def truth(self, node: ast.expr) -> Expression:
        """An expression of which only the truth matters: the candidate may answer with any object."""
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            inner = self.truth(node.operand)
            return Expression(lambda state: not inner.run(state), inner.asks, inner.weak)
        if isinstance(node, ast.BoolOp):
            return self._bool(node, self.truth)
        return self.expression(node, "truth")

    def _bool(self, node: ast.BoolOp, compile_part: Callable[[ast.expr], Expression]) -> Expression:
        parts = [compile_part(value) for value in node.values]
        stop_at = isinstance(node.op, ast.Or)

        def run(state: State) -> Any:
            value = None
            for part in parts:
                value = part.run(state)
                if bool(value) is stop_at:
                    break
            return value

        return Expression(run, any(part.asks for part in parts), any(part.weak for part in parts))

    # ------------------------------------------------------------ expressions

    def expression(self, node: ast.expr, want: str = "value") -> Expression:
        """What `node` comes to; `want` is how the candidate is to answer if all of it is its own."""
        if self.names.root(node) is not None and not self._ours_to_apply(node):
            return self.asked(node, want)
        compile_node = getattr(self, f"_{type(node).__name__}", None)
        if compile_node is None:
            raise Unsupported(type(node).__name__)
        return compile_node(node)  # type: ignore[no-any-return]

    def _ours_to_apply(self, node: ast.expr) -> bool:
        """Whether the last step of the candidate's chain is plain data's own: an item, or `.startswith(...)`."""
        if isinstance(node, ast.Subscript):
            return True
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            return False
        return (
            node.func.attr in METHODS
            and isinstance(node.func.value, (ast.Call, ast.Subscript))
            and not self.is_object(node.func.value)
        )

    def _several(self, nodes: list[ast.expr]) -> tuple[list[Run], bool, bool]:
        parts = [self.expression(node) for node in nodes]
        return [p.run for p in parts], any(p.asks for p in parts), any(p.weak for p in parts)

    def _Constant(self, node: ast.Constant) -> Expression:
        value = node.value
        if value is Ellipsis:
            raise Unsupported("Ellipsis")
        return Expression(lambda state: value, False)

    def _Name(self, node: ast.Name) -> Expression:
        name = node.id
        if name in self.names.ours:
            return Expression(lambda state: state.variables[name], False)
        function = FUNCTIONS.get(name)
        if function is None and (dotted := self.names.imported.get(name)) in MODULES:
            function = MODULES[dotted or ""]
        if function is None:
            raise Unsupported(name)
        return Expression(lambda state: function, False)

    def _typed(self, node: ast.expr) -> Expression | None:
        """`int`, or `(int, float)`, as types; None for what is no type."""
        if isinstance(node, ast.Name) and node.id in TYPES and node.id not in self.names.ours:
            kind = TYPES[node.id]
            return Expression(lambda state: kind, False)
        if isinstance(node, ast.Tuple) and node.elts:
            kinds = [self._typed(part) for part in node.elts]
            if all(kinds):
                return Expression(lambda state: tuple(k.run(state) for k in kinds if k), False)
        return None

    def _Attribute(self, node: ast.Attribute) -> Expression:
        dotted = self.names.dotted(node)
        if dotted not in MODULES:
            raise Unsupported(dotted or f"attribute {node.attr}")
        value = MODULES[dotted]
        return Expression(lambda state: value, False)

    def _sequence(self, node: Any, make: Callable[[list[Any]], Any]) -> Expression:
        runs, asks, weak = self._several(node.elts)
        return Expression(lambda state: make([run(state) for run in runs]), asks, weak)

    def _List(self, node: ast.List) -> Expression:
        return self._sequence(node, list)

    def _Tuple(self, node: ast.Tuple) -> Expression:
        return self._sequence(node, tuple)

    def _Set(self, node: ast.Set) -> Expression:
        return self._sequence(node, set)

    def _Dict(self, node: ast.Dict) -> Expression:
        if any(key is None for key in node.keys):
            raise Unsupported("** in a dict")
        keys, asks, weak = self._several([key for key in node.keys if key is not None])
        held, held_asks, held_weak = self._several(node.values)
        return Expression(
            lambda state: {key(state): value(state) for key, value in zip(keys, held, strict=True)},
            asks or held_asks,
            weak or held_weak,
        )

    def _UnaryOp(self, node: ast.UnaryOp) -> Expression:
        if isinstance(node.op, ast.Not):
            return self.truth(node)
        inner, operate = self.expression(node.operand), UNARY[type(node.op).__name__]
        return Expression(lambda state: operate(inner.run(state)), inner.asks, inner.weak)

    def _BinOp(self, node: ast.BinOp) -> Expression:
        operate = BINARY.get(type(node.op).__name__)
        if operate is None:
            raise Unsupported(type(node.op).__name__)
        left, right = self.expression(node.left), self.expression(node.right)
        return Expression(
            lambda state: operate(left.run(state), right.run(state)),
            left.asks or right.asks,
            left.weak or right.weak,
        )

    def _BoolOp(self, node: ast.BoolOp) -> Expression:
        return self._bool(node, self.expression)

    def _IfExp(self, node: ast.IfExp) -> Expression:
        test, (runs, asks, weak) = self.truth(node.test), self._several([node.body, node.orelse])
        return Expression(
            lambda state: runs[0](state) if test.run(state) else runs[1](state),
            asks or test.asks,
            weak or test.weak,
        )

    def _Compare(self, node: ast.Compare) -> Expression:
        sides = [node.left, *node.comparators]
        if any(self.is_object(side) for side in sides) and sum(map(self._asks, sides)) > 1:
            # Objects of the candidate's classes: only its own process can compare them
            source, used = self.source(node)
            return Expression(
                lambda state: state.ask(source, {PREFIX + n: state.variables[n] for n in used}, "truth"),
                True,
                weak=True,
            )
        parts = [self._typed(side) or self.expression(side) for side in sides]
        operators = [COMPARE[type(operator).__name__] for operator in node.ops]

        def run(state: State) -> Any:
            left = parts[0].run(state)
            result: Any = True
            for operate, part in zip(operators, parts[1:], strict=True):
                right = part.run(state)
                result = operate(left, right)
                if not result:
                    break
                left = right
            return result

        asking = sum(part.asks for part in parts)
        return Expression(run, asking > 0, asking > 1 or any(part.weak for part in parts))

    def _asks(self, node: ast.expr) -> bool:
        return any(self.names.root(part) is not None for part in ast.walk(node) if isinstance(part, ast.expr))

    def _Subscript(self, node: ast.Subscript) -> Expression:
        value = self.expression(node.value)
        index = self._slice(node.slice) if isinstance(node.slice, ast.Slice) else self.expression(node.slice)
        return Expression(
            lambda state: value.run(state)[index.run(state)],
            value.asks or index.asks,
            value.weak or index.weak,
        )

    def _slice(self, node: ast.Slice) -> Expression:
        none = ast.Constant(None)
        runs, asks, weak = self._several([node.lower or none, node.upper or none, node.step or none])
        return Expression(lambda state: slice(*(run(state) for run in runs)), asks, weak)

    # ------------------------------------------------------------ calls of our own functions

    def _Call(self, node: ast.Call) -> Expression:
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            keyword.arg is None for keyword in node.keywords
        ):
            raise Unsupported("* in a call")
        function, name = self._function(node.func)
        objects = [a for a in node.args if self.is_object(a)]
        if objects and len(node.args) == 1 and name in ("len", "str", "repr", "int", "float", "bool", "list"):
            return self.asked_whole(node)
        want = "iterable" if name in functions.ITERATING else "value"
        parts = [self.expression(argument, want) for argument in node.args]
        if name == "isinstance" and len(node.args) == 2:
            parts[1] = self._typed(node.args[1]) or parts[1]
        named = {k.arg: self.expression(k.value) for k in node.keywords if k.arg is not None}
        every = [function, *parts, *named.values()]
        return Expression(
            lambda state: function.run(state)(
                *(part.run(state) for part in parts), **{key: part.run(state) for key, part in named.items()}
            ),
            any(part.asks for part in every),
            any(part.weak for part in every),
        )

    def asked_whole(self, node: ast.expr) -> Expression:
        """`len(stack)`: of an object that only the candidate's process has."""
        source, used = self.source(node)
        return Expression(
            lambda state: state.ask(source, {PREFIX + n: state.variables[n] for n in used}, "value"), True
        )

    def _function(self, node: ast.expr) -> tuple[Expression, str]:
        """What is called, and its name: one of FUNCTIONS or MODULES, or a harmless method of plain data."""
        if isinstance(node, ast.Name) and node.id in ("type",):
            return Expression(lambda state: type, False), "type"
        if isinstance(node, ast.Attribute) and self.names.dotted(node) is None:
            attribute = node.attr
            if attribute not in METHODS:
                raise Unsupported(f"method {attribute}")
            value = self.expression(node.value)
            return (
                Expression(
                    lambda state: functions.method(value.run(state), attribute), value.asks, value.weak
                ),
                attribute,
            )
        dotted = self.names.dotted(node)
        return self.expression(node), dotted or (node.id if isinstance(node, ast.Name) else "")

    # ------------------------------------------------------------ loops and lambdas

    def bind(self, target: ast.expr) -> tuple[list[str], Callable[[dict[str, Any], Any], None]]:
        if isinstance(target, ast.Name):
            name = target.id
            return [name], lambda variables, value: variables.__setitem__(name, value)
        if isinstance(target, ast.Tuple) and all(isinstance(part, ast.Name) for part in target.elts):
            names = [part.id for part in target.elts if isinstance(part, ast.Name)]
            return names, lambda variables, value: variables.update(zip(names, value, strict=True))
        raise Unsupported("an assignment to more than names")

    def _comprehension(self, node: Any, elements: list[ast.expr], make: Callable[[Any], Any]) -> Expression:
        if len(node.generators) != 1 or node.generators[0].is_async:
            raise Unsupported("a comprehension of several loops")
        loop: ast.comprehension = node.generators[0]
        members = self.expression(loop.iter, "iterable")
        bound, bind = self.bind(loop.target)
        inner = Compiler(self.names.within(bound))
        conditions = [inner.truth(condition) for condition in loop.ifs]
        runs, asks, weak = inner._several(elements)

        def each(state: State) -> Iterator[Any]:
            before = state.variables
            for member in members.run(state):
                state.step()
                state.variables = dict(before)
                bind(state.variables, member)
                if all(condition.run(state) for condition in conditions):
                    value = [run(state) for run in runs]
                    state.variables = before
                    yield value[0] if len(value) == 1 else tuple(value)
                state.variables = before

        every = [members, *conditions]
        return Expression(
            lambda state: make(list(each(state))),
            asks or any(part.asks for part in every),
            weak or any(part.weak for part in every),
        )

    def _ListComp(self, node: ast.ListComp) -> Expression:
        return self._comprehension(node, [node.elt], list)

    def _GeneratorExp(self, node: ast.GeneratorExp) -> Expression:
        return self._comprehension(node, [node.elt], list)

    def _SetComp(self, node: ast.SetComp) -> Expression:
        return self._comprehension(node, [node.elt], FUNCTIONS["set"])

    def _DictComp(self, node: ast.DictComp) -> Expression:
        return self._comprehension(node, [node.key, node.value], FUNCTIONS["dict"])

    def _Lambda(self, node: ast.Lambda) -> Expression:
        plain = node.args
        if plain.vararg or plain.kwarg or plain.kwonlyargs or plain.defaults or plain.posonlyargs:
            raise Unsupported("a lambda of more than plain parameters")
        names = [parameter.arg for parameter in plain.args]
        inner = Compiler(self.names.within(names))
        body = inner.expression(node.body)

        def make(state: State) -> Callable[..., Any]:
            def function(*values: Any) -> Any:
                state.step()
                before = state.variables
                state.variables = {**before, **dict(zip(names, values, strict=True))}
                try:
                    return body.run(state)
                finally:
                    state.variables = before

            return function

        return Expression(make, body.asks, body.weak)
