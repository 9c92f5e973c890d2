"""Notebooks are in step with their source, show what they made, and run from top to bottom."""

import os
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: A path from the root of somebody's machine; nothing that a notebook shows may depend on where it was run.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:bin|etc|home|mnt|opt|private|root|tmp|usr|Users|var|work)/\S*|\b[A-Z]:\\\\?Users\S*"
)


def shown_text(notebook):
    """All that the outputs of a notebook say, but for the pictures."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield "\n".join(output.get("traceback", []))
            for kind, content in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield str(content)


def machine_paths(notebook):
    return [found for text in shown_text(notebook) for found in MACHINE_PATH.findall(text)]


def test_every_source_has_its_notebook():
    assert NOTEBOOKS, f"there are no notebooks in {FOLDER}"
    assert {path.stem for path in FOLDER.glob("*.py")} == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_has_the_cells_of_its_source(path):
    source = jupytext.read(path.with_suffix(".py"))
    notebook = jupytext.read(path)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ], f"{path.name} is not in step with {path.stem}.py: run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_run_once_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert path.stat().st_size < 1_000_000, "outputs are kept small, so that a checkout is"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_shows_no_path_of_the_machine_it_was_run_on(path):
    assert machine_paths(nbformat.read(path, as_version=4)) == []


def test_a_path_of_a_machine_would_be_seen():
    def notebook(text):
        output = nbformat.v4.new_output("stream", text=text)
        return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])])

    assert machine_paths(notebook("Report: /home/somebody/demo/report.html")) == [
        "/home/somebody/demo/report.html"
    ]
    assert machine_paths(notebook("written: predictions/tmp/img.nii.gz, /job:localhost/task:0")) == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    # A cell that fails raises CellExecutionError, which quotes the cell and its traceback.
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert os.listdir(tmp_path) == [], "a notebook leaves nothing behind where it is run"
