"""The layout, read from the source: imports go one way, and each heavy library has one home."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest first; a package imports itself and those before it.
LAYERS = ("pipeline", "fusion", "serving", "console", "cli")
HOMES: Mapping[str, tuple[str, ...]] = {
    "av": ("pipeline.decode", "pipeline.sample"),
    "h5py": ("pipeline.hdf5",),
    "ray": ("pipeline.parallel", "fusion.workers"),
    "typer": ("cli", "console"),
    "fastapi": ("serving",),
}
HEAVY = frozenset(
    "torch torchvision numpy scipy ray h5py av transformers pandas sklearn matplotlib "
    "jinja2".split()
)


@dataclass(frozen=True)
class Import:
    """One import statement. `at_start`: it runs when the module is imported."""

    module: str
    line: int
    wanted: str
    at_start: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.wanted}"


class _Reader(ast.NodeVisitor):
    def __init__(self, module: str, is_package: bool) -> None:
        self.module = module
        self.package = module.split(".") if is_package else module.split(".")[:-1]
        self.at_start = True
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
        """What only type checkers read is no import; the else branch is."""
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def _add(self, line: int, wanted: str) -> None:
        self.found.append(Import(self.module, line, wanted, self.at_start))


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
            found.append(Import(each.module, each.line, wanted, each.at_start))
    return found


def upward_imports(imports: Sequence[Import]) -> list[str]:
    rank = {layer: number for number, layer in enumerate(LAYERS)}
    return [
        str(each)
        for each in imports
        if (wanted := each.wanted.split(".")[0]) in rank
        and rank[wanted] > rank[each.module.split(".")[0]]
    ]


def imports_away_from_home(imports: Sequence[Import]) -> list[str]:
    return [
        str(each)
        for each in imports
        if (library := each.wanted.split(".")[0]) in HOMES
        and not any(f"{each.module}.".startswith(f"{home}.") for home in HOMES[library])
    ]


def graph(imports: Sequence[Import], modules: set[str]) -> dict[str, list[str]]:
    """Module to the modules it imports anywhere, packages on the way included."""
    edges: dict[str, list[str]] = {module: [] for module in sorted(modules)}
    for each in imports:
        if each.wanted in modules and each.wanted != each.module:
            edges[each.module].append(each.wanted)
    return edges


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


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(ROOT)


@pytest.fixture(scope="module")
def modules() -> set[str]:
    return set(module_files(ROOT))


def test_the_reader_sees_the_project(imports: list[Import], modules: set[str]) -> None:
    assert {
        "cli",
        "console.options",
        "pipeline.cache",
        "pipeline.encoders.text",
        "fusion.train",
    } <= modules
    wanted = {(each.module, each.wanted) for each in imports}
    assert ("pipeline.hdf5", "h5py") in wanted
    assert ("pipeline.encoders.choice", "pipeline.encoders.weights") in wanted
    assert any(not each.at_start for each in imports)


def test_imports_go_one_way(imports: list[Import]) -> None:
    assert upward_imports(imports) == []


def test_no_module_imports_itself_by_a_detour(imports: list[Import], modules: set[str]) -> None:
    assert find_cycle(graph(imports, modules)) is None


def test_each_heavy_library_has_one_home(imports: list[Import]) -> None:
    assert imports_away_from_home(imports) == []


@pytest.mark.parametrize(
    "start",
    ["fusion.train", "fusion.evaluate", "fusion.compare", "fusion.html_report", "fusion.model"],
)
def test_training_on_caches_imports_no_decoder_and_no_ray(
    imports: list[Import], modules: set[str], start: str
) -> None:
    assert list(ways_to(imports, modules, start, {"av", "ray"})) == []


def test_describing_a_cache_imports_no_decoder_and_no_ray(
    imports: list[Import], modules: set[str]
) -> None:
    """`meld info` must not wait for what it does not use."""
    assert list(ways_to(imports, modules, "pipeline.info", {"av", "ray", "torch"})) == []


def test_looking_at_a_corpus_waits_for_ray_only_where_everything_is_decoded(
    imports: list[Import], modules: set[str]
) -> None:
    start = "pipeline.doctor.examine"
    assert list(ways_to(imports, modules, start, {"ray", "torch"})) == []
    assert ("pipeline.doctor.inspection", "pipeline.parallel") in {
        (each.module, each.wanted) for each in imports
    }


def test_packages_begin_with_a_docstring_and_nothing_else() -> None:
    for module, path in module_files(ROOT).items():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, module
            assert ast.get_docstring(ast.Module(body, [])), module


@pytest.mark.heavy
def test_the_command_line_imports_nothing_heavy() -> None:
    """`meld --help` must be instant."""
    script = "import sys, cli; print(*{name.split('.')[0] for name in sys.modules})"
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    assert "typer" in finished.stdout.split()
    assert set(finished.stdout.split()) & HEAVY == set()


# ---------------------------------------------------------------- the checker itself is checked


@pytest.fixture
def plant(tmp_path: Path) -> "Plant":
    return Plant(tmp_path)


class Plant:
    """A small tree to hide a wrong import in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("pipeline", "fusion", "serving", "console"):
            self.write(f"{name}/__init__.py", '"""Words."""\n')
        self.write("pipeline/hdf5.py", "import h5py\nimport numpy as np\n")
        self.write("fusion/train.py", "from pipeline.hdf5 import h5py\nfrom pipeline import hdf5\n")
        self.write("serving/app.py", "import fastapi\nfrom fusion.train import hdf5\n")
        self.write("console/options.py", "import typer\n")
        self.write(
            "cli.py",
            "from console.options import typer\n\ndef main():\n    from serving import app\n",
        )

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def imports(self) -> list[Import]:
        return read_imports(self.root)

    @property
    def modules(self) -> set[str]:
        return set(module_files(self.root))


