"""The layout, read from the source (`make check`): rooms, import floors, cycles, and branches on a
modality's or a backbone's name.

    python tests/layout.py [FOLDER]

Prints one line per layer and ends with status 1 where a rule is broken: no import cycle, also none
that only type checkers see; no upward import, between layers or between the rooms of one; one home
per heavy library; no branch on a name outside the rooms that own it.
"""

import ast
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Lowest first; a package imports itself and those before it.
LAYERS = ("pipeline", "fusion", "meld", "serving", "console", "cli")
HOMES: Mapping[str, tuple[str, ...]] = {
    "av": ("pipeline.decode", "pipeline.sample"),
    "h5py": ("pipeline.cache.hdf5", "pipeline.encoders.faces"),  # Keras' weights are HDF5
    "pyarrow": ("pipeline.exchange.arrow", "pipeline.encoders.vector_files"),
    "datasets": ("pipeline.exchange.arrow",),
    "wandb": ("fusion.training.trackers",),
    "ray": ("pipeline.parallel", "fusion.finetuning.workers", "serving.ray_serve"),
    "typer": ("cli", "console"),
    "rich": ("console",),
    "matplotlib": ("fusion.evaluation.plots", "fusion.training.curves", "fusion.reporting.svg"),
    "onnxruntime": ("fusion.inference.voice", "pipeline.onnx"),
    "faster_whisper": ("fusion.inference.whisper",),
    "fastapi": ("serving",),
    "prometheus_client": ("serving.metrics",),
}
# Who may branch on the name of a modality or of a backbone. The sample generator makes the three
# kinds of media, and the doctor looks at a file's streams: there the names are the subject.
OWNERS = ("pipeline.encoders", "pipeline.decode", "pipeline.sample", "pipeline.doctor")
NAMES = frozenset(
    "text video audio r3d_18 mc3_18 r2plus1d_18 spectrogram prosody minilm "
    "glove word2vec faces resnet18 resnet50 vgg16 "
    "wav2vec2-base hubert-base wavlm-base wavlm-base-plus whisper-tiny.en".split()
)


@dataclass(frozen=True)
class Import:
    """One import statement.

    at_start: it runs when the module is imported; typing_only: only type checkers read it
    extra: the optional part that it belongs to: it stands in `with needs_extra(...)`
    """

    module: str
    line: int
    wanted: str
    at_start: bool
    typing_only: bool = False
    extra: str = ""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.wanted}"


