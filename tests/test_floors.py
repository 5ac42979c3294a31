"""The shape of the package: imports go down only, one door per library, no drawer modules."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
FLOORS = (
    ("errors",),
    ("records", "seeding"),
    ("config",),
    ("checks",),
    ("load",),
    ("storage",),
    ("components",),
    ("data.pixels",),
    ("data.sets",),
    ("models",),
    ("plasticity", "finetune"),
    ("cost", "probe"),
    ("slots",),
    ("evidence",),
    ("search",),
    ("report",),
    ("tracking",),
    ("sweep",),
    ("library", "command"),
)
FACE = "unfreeze.library"  # what `import unfreeze` offers, the one thing the package's own __init__ may import
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
# Floors that compute and never read or write: libraries that would let them, and floors that do.
NO_IO = {"evidence": ("boto3", "mlflow", "jinja2", "matplotlib", "rich", "pathlib", "unfreeze.storage")}
# Library → where it may be imported: a folder of the package, a module of it, or the entry scripts.
DOORS = {
    "boto3": ("platform/unfreeze/storage",),
    "botocore": ("platform/unfreeze/storage",),
    "mlflow": ("platform/unfreeze/tracking",),
    "vl_convert": ("platform/unfreeze/report/vega.py",),
    "optuna": ("platform/unfreeze/search",),
    "omegaconf": ("platform/unfreeze/load.py", "sweeps"),
    "hydra": ("sweeps",),
}
DRAWERS = {"utils", "common", "helpers"}


def modules(root: Path) -> list[Path]:
    return sorted([*(root / "platform").rglob("*.py"), *(root / "sweeps").rglob("*.py")])


def imported_names(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import of a file, inside functions too; ``from a import b`` gives ``a.b``."""
    folder = path.relative_to(root).parent.parts
    package = folder[1:] if folder[:1] == ("platform",) else folder
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def floor_of(parts: tuple[str, ...]) -> str:
    """The floor that a dotted place below the package lies on: the longest that is known, else its first name."""
    for length in range(len(parts), 0, -1):
        if (name := ".".join(parts[:length])) in HEIGHT:
            return name
    return parts[0] if parts else ""


def upward_imports(root: Path) -> list[str]:
    package = root / "platform" / "unfreeze"
    problems = []
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).with_suffix("").parts
        # A folder of floors (`data`) has no height of its own, and nothing in it but a docstring.
        own = floor_of(place[:-1] if place[-1] == "__init__" and len(place) > 1 else place)
        is_folder = any(name.startswith(f"{own}.") for name in HEIGHT)
        if own != "__init__" and own not in HEIGHT and not is_folder:
            problems.append(f"{path.relative_to(root)}: {own} has no floor")
            continue
        for line, name in imported_names(path, root):
            parts = tuple(name.split("."))
            if parts[0] != "unfreeze" or len(parts) == 1 or (floor := floor_of(parts[1:])) == own:
                continue
            if own == "__init__" and (name == FACE or name.startswith(f"{FACE}.")):
                continue
            if HEIGHT.get(floor, len(FLOORS)) > HEIGHT.get(own, -1):
                problems.append(f"{path.relative_to(root)}:{line} imports {name}")
    return problems


def input_and_output(root: Path) -> list[str]:
    """Imports of what reads or writes, on floors that only compute."""
    package = root / "platform" / "unfreeze"
    return [
        f"{path.relative_to(root)}:{line} imports {name}"
        for floor, forbidden in NO_IO.items()
        for path in sorted((package / floor).rglob("*.py"))
        for line, name in imported_names(path, root)
        if any(name == door or name.startswith(f"{door}.") for door in forbidden)
    ]


def foreign_doors(root: Path) -> list[str]:
    problems = []
    for path in modules(root):
        place = path.relative_to(root)
        for line, name in imported_names(path, root):
            doors = DOORS.get(name.split(".")[0])
            if doors is not None and not any(place.is_relative_to(door) for door in doors):
                problems.append(f"{place}:{line} imports {name}")
    return problems


def misplaced_files(root: Path) -> list[str]:
    found = [path for path in modules(root) if path.stem in DRAWERS or path.parent.name in DRAWERS]
    shadow = root / "platform" / "__init__.py"
    return [str(path.relative_to(root)) for path in [*found, *([shadow] if shadow.exists() else [])]]


