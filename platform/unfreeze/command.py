"""`unfreeze sweep …`: the entry scripts as one command, for who has installed a wheel and no checkout."""

import ast
import difflib
import importlib.metadata
import runpy
import sys
from pathlib import Path

from unfreeze.errors import StorageError
from unfreeze.report.streams import say, show, sound_streams

# Name → file below sweeps/.
COMMANDS = {
    "sweep": "vit_components",
    "plasticity": "plasticity",
    "report": "report",
    "predict": "predict",
    "finetune": "finetune",
    "probe": "probe",
    "paper": "paper",
}


def main() -> None:
    """Run the script of the first argument with the others. Exit code 2 for a name that there is not."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name not in COMMANDS:
        with sound_streams():
            try:
                _answer(name)
            except StorageError as error:  # standard output cannot be written
                say(f"error: {error}")
                sys.exit(2)
        return
    del sys.argv[1]
    runpy.run_path(str(find_scripts() / f"{COMMANDS[name]}.py"), run_name="__main__")


def _answer(name: str) -> None:
    usage = f"usage: unfreeze {{{','.join(COMMANDS)}}} …, each with --help"
    if name == "--version":
        show(f"unfreeze {importlib.metadata.version('unfreeze')}")
    elif name in ("--help", "-h"):
        rows = [f"  {name:<12}{_summary(file)}" for name, file in COMMANDS.items()]
        show("\n".join([usage, "", *rows]))
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        say(f"error: there is no command {name!r}{f'; did you mean {near[0]}?' if near else ''}\n{usage}")
        sys.exit(2)


def _summary(file: str) -> str:
    """The first line of a script's docstring."""
    text = (find_scripts() / f"{file}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def find_scripts() -> Path:
    """The folder of the entry scripts and of Hydra's configuration: in an installed package, or in the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "sweeps"
    return inside if inside.is_dir() else package.parent.parent / "sweeps"


def called(script: str) -> str:
    """How a user calls the script: ``unfreeze sweep``, or ``python sweeps/vit_components.py`` from a checkout."""
    path = Path(script).resolve()
    names = {file: name for name, file in COMMANDS.items()}
    is_inside = path.parent == Path(__file__).resolve().parent / "sweeps"
    return f"unfreeze {names[path.stem]}" if is_inside else f"python {script}"