class _Reader(ast.NodeVisitor):
    def __init__(self, module: str, is_package: bool) -> None:
        self.module = module
        self.package = module.split(".") if is_package else module.split(".")[:-1]
        self.at_start = True
        self.typing_only = False
        self.extra = ""
        self.found: list[Import] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(node.lineno, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        above = self.package[: len(self.package) - node.level + 1] if node.level else []
        origin = ".".join([*above, *([node.module] if node.module else [])])
        for alias in node.names:
            self._add(node.lineno, f"{origin}.{alias.name}")

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before, self.at_start = self.at_start, False
        self.generic_visit(node)
        self.at_start = before

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_If(self, node: ast.If) -> None:
        """What only type checkers read runs never; the else branch does."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            before = self.at_start, self.typing_only
            self.at_start, self.typing_only = False, True
            for child in node.body:
                self.visit(child)
            self.at_start, self.typing_only = before
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        before = self.extra
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "needs_extra":
                self.extra = ast.literal_eval(call.args[0])
        self.generic_visit(node)
        self.extra = before

    def _add(self, line: int, wanted: str) -> None:
        self.found.append(
            Import(self.module, line, wanted, self.at_start, self.typing_only, self.extra)
        )


def module_files(root: Path) -> dict[str, Path]:
    """Dotted name to file, of every module in the layers."""
    files = {}
    for layer in LAYERS:
        for path in [root / f"{layer}.py", *sorted((root / layer).rglob("*.py"))]:
            if path.is_file():
                parts = path.relative_to(root).with_suffix("").parts
                files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def read_imports(root: Path) -> list[Import]:
    """Every import; `from a import b` wants a.b where that is a module, else a."""
    files = module_files(root)
    found: list[Import] = []
    for module, path in files.items():
        reader = _Reader(module, path.name == "__init__.py")
        reader.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
        for each in reader.found:
            wanted = each.wanted
            if wanted not in files and wanted.rpartition(".")[0] in files:
                wanted = wanted.rpartition(".")[0]
            found.append(replace(each, wanted=wanted))
    return found


def upward_imports(imports: Sequence[Import]) -> list[str]:
    """For a type checker's eyes alone an upper layer may be named: nothing runs."""
    rank = {layer: number for number, layer in enumerate(LAYERS)}
    return [
        str(each)
        for each in imports
        if not each.typing_only
        and (wanted := each.wanted.split(".")[0]) in rank
        and rank[wanted] > rank[each.module.split(".")[0]]
    ]


def imports_away_from_home(imports: Sequence[Import]) -> list[str]:
    return [
        str(each)
        for each in imports
        if not each.typing_only
        and (library := each.wanted.split(".")[0]) in HOMES
        and not any(f"{each.module}.".startswith(f"{home}.") for home in HOMES[library])
    ]


def graph(imports: Sequence[Import], modules: set[str]) -> dict[str, list[str]]:
    """Module to the modules it imports anywhere, for type checkers too."""
    edges: dict[str, list[str]] = {module: [] for module in sorted(modules)}
    for each in imports:
        if each.wanted in modules and each.wanted != each.module:
            edges[each.module].append(each.wanted)
    return edges


def room_of(module: str) -> str:
    """ "fusion.training.fit" -> "fusion.training"; a file beside the rooms is one itself."""
    return ".".join(module.split(".")[:2])


def room_graph(edges: Mapping[str, Sequence[str]], layer: str) -> dict[str, list[str]]:
    """The same between the rooms of one layer."""
    rooms: dict[str, set[str]] = {}
    for module, wanted in edges.items():
        if module.split(".")[0] == layer and module != layer:
            of = rooms.setdefault(room_of(module), set())
            of |= {room_of(each) for each in wanted if each.startswith(f"{layer}.")}
    return {room: sorted(wanted - {room}) for room, wanted in sorted(rooms.items())}


def find_cycle(edges: Mapping[str, Sequence[str]]) -> list[str] | None:
    done: set[str] = set()

    def follow(module: str, way: list[str]) -> list[str] | None:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return None
        for wanted in edges[module]:
            cycle = follow(wanted, [*way, module])
            if cycle:
                return cycle
        done.add(module)
        return None

    cycles = (follow(module, []) for module in edges)
    return next((cycle for cycle in cycles if cycle), None)


def count_floors(edges: Mapping[str, Sequence[str]]) -> int:
    """How many stand one above the other; 0 where a cycle leaves no floor."""
    if find_cycle(edges):
        return 0

    @cache
    def floor(module: str) -> int:
        return 1 + max((floor(wanted) for wanted in edges[module] if wanted in edges), default=0)

    return max((floor(module) for module in edges), default=0)


def ways_to(
    imports: Sequence[Import], modules: set[str], start: str, libraries: set[str]
) -> Iterator[str]:
    """Chains of imports that run when `start` is imported and end at one of `libraries`."""
    seen, open_ways = {start}, [[start]]
    while open_ways:
        way = open_ways.pop(0)
        for each in imports:
            if each.module != way[-1] or not each.at_start:
                continue
            if each.wanted.split(".")[0] in libraries:
                yield " -> ".join([*way, each.wanted])
            elif each.wanted in modules and each.wanted not in seen:
                seen.add(each.wanted)
                open_ways.append([*way, each.wanted])


def closure(
    imports: Sequence[Import],
    modules: set[str],
    starts: Sequence[str],
    extras: Collection[str] | None = None,
) -> set[str]:
    """The libraries that importing and using `starts` reaches: late imports count as well.

    extras: the optional parts that are installed; None takes all
    """
    seen, queue, libraries = set(starts), list(starts), set()
    while queue:
        module = queue.pop()
        for each in imports:
            if each.module != module or each.typing_only:
                continue
            if each.extra and extras is not None and each.extra not in extras:
                continue
            if each.wanted in modules:
                if each.wanted not in seen:
                    seen.add(each.wanted)
                    queue.append(each.wanted)
            else:
                libraries.add(each.wanted.split(".")[0])
    return libraries - set(sys.stdlib_module_names)


def find_branches(root: Path) -> list[str]:
    """ "fusion.place:63" for every place outside OWNERS where what happens next hangs on a name:
    compared with one, looked up by one, or a case of a match."""
    found = []
    for module, path in module_files(root).items():
        if any(f"{module}.".startswith(f"{owner}.") for owner in OWNERS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if _is_branch(node):
                found.append(f"{module}:{getattr(node, 'lineno', 0)}")
    return found


def _is_branch(node: ast.AST) -> bool:
    if isinstance(node, ast.Compare):
        return any(map(_names, [node.left, *node.comparators]))
    if isinstance(node, ast.Subscript):  # Literal["text", ...] lists names, it chooses nothing
        literal = isinstance(node.value, ast.Name) and node.value.id == "Literal"
        return _names(node.slice) and not literal
    if isinstance(node, ast.MatchValue):
        return _names(node.value)
    return False


def _names(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(_names, node.elts))
    return isinstance(node, ast.Constant) and node.value in NAMES


def main(root: Path) -> int:
    imports, files = read_imports(root), module_files(root)
    edges = graph(imports, set(files))
    broken: list[str] = []
    for layer in LAYERS:
        own = {name: wanted for name, wanted in edges.items() if name.split(".")[0] == layer}
        if not own:
            continue
        rooms = room_graph(edges, layer)
        arrows = sum(map(len, rooms.values()))
        print(
            f"{layer}: {len(own)} files in {len(rooms)} rooms on {count_floors(rooms)} floors, "
            f"{arrows} arrows between them"
        )
        cycle = find_cycle(rooms)
        broken += [f"rooms import each other: {' -> '.join(cycle)}"] if cycle else []
    cycle = find_cycle(edges)
    broken += [f"import cycle: {' -> '.join(cycle)}"] if cycle else []
    broken += [f"upward: {each}" for each in upward_imports(imports)]
    broken += [f"away from home: {each}" for each in imports_away_from_home(imports)]
    branches = find_branches(root)
    broken += [f"branches on a modality's or a backbone's name: {each}" for each in branches]
    rooms_of_branches = len({each.split(":")[0] for each in branches})
    print(f"branches on a name outside its room: {len(branches)} in {rooms_of_branches} files")
    print(f"import cycles, for type checkers too: {'one' if cycle else 'none'}")
    for line in broken:
        print(f"  {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
