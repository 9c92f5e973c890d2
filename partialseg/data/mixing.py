"""How many patches each dataset gives: its share, and exact numbers epoch by epoch.

All of it is whole-number arithmetic, so that every machine finds the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

Mix = Literal["equal", "proportional", "inverse_sqrt"]

# The square root of a number of cases is taken in units of 2^-20.
_ROOT_BITS = 20


def dataset_weights(num_cases: Mapping[str, int], mix: Mix) -> dict[str, int]:
    """Whole numbers in proportion to which datasets give patches.

    - "equal": as many patches of every dataset (Shi et al., 2021).
    - "proportional": as many of every case, whatever its dataset.
    - "inverse_sqrt": a case of a dataset of n cases is drawn with a probability in proportion to `1 / sqrt(n)`, so
      the dataset gives patches in proportion to `sqrt(n)`: between the two others (Ulrich et al., MultiTalent,
      MICCAI 2023).

    Args:
        num_cases: Number of cases of each dataset, at least 1.
        mix: Which of the three.

    Raises:
        ValueError: If there is no dataset, or one has no case, or the mix is unknown.

    Example:
        >>> dataset_weights({"btcv": 25, "msd": 100}, "proportional")
        {'btcv': 25, 'msd': 100}
    """
    if not num_cases or min(num_cases.values()) < 1:
        raise ValueError(f"num_cases is {dict(num_cases)}, expected datasets with at least one case each")
    if mix == "equal":
        return dict.fromkeys(num_cases, 1)
    if mix == "proportional":
        return dict(num_cases)
    if mix == "inverse_sqrt":
        return {name: math.isqrt(num << 2 * _ROOT_BITS) for name, num in num_cases.items()}
    raise ValueError(f"mix is {mix!r}, expected equal, proportional or inverse_sqrt")


def dataset_shares(num_cases: Mapping[str, int], mix: Mix) -> dict[str, float]:
    """The share of the patches that each dataset gives; the sum is 1. See `dataset_weights`.

    Example:
        >>> dataset_shares({"btcv": 25, "msd": 100}, "proportional")
        {'btcv': 0.2, 'msd': 0.8}
        >>> {name: round(share, 3) for name, share in dataset_shares({"btcv": 25, "msd": 100}, "inverse_sqrt").items()}
        {'btcv': 0.333, 'msd': 0.667}
    """
    weights = dataset_weights(num_cases, mix)
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


class EpochQuotas:
    """Says how many patches each dataset gives in an epoch: what its share asks for, rounded up or down.

    The numbers of an epoch add up to its patches. After any number of epochs, every dataset has given less than one
    patch more or less than its share of all patches so far; a dataset whose share of an epoch is below one patch
    gives none in some epochs and one in others.

    What is left of an epoch after rounding down is dealt as processor time is dealt to tasks of given rates, one unit
    of time an epoch: by the earliest deadline among those whose turn has come, with the two tie-breaks of the
    algorithm PD2, which keep every deadline (Baruah et al., Algorithmica 15, 1996; Anderson and Srinivasan,
    J. Comput. Syst. Sci. 68, 2004).

    Args:
        weights: Whole numbers above 0, see `dataset_weights`.
        num_patches: Patches in an epoch.

    Example:
        >>> quotas = EpochQuotas({"btcv": 1, "msd": 3}, num_patches=2)
        >>> [quotas.of_epoch(epoch) for epoch in range(2)]
        [{'btcv': 1, 'msd': 1}, {'btcv': 0, 'msd': 2}]
    """

    def __init__(self, weights: Mapping[str, int], num_patches: int) -> None:
        self.names = tuple(weights)
        self._total = sum(weights.values())
        # Of every epoch, each dataset gives a whole number of patches, and `part / total` of one more.
        self._whole, self._parts = zip(
            *(divmod(num_patches * weight, self._total) for weight in weights.values()), strict=True
        )
        self._num_more = sum(self._parts) // self._total
        # After this many epochs all have given their exact share, and what comes then is what came first.
        self._period = self._total // math.gcd(self._total, *self._parts)
        # The last two places of the period that were asked for, and what each dataset gave beyond the whole numbers.
        self._reached = ((0, (0,) * len(weights)),) * 2

    def of_epoch(self, epoch: int) -> dict[str, int]:
        """The patches of each dataset in this epoch, counted from 0."""
        before, after = self.before(epoch), self.before(epoch + 1)
        return {name: after[name] - before[name] for name in self.names}

    def before(self, epoch: int) -> dict[str, int]:
        """The patches of each dataset in all epochs before this one."""
        periods, place = divmod(epoch, self._period)
        return {
            name: epoch * whole + periods * (self._period * part // self._total) + more
            for name, whole, part, more in zip(
                self.names, self._whole, self._parts, self._more_before(place), strict=True
            )
        }

    def _more_before(self, place: int) -> tuple[int, ...]:
        """What each dataset gave beyond the whole numbers before this place of the period."""
        start = (0, (0,) * len(self.names))
        reached, given = max(known for known in (*self._reached, start) if known[0] <= place)
        for epoch in range(reached, place):
            chosen = self._most_urgent(epoch, given)
            given = tuple(count + (index in chosen) for index, count in enumerate(given))
        self._reached = (self._reached[1], (place, given))  # at once, since several threads may ask
        return given

    def _most_urgent(self, epoch: int, given: tuple[int, ...]) -> set[int]:
        """The datasets that give one more patch in this epoch."""
        total, urgency = self._total, []
        for index, (part, count) in enumerate(zip(self._parts, given, strict=True)):
            if not part or count * total // part > epoch:
                continue  # its next turn has not come yet
            deadline = -(-(count + 1) * total // part)
            overlaps = (count + 1) * total % part > 0  # the turn after this one begins before this one ends
            # Where turns of two epochs follow one another without a gap, giving late now makes all of them late.
            last = 0
            if overlaps and 2 * part >= total:
                pauses = -(-deadline * (total - part) // total)
                last = -(-pauses * total // (total - part))
            urgency.append((deadline, not overlaps, -last, index))
        return {entry[-1] for entry in sorted(urgency)[: self._num_more]}
