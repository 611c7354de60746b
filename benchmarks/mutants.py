"""Mutants of a module: its source with one operation changed (DeMillo, Lipton & Sayward, Hints on Test Data Selection,
1978). What is not changed: annotations, decorators, strings, what an error says, and floats under ``TINY``, which keep
numbers from zero.
"""

from __future__ import annotations

import ast
import collections
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TINY = 1e-6


@dataclass(frozen=True)
class Mutant:
    """One change: ``holder.field`` (or an element of it) becomes ``new``."""

    operator: str
    line: int
    lines: range  # of the statement, or of the head of a compound one
    text: str
    before: str
    after: str
    holder: ast.AST
    field: str
    index: int | None
    new: ast.AST | list[ast.stmt]

    def apply(self) -> None:
        if self.index is None:
            setattr(self.holder, self.field, self.new)
        else:
            getattr(self.holder, self.field)[self.index] = self.new

    def __str__(self) -> str:
        return f"{self.line}: {self.operator}: {self.before} -> {self.after}    # {self.text}"


COMPARE: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_PAIRS = (("amin", "amax"), ("argmin", "argmax"), ("min", "max"), ("all", "any"), ("floor", "ceil"), ("tril", "triu"),
          ("zeros", "ones"), ("new_zeros", "new_ones"), ("unsqueeze_", "squeeze_"))  # fmt: skip
METHODS = {"mean": "amin", "sum": "mean", "sqrt": "square", "rsqrt": "sqrt", "log1p": "log", "log": "exp", "exp": "log",
           "cumsum": "cumprod", "sigmoid": "exp", "half": "float", "quantile": "amax", "clone": "detach",
           "startswith": "endswith", "setdefault": "get"}  # fmt: skip
METHODS |= dict(_PAIRS) | {second: first for first, second in _PAIRS}


def mutants(source: str) -> tuple[ast.Module, list[Mutant]]:
    """The tree of a module, and its changes in the order of the text."""
    tree, found = ast.parse(source), list[Mutant]()
    lines = source.splitlines()

    def add(
        operator: str, place: tuple[ast.AST, str, int | None], new: Any, near: ast.AST, statement: ast.stmt
    ) -> None:
        holder, field, index = place
        old = getattr(holder, field) if index is None else getattr(holder, field)[index]
        before, after = (_shown(each) for each in (old, new))
        line = getattr(near, "lineno", statement.lineno)
        last = statement.body[0].lineno - 1 if getattr(statement, "body", None) else statement.end_lineno
        within = range(statement.lineno, max(last, line) + 1)
        found.append(Mutant(operator, line, within, lines[line - 1].strip(), before, after, holder, field, index, new))

    def visit(node: ast.AST, place: tuple[ast.AST, str, int | None], statement: ast.stmt, scope: Scope) -> None:
        if isinstance(node, ast.stmt):
            statement = node
        for operator, change in _changes(node, scope):
            add(operator, place, change, node, statement)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            scope = scope.within(node)
        for field, index, child in _children(node):
            visit(child, (node, field, index), statement, scope)

    for index, node in enumerate(tree.body):
        visit(node, (tree, "body", index), node, Scope({}, {}))
    return tree, sorted(found, key=lambda mutant: mutant.line)


@dataclass(frozen=True)
class Scope:
    """Names that stand for one another: parameters, and a class's fields, of the same annotation."""

    parameters: dict[str, str]
    fields: dict[str, str]

    def within(self, node: ast.FunctionDef | ast.ClassDef) -> Scope:
        if isinstance(node, ast.ClassDef):
            fields = [(s.target.id, s.annotation) for s in node.body if isinstance(s, ast.AnnAssign)]
            return Scope({}, _next_of_kind(fields))
        arguments = [*node.args.args, *node.args.kwonlyargs]
        return Scope(_next_of_kind([(a.arg, a.annotation) for a in arguments if a.annotation]), self.fields)


def _next_of_kind(typed: list[tuple[str, ast.expr]]) -> dict[str, str]:
    kinds = collections.defaultdict(list)
    for name, annotation in typed:
        kinds[ast.unparse(annotation)].append(name)
    return {
        a: b for names in kinds.values() if len(names) > 1 for a, b in zip(names, names[1:] + names[:1], strict=True)
    }


