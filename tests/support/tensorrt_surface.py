"""What a Python class offers, held against the real bindings by their generated stubs."""

import ast
import enum
import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any


class Surface:
    """The classes of `tensorrt/__init__.pyi` with their members."""

    def __init__(self, stub: Path) -> None:
        tree = ast.parse(stub.read_text())
        self.classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
        self.names = self.classes.keys() | {
            node.target.id
            for node in tree.body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }
        self.names |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}

    def members(self, name: str) -> dict[str, list[ast.FunctionDef] | None]:
        """The members of a class and its bases: signatures of a method, None for a value."""
        node = self.classes[name]
        found: dict[str, list[ast.FunctionDef] | None] = {}
        for base in node.bases:
            if isinstance(base, ast.Name):
                found |= self.members(base.id)
        for member in node.body:
            if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
                found[member.target.id] = None
            elif isinstance(member, ast.ClassDef):
                found[member.name] = None
            elif isinstance(member, ast.FunctionDef):
                spelt = [ast.unparse(decorator) for decorator in member.decorator_list]
                if any(text == "property" or text.endswith(".setter") for text in spelt):
                    found[member.name] = None
                else:
                    found[member.name] = [*(found.get(member.name) or []), member]
        return found

    def differences(self, kind: type) -> list[str]:
        """Where a class stands for one of the bindings and is not like it.

        Every public member must be there under that name, as a method or as a value; a method's
        parameters must be those of one of its overloads, by name, in order, as optional as there.
        What is left out is no difference: the class may be less. Raises KeyError where the bindings
        have no class of that name.
        """
        real = self.members(kind.__name__)
        found = []
        for name in _public(kind):
            if name not in real:
                found.append(f"{kind.__name__}.{name}: the bindings have no such member")
                continue
            mine, theirs = inspect.getattr_static(kind, name, None), real[name]
            if theirs is None or not inspect.isfunction(mine):
                if (theirs is not None) != inspect.isfunction(mine) and not _value(kind, name):
                    found.append(f"{kind.__name__}.{name}: a method on one side alone")
                continue
            wanted = [_parameters(signature) for signature in theirs]
            given = _given(mine)
            if not _fits(given, wanted):
                shown = " or ".join(_spelt(one) for one in wanted)
                found.append(f"{kind.__name__}.{name}{_spelt(given)}: the bindings have {shown}")
        return found


Parameters = list[tuple[str, bool]]  # name, and whether it may be left out


def _public(kind: type) -> list[str]:
    names = {
        name for base in kind.__mro__ if base.__module__ == kind.__module__ for name in vars(base)
    }
    names |= {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    if is_dataclass(kind):
        names |= {field.name for field in fields(kind)}
    if issubclass(kind, enum.Enum):
        names = set(kind.__members__)
    return sorted(name for name in names if not name.startswith("_"))


def _value(kind: type, name: str) -> bool:
    """Whether a member is no method: an attribute that instances get, a property, a constant."""
    return not inspect.isfunction(inspect.getattr_static(kind, name, None))


def _parameters(node: ast.FunctionDef) -> Parameters:
    places = [*node.args.posonlyargs, *node.args.args]
    required = len(places) - len(node.args.defaults)
    found = [(place.arg, index >= required) for index, place in enumerate(places)]
    return found[1:]  # not self


def _given(function: Any) -> Parameters:
    found = list(inspect.signature(function).parameters.values())[1:]
    return [(one.name, one.default is not inspect.Parameter.empty) for one in found]


def _calls(parameters: Parameters) -> set[tuple[str, ...]]:
    """The names that a call may give, from those it must to all."""
    names = tuple(name for name, _ in parameters)
    required = sum(not optional for _, optional in parameters)
    return {names[:count] for count in range(required, len(names) + 1)}


def _fits(given: Parameters, wanted: list[Parameters]) -> bool:
    """Whether each call that is taken here is taken there, and one overload is taken in full."""
    calls = _calls(given)
    allowed = set().union(*map(_calls, wanted))
    return calls <= allowed and any(_calls(one) <= calls for one in wanted)


def _spelt(parameters: Parameters) -> str:
    return "(" + ", ".join(name + "=…" * optional for name, optional in parameters) + ")"
