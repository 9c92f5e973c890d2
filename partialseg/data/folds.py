"""Which training cases are held out of training, for validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from partialseg.data.prepared import Case, Prepared


class Fold(BaseModel):
    """One fold of a cross-validation over the training cases of every dataset.

    Attributes:
        folds: Into how many parts the cases of each dataset are dealt.
        fold: Which part is held out, from 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folds: int = Field(5, ge=2)
    fold: int = Field(0, ge=0)

    @field_validator("fold")
    @classmethod
    def _is_one_of_them(cls, fold: int, info: ValidationInfo) -> int:
        if fold >= info.data.get("folds", fold + 1):
            raise ValueError(f"expected one of 0 to {info.data['folds'] - 1}")
        return fold


def hold_out(prepared: Prepared, fold: Fold | None) -> Prepared:
    """The same cases, with those of one fold moved from the split "train" to "validation".

    The training cases of each dataset are dealt in the order of a hash of their names, so that a case stays in its fold
    on every machine. The only training case of a dataset stays in training.

    Args:
        prepared: The prepared cases.
        fold: Which cases are held out; None for none.

    Example:
        >>> Fold(folds=3, fold=2)
        Fold(folds=3, fold=2)
    """
    if fold is None:
        return prepared
    held_out = {
        (case.dataset, case.name)
        for dataset in prepared.datasets
        for case in _dealt(prepared.select(dataset, "train"), fold)
    }
    cases = (
        replace(case, split="validation") if (case.dataset, case.name) in held_out else case
        for case in prepared.cases
    )
    return replace(prepared, cases=tuple(cases))


def in_fixed_order(cases: Iterable[Case]) -> list[Case]:
    """The cases in the order of a hash of their names: at random, and the same on every machine."""
    return sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())


def _dealt(cases: list[Case], fold: Fold) -> list[Case]:
    """Those of a dataset's training cases that are in the fold."""
    if len(cases) < 2:
        return []
    in_order = in_fixed_order(cases)
    # With fewer cases than folds, a fold beyond the last case would hold out nothing: the cases come round again.
    return in_order[fold.fold % min(fold.folds, len(cases)) :: fold.folds]
