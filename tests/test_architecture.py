"""One direction of imports, and no TensorFlow where none is needed: read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "partialseg"

#: A module may import from its own row and from rows above.
LAYERS = (
    (
        *("errors", "wording", "storage", "files", "arrays", "progress"),
        *("machine", "locking", "parallel", "dask_cluster", "lazy", "compiling", "_environment"),
    ),
    ("data",),
    ("losses",),
    ("models",),
    ("training",),
    ("inference",),
    ("evaluation",),
    ("report",),
    ("study", "demo"),
    (
        "cli_options",
        "card_commands",
        "service_commands",
        "inspect_command",
        "plan_command",
        "predict_command",
        "evaluate_command",
        "compare_command",
        "table_command",
        "cli",
    ),
)
NEEDS_TENSORFLOW = (
    "data/pipeline.py",
    "data/dicom_tensorflow.py",
    "data/patch_service.py",
    "losses",
    "models",
    "training",
    "inference",
    "demo.py",
    "study",
)


def _layer(part: str) -> int:
    return next(index for index, parts in enumerate(LAYERS) if part in parts)


def _modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
    return names


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_earlier_parts(path):
    own = _layer(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "partialseg" and len(parts) > 1:
            assert _layer(parts[1]) <= own, f"{path} imports {name}, which comes later"


def test_what_needs_no_tensorflow_does_not_import_it():
    modules = [
        ".".join(("partialseg", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in _modules()
        if not str(path.relative_to(PACKAGE)).startswith(NEEDS_TENSORFLOW)
    ]
    assert "partialseg.data.prepare" in modules
    assert "partialseg.evaluation.metrics" in modules
    code = (
        f"import importlib, sys\n[importlib.import_module(m) for m in {modules}]\n"
        "sys.exit(', '.join({'tensorflow', 'keras'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_page_lists_every_module():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in _modules():
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        listed_as_a_whole = parts[0] == "study" or parts[:2] == ("data", "phantom")
        if not parts[-1].startswith("_") and not listed_as_a_whole:
            assert f"`{'.'.join(parts)}`" in page