def _shown(node: Any) -> str:
    return " ".join(ast.unparse(node).split())[:100] if isinstance(node, ast.AST) else str(node)


def _children(node: ast.AST) -> Iterator[tuple[str, int | None, ast.AST]]:
    """What may be changed below a node."""
    if isinstance(node, (ast.Import, ast.ImportFrom, ast.JoinedStr, ast.Raise)) or _is_error(node) or _is_text(node):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment", "bases", "ctx", "ops", "op"):
            continue
        if isinstance(value, list):
            yield from ((field, i, child) for i, child in enumerate(value) if isinstance(child, ast.AST))
        elif isinstance(value, ast.AST):
            yield field, None, value


def _is_error(node: ast.AST) -> bool:
    """The making of an error; what it says is not tested word by word."""
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes(node: ast.AST, scope: Scope) -> Iterator[tuple[str, ast.AST]]:
    """Operators and what stands in the place of a node."""
    match node:
        case ast.Compare(ops=[first, *_]) if type(first) in COMPARE:
            for i, operation in enumerate(node.ops):
                yield "compare", _with(node, ops=[*node.ops[:i], COMPARE[type(operation)](), *node.ops[i + 1 :]])
        case ast.BinOp() if type(node.op) in ARITHMETIC and not _has_text(node):
            yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())
        case ast.AugAssign() if type(node.op) in ARITHMETIC:
            yield "arithmetic", _with(node, op=ARITHMETIC[type(node.op)]())
            yield "remove", ast.Pass()
        case ast.BoolOp():
            yield "boolean", _with(node, op=ast.And() if isinstance(node.op, ast.Or) else ast.Or())
        case ast.UnaryOp():
            yield "unary", node.operand
        case ast.Constant(value=bool()):
            yield "constant", ast.Constant(not node.value)
        case ast.Constant(value=int()):
            yield "constant", ast.Constant(node.value + 1)
        case ast.Constant(value=float()) if node.value == 0 or abs(node.value) >= TINY:
            yield "constant", ast.Constant(2 * node.value or 1.0)
        case ast.Return(value=ast.expr()) if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield "return", ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call() | ast.Yield() | ast.YieldFrom()) | ast.Raise() | ast.Continue() | ast.Break():
            yield "remove", ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "remove", ast.Pass()
        case ast.Slice():
            for bound in ("lower", "upper"):
                if getattr(node, bound) is not None:
                    yield "slice", _with(node, **{bound: None})
        case ast.Call(func=ast.Attribute(attr=name)) if name in METHODS:
            yield "method", _with(node, func=_with(node.func, attr=METHODS[name]))
        case ast.Call(func=ast.Name(id=name)) if name in METHODS:
            yield "method", _with(node, func=ast.Name(METHODS[name], ast.Load()))
        case ast.Name(id=name, ctx=ast.Load()) if name in scope.parameters:
            yield "name", ast.Name(scope.parameters[name], ast.Load())
        case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Load()) if name in scope.fields:
            yield "name", _with(node, attr=scope.fields[name])
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        for value in (True, False) if not isinstance(node, ast.While) else (False,):
            yield "condition", _with(node, test=ast.Constant(value))
    if isinstance(node, ast.comprehension) and node.ifs:
        yield "condition", _with(node, ifs=[])
    if isinstance(node, ast.Call) and not _is_error(node):
        yield from (("argument", fewer) for fewer in _with_fewer(node))


def _with_fewer(node: ast.Call) -> Iterator[ast.Call]:
    """A call with a keyword, or the last of several arguments, left to its default."""
    for i in range(len(node.keywords)):
        yield _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])
    if len(node.args) > 1 and not isinstance(node.args[-1], ast.Starred):
        yield _with(node, args=node.args[:-1])


def _with(node: ast.AST, **changes: Any) -> Any:
    new = copy.copy(node)
    for name, value in changes.items():
        setattr(new, name, value)
    return new


def _has_text(node: ast.BinOp) -> bool:
    return any(isinstance(n, ast.JoinedStr) or isinstance(getattr(n, "value", 0), str) for n in (node.left, node.right))
