"""What the documents say exists: their links lead somewhere, their commands are understood."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from diffusion_rt.command import Parser
from diffusion_rt.engines import cli as build_cli
from diffusion_rt.export import cli as export_cli
from diffusion_rt.runtime import cli
from diffusion_rt.runtime.flags import FLAGS, request_of

ROOT = Path(__file__).parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "engines/README.md")
COMMAND = re.compile(
    r"^ *(?:\S+ \S+ \| )?(diffusion-rt (?:generate|export|build) .+)$", re.MULTILINE
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    text = path.read_text()
    targets = re.findall(r"\]\(([^)#]+)", text)
    assert [t for t in targets if "://" not in t and not (path.parent / t).exists()] == []
    headings = {re.sub(r"[^a-z -]", "", line.lower()).replace(" ", "-") for line in _headings(text)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", text, re.MULTILINE)


@pytest.mark.parametrize(
    "text",
    [
        (ROOT / "README.md").read_text(),
        (ROOT / "engines/README.md").read_text(),
        cli.GENERATE,
        export_cli.EXAMPLES,
        build_cli.EXAMPLES,
    ],
    ids=["README", "engines", "generate", "export", "build"],
)
def test_commands_are_understood(text: str) -> None:
    lines = COMMAND.findall(text)
    assert lines
    for line in lines:
        words = shlex.split(re.sub(r" {2,}\(.*\)$", "", line), comments=True)
        parser = Parser(prog=words[1])
        if words[1] == "export":
            export_cli.add_arguments(parser)
            parser.read(words[2:])
        elif words[1] == "build":
            build_cli.add_arguments(parser)
            build_cli.options_of(parser.read(words[2:]))
        else:
            found = cli.generate_parser().read(words[2:])
            found.prompt = found.PROMPT
            request_of(found)


def test_the_python_example_uses_names_that_exist() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    calls = {
        node.func.id: [word.arg for word in node.keywords]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    known = {field for group in FLAGS.values() for field in group}
    assert set(calls["Request"]) <= known
