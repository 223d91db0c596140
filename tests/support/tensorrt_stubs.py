"""Type stubs of TensorRT, out of the signatures that its bindings carry in their docstrings.

Run as a file with one argument, in a process that can load the bindings (`support.tensorrt_libs`),
it writes `tensorrt/__init__.pyi` under that folder, beside it the bindings' own `tensorrt.plugin`,
which is Python and has its types, and `parsed.json`: how many functions, methods and properties
carry a signature that parses, the names of those that do not, which are typed Any, and the members
of every enumeration with their numbers.
"""

import ast
import importlib
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

HEADER = """\
# mypy: ignore-errors
# (Overloads and overrides that C++ allows and Python's types do not.)
import builtins
import collections.abc
import typing
import typing_extensions

import numpy

"""
BUILTINS = {
    "bool",
    "bytes",
    "dict",
    "float",
    "int",
    "list",
    "object",
    "set",
    "str",
    "tuple",
    "type",
}
MODULES = {"builtins", "collections", "numpy", "typing", "typing_extensions"}
_NUMBERED = re.compile(r"^[0-9]+\. (.*)$")
_CPP = re.compile(r"\b(?:[A-Za-z_]\w*::)+([A-Za-z_]\w*)")
_CPP_NAMES = {"IParserError": "ParserError"}  # where Python has another name than C++
_VALUE = re.compile(r"= <[^<>]*>")  # a default that Python cannot spell


