"""Measures the house: how many files, rooms and floors it has, and which names mean two things.

`python scripts/house.py` prints the figures; `tests/test_house.py` keeps their limits.
"""

from __future__ import annotations

import ast
import functools
import io
import statistics
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "llmkit"
FILES = sorted(SOURCE.rglob("*.py"))


def name_of(path: Path) -> str:
    """The dotted name of a module: `llmkit.data.text.documents`."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@functools.cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {name_of(path): path for path in FILES}


def has_code(path: Path) -> bool:
    """Whether a module holds more than its docstring and imports."""
    return any(
        not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) for node in tree(path).body
    )


def rooms() -> dict[str, int]:
    """The number of files in each folder, `__init__.py` apart."""
    count: dict[str, int] = defaultdict(int)
    for path in FILES:
        if path.name != "__init__.py":
            count[str(path.parent.relative_to(SOURCE.parent))] += 1
    return dict(count)


def imports(path: Path, at_once: bool) -> set[str]:
    """The modules of llmkit that a file imports, anywhere in it; `at_once`: when it is imported."""
    found = set()
    for node in _at_once(tree(path)) if at_once else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                whole = f"{node.module}.{name.name}"
                found.add(whole if whole in MODULES else node.module)
    return {name for name in found if name in MODULES and name != "llmkit"} - {name_of(path)}


def _at_once(module: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported."""
    for node in ast.iter_child_nodes(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _at_once(node)


def code_map() -> str:
    """The rooms with what they hold, for the README."""
    lines = ["```"]
    for init in sorted(SOURCE.rglob("__init__.py")):
        room = init.parent
        names = sorted(each.stem for each in room.glob("*.py") if not each.stem.startswith("__"))
        about = (ast.get_docstring(tree(init)) or "").split("\n")[0]
        title = f"{room.relative_to(SOURCE.parent)}/"
        lines.append(f"{title:30}{about}")
        lines += textwrap.wrap(" ".join(names), 98, initial_indent="    ", subsequent_indent="    ")
    return "\n".join([*lines, "```\n"])


def longest_chain() -> list[str]:
    """The longest chain of modules that import one another; circles are followed once."""
    graph = {name: imports(path, at_once=True) for name, path in MODULES.items()}
    longest: dict[str, list[str]] = {}

    def chain(name: str, above: tuple[str, ...]) -> list[str]:
        if name not in longest:
            below = [
                chain(each, (*above, name)) for each in sorted(graph[name]) if each not in above
            ]
            longest[name] = [name, *max(below, key=len, default=[])]
        return longest[name]

    return max((chain(name, ()) for name in sorted(graph)), key=len)


def circles() -> list[set[str]]:
    """The sets of modules that import one another, wherever the imports are written."""
    graph = {name: imports(path, at_once=False) for name, path in MODULES.items()}
    reached = {name: _reached(graph, name) for name in graph}
    found: list[set[str]] = []
    for name, others in reached.items():
        circle = {each for each in others if name in reached[each]}
        if name in circle and circle not in found:
            found.append(circle)
    return found


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    left = list(graph[start])
    while left:
        if (name := left.pop()) not in reached:
            reached.add(name)
            left += graph[name]
    return reached


def public_names(path: Path) -> set[str]:
    """The public names that a module defines at its top level."""
    found = set()
    for node in tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            names = [each for target in node.targets for each in ast.walk(target)]
            found |= {each.id for each in names if isinstance(each, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def names_with_several_meanings() -> dict[str, list[str]]:
    """The public names that several modules define; all commands have the same two functions."""
    where: dict[str, list[str]] = defaultdict(list)
    for name, path in MODULES.items():
        for public in public_names(path):
            where[public].append(name)
    return {
        public: modules
        for public, modules in sorted(where.items())
        if len(modules) > 1 and not all(each.startswith("llmkit.commands.") for each in modules)
    }


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """The functions of a file with their numbers of lines."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def way_to_the_optimizer() -> list[tuple[str, str]]:
    """The frames of ours, file and function, from `main` to the step of the optimizer in a run
    of one step."""
    from llmkit.cli.app import main

    way: list[tuple[str, str]] = []

    def watch(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_name == "step" and code.co_filename.endswith("optimizer.py"):
            caller: FrameType | None = frame
            while caller is not None and way[-1:] != [("cli/app.py", "main")]:
                place = Path(caller.f_code.co_filename)
                if place.is_relative_to(SOURCE):
                    way.append((str(place.relative_to(SOURCE)), caller.f_code.co_name))
                caller = caller.f_back
            sys.setprofile(None)

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("The quick brown fox jumps over the lazy dog.\n" * 200, encoding="utf-8")
        sizes = "{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
        keys = ("train.max_steps=1", "data.block_size=16", "tokenizer.vocab_size=300")
        arguments = ["pretrain", "--text", str(text), "-o", f"{folder}/run", *keys]
        quiet = io.StringIO()
        with redirect_stdout(quiet), redirect_stderr(quiet):
            sys.argv = ["llmkit", *arguments, f"model.config={sizes}", "train.compile=false"]
            sys.setprofile(watch)
            try:
                main()
            except SystemExit:
                pass
            finally:
                sys.setprofile(None)
    return way[::-1]


def report() -> Iterator[str]:
    """The figures, a line for each."""
    lines = [path.read_text(encoding="utf-8").count("\n") for path in FILES]
    lengths = sorted(length for path in FILES for _, length in functions(path))
    fullest = max(rooms().items(), key=lambda room: room[1])
    chain = longest_chain()
    yield f"modules with code       {sum(has_code(path) for path in FILES)}"
    yield f"most files in a room    {fullest[1]} ({fullest[0]})"
    yield f"import depth            {len(chain)}: {' -> '.join(n[7:] for n in chain)}"
    yield f"circles                 {len(circles())}"
    several = names_with_several_meanings()
    yield f"names that mean several {len(several)}: {', '.join(several) or '-'}"
    yield f"lines                   {sum(lines)}, longest file {max(lines)}"
    middle, tenth = statistics.median(lengths), lengths[len(lengths) * 9 // 10]
    yield f"lines of a function     median {middle:g}, 90% {tenth}, longest {lengths[-1]}"
    way = way_to_the_optimizer()
    yield f"from cli to optimizer   {len(way)} frames, {len({file for file, _ in way})} files"
    yield "                        " + " -> ".join(f"{file}:{name}" for file, name in way)


if __name__ == "__main__":
    for line in report():
        print(line, flush=True)
