"""Numbers of things, as a person writes them."""

from __future__ import annotations


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