class Stubs:
    """The stubs of one module, as they grow."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.classes = {n: o for n, o in vars(module).items() if inspect.isclass(o)}
        self.parsed = 0
        self.failed: list[str] = []

    def text(self) -> str:
        lines = [HEADER]
        for name, value in sorted(vars(self.module).items()):
            if (name[0] == "_" and name != "__version__") or isinstance(value, ModuleType):
                continue
            if inspect.isclass(value):
                lines += self.of_class(name, value, "")
            elif callable(value) and not isinstance(value, tuple(self.classes.values())):
                lines += self.of_function(name, value, "", name)
            elif type(value).__module__ == "builtins":
                lines.append(f"{name}: builtins.{type(value).__name__}")
            else:
                lines.append(f"{name}: {type(value).__qualname__}")
        return "\n".join(lines) + "\n"

    def of_class(self, name: str, kind: type, indent: str) -> list[str]:
        bases = [base.__name__ for base in kind.__bases__ if base.__name__ in self.classes]
        qualified = kind.__qualname__
        lines = [
            f"{indent}class {name}({', '.join(bases)}):" if bases else f"{indent}class {name}:"
        ]
        inner = indent + "    "
        for member, value in vars(kind).items():
            if inspect.isclass(value) and member not in ("__class__",):
                lines += self.of_class(member, value, inner)
            elif type(value).__module__ == kind.__module__ and not callable(value):
                lines.append(f"{inner}{member}: typing.ClassVar[{type(value).__qualname__}]")
            elif isinstance(value, property) and member[0] != "_":
                lines += self.of_property(f"{qualified}.{member}", member, value, inner)
            elif _bound(value) and (not member.startswith("_") or member in _SPECIAL):
                shown = f"{qualified}.{member}"
                lines += self.of_function(member, getattr(kind, member), inner, shown)
            elif type(value).__name__ == "pybind11_static_property" and member[0] != "_":
                lines.append(f"{inner}{member}: typing.ClassVar[typing.Any]")
        if "buffer protocol" in (kind.__doc__ or ""):
            lines.append(f"{inner}def __buffer__(self, flags: builtins.int) -> memoryview: ...")
        return [*lines, f"{inner}..."]

    def of_function(self, name: str, value: Any, indent: str, shown: str) -> list[str]:
        found = list(signatures(name, value.__doc__ or ""))
        spelt = [self.spelt(name, text, method=bool(indent)) for text in found]
        if not spelt or None in spelt:
            self.failed.append(shown)
            receiver = "self, " if indent else ""
            return [
                f"{indent}def {name}({receiver}*args: typing.Any, **kwargs: typing.Any)"
                " -> typing.Any: ..."
            ]
        self.parsed += 1
        overload = [f"{indent}@typing.overload"] if len(spelt) > 1 else []
        return [line for one in spelt for line in (*overload, f"{indent}{one}")]

    def of_property(self, shown: str, name: str, value: property, indent: str) -> list[str]:
        kind = "typing.Any"
        getter = self.spelt(name, f"{name}{(value.fget.__doc__ or '').strip()}", method=True)
        if getter is None:
            self.failed.append(shown)
        else:
            self.parsed += 1
            kind = getter.rpartition(" -> ")[2].removesuffix(": ...")
        lines = [f"{indent}@property", f"{indent}def {name}(self) -> {kind}: ..."]
        if value.fset is not None:
            lines += [
                f"{indent}@{name}.setter",
                f"{indent}def {name}(self, value: {kind}) -> None: ...",
            ]
        return lines

    def spelt(self, name: str, text: str, *, method: bool) -> str | None:
        """A signature of a docstring as a stub has it; None where it does not parse."""
        text = text.replace(f"{self.module.__name__}.tensorrt.", "")
        text = text.replace(f"{self.module.__name__}.", "")
        text = _CPP.sub(lambda m: _CPP_NAMES.get(m[1], m[1]), text)
        text = _VALUE.sub("= ...", text)
        try:
            tree = ast.parse(f"def {text}: ...")
        except SyntaxError:
            return None
        function = tree.body[0]
        assert isinstance(function, ast.FunctionDef)
        arguments = function.args
        for argument, default in _defaults(arguments):
            if isinstance(default, ast.Constant) and default.value is None and argument.annotation:
                argument.annotation = ast.BinOp(
                    argument.annotation, ast.BitOr(), ast.Constant(None)
                )
        arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
        arguments.kw_defaults = [d and ast.Constant(...) for d in arguments.kw_defaults]
        if method:
            places = arguments.posonlyargs or arguments.args
            if not places:
                return None
            places[0].arg, places[0].annotation = "self", None
        _Names(self.classes).visit(tree)
        return ast.unparse(ast.fix_missing_locations(tree)).replace("\n    ", " ")


_SPECIAL = {"__init__", "__len__", "__getitem__", "__setitem__", "__int__", "__index__", "__bool__"}


def _bound(value: object) -> bool:
    return type(value).__name__ in ("instancemethod", "builtin_function_or_method", "staticmethod")


def signatures(name: str, docstring: str) -> Iterator[str]:
    """The signatures at the head of a docstring, one for each overload."""
    first, _, rest = docstring.partition("\n")
    if not rest.startswith("Overloaded function."):
        if first.startswith(f"{name}("):
            yield first
        return
    for line in rest.splitlines():
        match = _NUMBERED.match(line)
        if match and match[1].startswith(f"{name}("):
            yield match[1]


def _defaults(arguments: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr]]:
    places = [*arguments.posonlyargs, *arguments.args]
    if arguments.defaults:
        yield from zip(places[-len(arguments.defaults) :], arguments.defaults, strict=True)


class _Names(ast.NodeTransformer):
    """Spells annotations with names that the stub knows; a type it does not know is Any."""

    def __init__(self, classes: dict[str, type]) -> None:
        self.classes = classes

    def visit_arg(self, node: ast.arg) -> ast.arg:
        if node.annotation is not None:
            node.annotation = self.annotation(node.annotation)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node.args)
        if node.returns is not None:
            node.returns = self.annotation(node.returns)
        return node

    def annotation(self, node: ast.expr, *, whole: bool = True) -> ast.expr:
        if isinstance(node, ast.Name):
            if node.id in BUILTINS:
                filled = {"dict": "[typing.Any, typing.Any]", "list": "[typing.Any]"}
                filled["tuple"] = "[typing.Any, ...]"
                items = filled.get(node.id, "") if whole else ""
                return ast.parse(f"builtins.{node.id}{items}", mode="eval").body
            if node.id in self.classes or node.id in MODULES:
                return node
            return ast.parse("typing.Any", mode="eval").body
        if isinstance(node, ast.Attribute):
            root: ast.expr = node
            while isinstance(root, ast.Attribute):
                root = root.value
            known = isinstance(root, ast.Name) and (root.id in MODULES or root.id in self.classes)
            return node if known else ast.parse("typing.Any", mode="eval").body
        if isinstance(node, ast.Subscript):
            node.value = self.annotation(node.value, whole=False)
            node.slice = self.annotation(node.slice)
            if ast.unparse(node.value).startswith("numpy."):
                return ast.parse("numpy.ndarray[typing.Any, typing.Any]", mode="eval").body
        elif isinstance(node, (ast.Tuple, ast.List)):
            node.elts = [self.annotation(item) for item in node.elts]
        elif isinstance(node, ast.BinOp):
            node.left, node.right = self.annotation(node.left), self.annotation(node.right)
        return node


def enumerations(module: ModuleType) -> Iterator[Any]:
    """Every enumeration of a module, those within classes too."""
    for kind in vars(module).values():
        if inspect.isclass(kind):
            within = [inner for inner in vars(kind).values() if inspect.isclass(inner)]
            yield from (found for found in (kind, *within) if hasattr(found, "__members__"))


def public_plugin_names() -> str:
    """Stub of `tensorrt.plugin`, whose own modules put their public names into it as they run."""
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    plugin = importlib.import_module("tensorrt_bindings.plugin")
    lines = []
    for name in plugin.__all__:
        module = getattr(plugin, name).__module__.rpartition(".")[2]
        lines.append(f"from tensorrt.plugin.{module} import {name} as {name}\n")
    return "".join(sorted(lines))


def main(folder: Path) -> None:
    import tensorrt_bindings

    stubs = Stubs(tensorrt_bindings)
    text = stubs.text()
    ast.parse(text)
    (folder / "tensorrt").mkdir(parents=True)
    (folder / "tensorrt" / "__init__.pyi").write_text(text)
    plugin = Path(str(tensorrt_bindings.__file__)).parent / "plugin"
    (folder / "tensorrt" / "plugin").mkdir()
    for source in plugin.glob("_[!_]*.py"):
        text = "# mypy: ignore-errors, implicit-reexport\n" + source.read_text()
        (folder / "tensorrt" / "plugin" / source.name).write_text(text)
    (folder / "tensorrt" / "plugin" / "__init__.pyi").write_text(public_plugin_names())
    report = {
        "version": tensorrt_bindings.__version__,
        "parsed": stubs.parsed,
        "failed": stubs.failed,
        "enums": {
            kind.__qualname__: {name: int(value) for name, value in kind.__members__.items()}
            for kind in enumerations(tensorrt_bindings)
        },
    }
    (folder / "parsed.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
