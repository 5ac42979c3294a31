"""The exported model in MLflow's own format: two flavors, signature, input example, what loading needs.

``python_function`` is the export itself, safetensors, loaded by `models.served`, whose code travels with it.
``pytorch`` is the network as torch.export writes it, which holds tensors and no pickled code.
"""

import ast
import importlib.metadata
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from unfreeze.report.card import EXAMPLE

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

_LOADER = "unfreeze.models.served"
_NEEDED = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "scipy", "timm", "torch", "torchvision")
_ROOT = Path(__file__).parent.parent.parent  # of the package's modules


def save_flavors(target: Path, export: Path, *, run_id: str, model_id: str) -> None:
    """Write the folder that becomes the logged model ``model_id`` of a run; ``export`` holds what a sweep exported.

    Raises:
        ModelError: the export cannot be loaded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of type hints of its own when this is imported
        import mlflow.pyfunc
    import torch
    from mlflow.models import Model
    from timm.data import resolve_model_data_config

    from unfreeze.models.export import Exported

    exported = Exported.open(export, torch.device("cpu"))
    example = export / EXAMPLE
    model = Model(run_id=run_id, model_id=model_id, model_uuid=model_id)
    with tempfile.TemporaryDirectory(prefix="unfreeze-code-") as folder:
        mlflow.pyfunc.save_model(
            str(target),
            mlflow_model=model,
            loader_module=_LOADER,
            data_path=str(export),
            code_paths=[str(_copy_code(Path(folder)))],
            signature=_signature(),
            input_example=[example.read_bytes()] if example.is_file() else None,
            pip_requirements=[f"{name}=={_version(name)}" for name in _NEEDED],
        )
    (target / "torch").mkdir()
    size = resolve_model_data_config(exported.module)["input_size"]
    # Two images: a batch of one would be taken for the only size there is.
    network = torch.export.export(
        exported.module, (torch.zeros(2, *size),), dynamic_shapes=({0: torch.export.Dim.AUTO},)
    )
    torch.export.save(network, target / "torch" / "model.pt2")
    model.add_flavor("pytorch", model_data="torch", pytorch_version=str(torch.__version__), code="code")
    model.save(str(target / "MLmodel"))


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Map

    answers = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability"),
        ColSpec(Map(DataType.double), "probabilities"),
    ]
    signature = ModelSignature(Schema([ColSpec(DataType.binary)]), Schema(answers))
    # Else MLflow makes a table of whatever comes, which it cannot of images; what is wrong the model says itself.
    signature._is_signature_from_type_hint = True
    return signature


def _version(name: str) -> str:
    """Without the local part: ``2.14.1+cpu`` is nowhere to be installed from."""
    return importlib.metadata.version(name).partition("+")[0]


def _copy_code(folder: Path) -> Path:
    """The modules that loading imports, as a package below ``folder``."""
    needed: set[Path] = set()
    _collect(_LOADER, needed)
    for path in needed:
        copy = folder / path.relative_to(_ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return folder / "unfreeze"


def _collect(name: str, needed: set[Path]) -> None:
    """Add the file of a module, those of the packages it lies in, and all that they import when they are imported."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        place = _ROOT.joinpath(*parts[:length])
        path = next((p for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()), None)
        if path is None or path in needed:
            continue
        needed.add(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("unfreeze"):
                for alias in node.names:
                    _collect(f"{node.module}.{alias.name}", needed)
