"""What is kept of a training while it runs: the best weights, also where their file is lost."""

from dataclasses import fields

import numpy as np
import pytest

from partialseg.training.callbacks import Books
from partialseg.training.checkpoints import Checkpoints
from partialseg.training.history import Progress


@pytest.fixture
def books(tmp_path):
    """Books of a training whose third and fifth step had the best weights so far."""
    others = dict.fromkeys(field.name for field in fields(Books))
    books = Books(**{**others, "progress": Progress(), "best": Checkpoints(tmp_path / "best")})
    for step, dice in ((3, 0.4), (5, 0.6)):
        books.progress.steps = step
        books.keep_if_best(dice, [np.full(2, step, np.float32)])
    return books


def test_lower_dice_replaces_no_weights(books):
    books.progress.steps = 7
    books.keep_if_best(0.5, [np.zeros(2, np.float32)])
    assert (books.progress.best_dice, books.progress.best_steps) == (0.6, 5)
    assert [path.name for path in sorted(books.best.folder.iterdir())] == [
        "step000000003.npz",
        "step000000005.npz",
    ]


def test_best_weights_that_are_whole_stay_the_best(books, capsys):
    books.check_best()
    assert (books.progress.best_dice, books.progress.best_steps) == (0.6, 5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("lose", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_where_the_best_weights_are_lost_those_before_them_are_the_best(books, lose, capsys):
    lose(books.best.folder / "step000000005.npz")
    books.check_best()
    assert (books.progress.best_dice, books.progress.best_steps) == (0.4, 3)
    assert "the weights of step 5 are lost, the best before them take their place" in " ".join(
        capsys.readouterr().err.split()
    )


def test_where_all_of_them_are_lost_none_is_the_best(books, capsys):
    for path in books.best.folder.iterdir():
        path.write_bytes(b"")
    books.check_best()
    assert (books.progress.best_dice, books.progress.best_steps) == (None, 0)
    assert "the latest take their place" in capsys.readouterr().err
