"""The house: which room may import which, and what every file keeps. A room is a folder of cxrjax, or a file beside
them."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests import mutants

PACKAGE = Path(__file__).parents[1] / "cxrjax"

# From the ground up. A room imports rooms of lower floors, and of its own floor only where no circle follows.
FLOORS = (
    {
        "checkpoint",
        "config",
        "keys",
        "named",
        "older",
        "optim",
        "parallel",
        "ranges",
        "rng",
        "runtime",
        "saved_config",
        "sizes",
        "track",
        "trackers",
    },
    {"drawing", "imaging", "losses", "text"},
    {"datasets", "models", "monitors"},
    {"accelerators", "phantom"},
    {"input", "interop"},
    {"report_encoders"},
    {"methods"},
    {"accumulate", "evals", "step"},
    {"reporting"},
    {
        "arrived",
        "checks",
        "command",
        "embedding",
        "encoder",
        "histograms",
        "initial",
        "lineage",
        "longer",
        "look",
        "model_card",
        "parity",
        "protocols",
        "recipes",
        "speed",
        "stand_ins",
        "tasks",
        "trained",
    },
    {
        "__main__",
        "benchmark",
        "doctor",
        "dry_run",
        "embed",
        "evaluate",
        "export",
        "exported",
        "figures",
        "grid",
        "library",
        "main",
        "plan",
        "prepare",
        "report_similarity",
        "train",
    },
)
# These know nothing of ours: they can be read, tested and taken elsewhere by themselves.
ALONE = ("drawing", "imaging", "text", "losses")


def room(module: str) -> str:
    """ "cxrjax.input.crops" → "input"."""
    return module.split(".")[1]


def imported() -> dict[str, dict[str, set[str]]]:
    """Room → rooms that it imports → the files that do; imports inside of functions count as well."""
    modules = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    found = defaultdict(lambda: defaultdict(set))
    for module, path in modules.items():
        if module == "cxrjax.__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "cxrjax":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names if alias.name.startswith("cxrjax.")]
            for name in names:
                if room(name) not in (room(module), "__version__"):
                    found[room(module)][room(name)].add(str(path.relative_to(PACKAGE)))
    return found


def test_every_room_stands_on_a_floor():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} == set().union(*FLOORS)


def test_no_room_imports_from_a_floor_above():
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    wrong = [
        f"{name} (floor {floor[name]}) imports {other} (floor {floor[other]}) in {', '.join(sorted(files))}"
        for name, others in imported().items()
        for other, files in others.items()
        if floor[other] > floor[name]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_rooms_import_each_other_in_a_circle():
    edges = {name: set(others) for name, others in imported().items()}

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for other in edges.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    assert not [name for name in edges if name in reached(name)]


def test_some_rooms_import_nothing_of_ours():
    edges = imported()
    assert not {name: dict(edges[name]) for name in ALONE if edges[name]}


def test_only_parallel_names_devices_to_methods():
    """Losses are written on global arrays: no axis names, no processes, no devices (cxrjax/methods/base.py)."""
    words = ("pmap", "axis_name", "process_index", "process_count", "jax.devices", "jax.local_devices")
    files = [path for name in ("methods", "losses", "models") for path in (PACKAGE / name).glob("*.py")]
    said = {path.name: [word for word in words if word in path.read_text()] for path in files}
    assert not {name: found for name, found in said.items() if found}


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef, bool]]:
    """Name, function and whether it is a method, of those that a module and its classes offer."""
    for outer in tree.body:
        if isinstance(outer, ast.FunctionDef) and not outer.name.startswith("_"):
            yield outer.name, outer, False
        elif isinstance(outer, ast.ClassDef) and not outer.name.startswith("_"):
            for inner in outer.body:
                special = isinstance(inner, ast.FunctionDef) and inner.name.startswith("__")
                if isinstance(inner, ast.FunctionDef) and (special or not inner.name.startswith("_")):
                    yield f"{outer.name}.{inner.name}", inner, True


def lacking(function: ast.FunctionDef, method: bool) -> list[str]:
    """What of a function has no type: parameters, but for the `self` of a method, and "return"."""
    given = function.args
    positional = [*given.posonlyargs, *given.args][method:]
    rest = [each for each in (given.vararg, given.kwarg) if each is not None]
    found = [each.arg for each in [*positional, *given.kwonlyargs, *rest] if each.annotation is None]
    return found + (["return"] if function.returns is None and function.name != "__init__" else [])


def test_every_public_function_says_its_types():
    """A type checker takes what is not annotated for anything, and finds no slip in it."""
    found = {
        f"{path.relative_to(PACKAGE)}:{function.lineno} {name}": lacking(function, method)
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, function, method in public_functions(ast.parse(path.read_text()))
    }
    assert len(found) > 500
    assert not {place: missing for place, missing in found.items() if missing}


def test_missing_types_are_found():
    code = "def f(a: int, *b, c=1, **d): ...\ndef _g(x): ...\nclass A:\n def __init__(self, e): ...\n def _h(self): ..."
    found = {name: lacking(*rest) for name, *rest in public_functions(ast.parse(code))}
    assert found == {"f": ["c", "b", "d", "return"], "A.__init__": ["e"]}


def test_every_folder_of_tests_is_a_package():
    """Else two test files of one name cannot be collected together."""
    folders = {path.parent for path in Path(__file__).parent.rglob("test_*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_every_slip_can_be_made():
    """Else a change of the code would take a slip out of the mutants unseen."""
    slips = mutants.read(mutants.LIST.read_text())
    counts = {slip.name: (PACKAGE / slip.file).read_text().count(slip.old) for slip in slips}
    assert len(counts) == len(slips), "two slips have one name"
    assert not {name: count for name, count in counts.items() if count != 1}