def test_a_clean_tree_passes(plant: Plant) -> None:
    assert upward_imports(plant.imports) == []
    assert imports_away_from_home(plant.imports) == []
    assert find_cycle(graph(plant.imports, plant.modules)) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pipeline/clips.py", "import fusion.train\n"),
        ("pipeline/clips.py", "from fusion import train\n"),
        ("pipeline/clips.py", "def work():\n    from fusion.train import cache\n"),
        ("pipeline/deep/clips.py", "from ...fusion import train\n"),
        ("fusion/data.py", "try:\n    import cli\nexcept ImportError:\n    cli = None\n"),
        ("fusion/data.py", "class Late:\n    from serving.app import fastapi\n"),
        ("serving/app.py", "def work():\n    from console.options import typer\n"),
        ("console/options.py", "def late():\n    from cli import main\n"),
    ],
)
def test_a_planted_upward_import_is_caught(plant: Plant, name: str, text: str) -> None:
    plant.write(name, text)
    [caught] = upward_imports(plant.imports)
    assert caught.startswith(name.removesuffix(".py").replace("/", "."))


def test_an_import_for_type_checkers_only_is_none(plant: Plant) -> None:
    plant.write(
        "pipeline/clips.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fusion.train\n",
    )
    assert upward_imports(plant.imports) == []


@pytest.mark.parametrize(
    "text", ["import h5py\n", "from h5py import File\n", "import h5py.h5f as low\n"]
)
def test_a_planted_second_home_is_caught(plant: Plant, text: str) -> None:
    plant.write("pipeline/hdf5_2.py", text)
    [caught] = imports_away_from_home(plant.imports)
    assert caught.startswith("pipeline.hdf5_2:1 imports h5py")


def test_a_planted_cycle_is_caught_and_told(plant: Plant) -> None:
    plant.write("pipeline/one.py", "from pipeline.two import x\n")
    plant.write("pipeline/two.py", "def late():\n    import pipeline.three\n")
    plant.write("pipeline/three.py", "from . import one\n")
    cycle = find_cycle(graph(plant.imports, plant.modules))
    assert cycle is not None
    assert set(cycle) == {"pipeline.one", "pipeline.two", "pipeline.three"}


def test_a_planted_way_to_a_decoder_is_told_step_by_step(plant: Plant) -> None:
    plant.write("pipeline/decode.py", "import av\n")
    plant.write("pipeline/hdf5.py", "import h5py\nfrom pipeline.decode import av\n")
    [way] = ways_to(plant.imports, plant.modules, "fusion.train", {"av"})
    assert way == "fusion.train -> pipeline.hdf5 -> pipeline.decode -> av"
    plant.write("pipeline/hdf5.py", "import h5py\ndef late():\n    import pipeline.decode\n")
    assert list(ways_to(plant.imports, plant.modules, "fusion.train", {"av"})) == []
