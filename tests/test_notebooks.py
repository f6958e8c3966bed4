"""The notebooks run from top to bottom and show what they say."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def executed(path, folder):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


def outputs_of(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of Jupyter's own, in another process
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_draws_its_figures(path, tmp_path):
    ours, stored = (outputs_of(notebook) for notebook in (executed(path, tmp_path), nbformat.read(path, 4)))
    assert not [output.text for output in ours if output.get("name") == "stderr"]
    pictures = [sum("image/png" in output.get("data", ()) for output in outputs) for outputs in (ours, stored)]
    assert pictures[0] == pictures[1] >= 3


def test_the_stored_notebook_names_no_machine():
    assert NOTEBOOKS
    for path in NOTEBOOKS:
        text = path.read_text()
        assert "/tmp/" not in text
        assert "/home/" not in text
