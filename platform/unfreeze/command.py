"""`unfreeze sweep …`: the entry scripts as one command, for who has installed a wheel and no checkout."""

import runpy
import sys
from pathlib import Path

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
        asks = name in ("--help", "-h")
        problem = "" if asks else f"error: there is no command {name!r}\n"
        print(
            f"{problem}usage: unfreeze {{{','.join(COMMANDS)}}} …, each with --help", file=None if asks else sys.stderr
        )
        sys.exit(0 if asks else 2)
    del sys.argv[1]
    runpy.run_path(str(find_scripts() / f"{COMMANDS[name]}.py"), run_name="__main__")


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
