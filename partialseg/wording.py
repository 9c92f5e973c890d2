"""Numbers, as a person writes them."""

from __future__ import annotations

from collections.abc import Iterable


def counted(number: int, one: str, many: str = "") -> str:
    """A number and what it counts, in the singular where it is 1.

    Args:
        number: How many there are.
        one: The word for one.
        many: For several; `one` with an s by default.

    Example:
        >>> counted(1, "case"), counted(0, "case"), counted(2000, "batch", "batches")
        ('1 case', '0 cases', '2,000 batches')
    """
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def times(numbers: Iterable[float]) -> str:
    """What something measures along each axis, such as a patch: voxels or mm.

    Example:
        >>> times((32, 64, 64)), times([3.0, 0.75, 0.75])
        ('32×64×64', '3×0.75×0.75')
    """
    return "×".join(f"{number:g}" for number in numbers)