Check = Callable[[Path], list[str]]
CHECKS: list[Check] = [upward_imports, input_and_output, foreign_doors, misplaced_files]


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A small tree with nothing wrong in it."""
    files = {
        "platform/unfreeze/__init__.py": '"""A package."""\ndef f():\n    from unfreeze import library\n',
        "platform/unfreeze/library.py": "from unfreeze.report import page\n",
        "platform/unfreeze/errors.py": "",
        "platform/unfreeze/records.py": "from unfreeze.errors import UnfreezeError\n",
        "platform/unfreeze/config.py": "from unfreeze import records\n",
        "platform/unfreeze/checks.py": "from unfreeze.config import Config\n",
        "platform/unfreeze/load.py": "import omegaconf\nfrom unfreeze.checks import contradictions\n",
        "platform/unfreeze/storage/s3.py": "import boto3\nfrom botocore.config import Config\n",
        "platform/unfreeze/data/__init__.py": "",
        "platform/unfreeze/data/sets/catalog.py": "from ..pixels import decode\nfrom . import splits as own\n",
        "platform/unfreeze/data/sets/splits.py": "from ...storage import s3\n",
        "platform/unfreeze/data/pixels/decode.py": "from unfreeze.errors import DataError\n",
        "platform/unfreeze/evidence/correlate.py": "import scipy.stats\nfrom unfreeze.records import Evidence\n",
        "platform/unfreeze/report/page.py": "import jinja2\nfrom unfreeze.evidence import correlate\n",
        "platform/unfreeze/sweep/run.py": "import unfreeze\nfrom unfreeze.report import page\n",
        "platform/unfreeze/tracking/mirror.py": "def f():\n    import mlflow\n",
        "platform/unfreeze/search/study.py": "from optuna.trial import TrialState\n",
        "sweeps/entry.py": "import hydra\nfrom omegaconf import DictConfig\nfrom unfreeze.sweep import run\n",
    }
    for name, text in files.items():
        write(tmp_path, name, text)
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_the_package_is_there() -> None:
    assert len(modules(REPOSITORY)) > 40


@pytest.mark.parametrize("check", CHECKS)
def test_the_package_keeps_its_shape(check: Check) -> None:
    assert check(REPOSITORY) == []


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_tree_passes(check: Check, planted: Path) -> None:
    assert check(planted) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("platform/unfreeze/storage/a.py", "from unfreeze.data.sets.catalog import load\n"),
        ("platform/unfreeze/storage/a.py", "import unfreeze.sweep.run\n"),
        ("platform/unfreeze/storage/a.py", "def f():\n    from unfreeze.report import page\n"),
        ("platform/unfreeze/storage/a.py", "from ..models import build\n"),
        ("platform/unfreeze/storage/a.py", "from .. import models\n"),
        ("platform/unfreeze/storage/a.py", "from unfreeze import components\n"),
        ("platform/unfreeze/storage/a.py", "from unfreeze.nowhere import f\n"),
        ("platform/unfreeze/seeding.py", "from unfreeze.config import Config\n"),
        ("platform/unfreeze/config.py", "from unfreeze.checks import contradictions\n"),
        ("platform/unfreeze/checks.py", "from unfreeze.load import load_config\n"),
        ("platform/unfreeze/errors.py", "from unfreeze.records import TrialSpec\n"),
        ("platform/unfreeze/__init__.py", "from unfreeze.errors import UnfreezeError\n"),
        ("platform/unfreeze/__init__.py", "from unfreeze import sweep\n"),
        ("platform/unfreeze/data/pixels/a.py", "from unfreeze.data.sets import catalog\n"),
        ("platform/unfreeze/data/pixels/a.py", "from ..sets.catalog import load\n"),
        ("platform/unfreeze/data/__init__.py", "from unfreeze.errors import DataError\n"),
        ("platform/unfreeze/finetune/a.py", "from unfreeze.cost.model import CostModel\n"),
        ("platform/unfreeze/evidence/a.py", "from unfreeze.search import planner\n"),
        ("platform/unfreeze/evidence/a.py", "from unfreeze.report.page import html_report\n"),
        ("platform/unfreeze/report/a.py", "from unfreeze.tracking import mirror\n"),
        ("platform/unfreeze/search/a.py", "from unfreeze.report import page\n"),
        ("platform/unfreeze/sweep/a.py", "from unfreeze.library import measure\n"),
        ("platform/unfreeze/attic/a.py", ""),
    ],
)
def test_a_planted_upward_import_is_found(planted: Path, name: str, text: str) -> None:
    write(planted, name, text)
    problems = upward_imports(planted)
    assert len(problems) == 1
    assert name in problems[0]


@pytest.mark.parametrize(
    "statement", ["from unfreeze.storage import ledger", "from pathlib import Path", "import rich.table"]
)
def test_planted_input_and_output_is_found(planted: Path, statement: str) -> None:
    write(planted, "platform/unfreeze/evidence/a.py", f"{statement}\n")
    assert len(input_and_output(planted)) == 1


@pytest.mark.parametrize("library", DOORS)
def test_a_planted_foreign_door_is_found(planted: Path, library: str) -> None:
    write(planted, "platform/unfreeze/models/a.py", f"def f():\n    from {library}.x import y\n")
    assert foreign_doors(planted) == [f"platform/unfreeze/models/a.py:2 imports {library}.x.y"]


def test_entry_scripts_have_no_door_to_the_stores(planted: Path) -> None:
    write(planted, "sweeps/a.py", "import boto3, mlflow\n")
    assert len(foreign_doors(planted)) == 2


@pytest.mark.parametrize(
    "name",
    [
        "platform/__init__.py",
        "platform/unfreeze/utils.py",
        "platform/unfreeze/data/common.py",
        "platform/unfreeze/helpers/a.py",
        "sweeps/utils.py",
    ],
)
def test_a_planted_misplaced_file_is_found(planted: Path, name: str) -> None:
    write(planted, name, "")
    assert misplaced_files(planted) == [name]
