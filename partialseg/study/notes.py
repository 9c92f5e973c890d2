"""What must be said below a table of a study."""

from __future__ import annotations

from collections.abc import Collection

from partialseg.study.plan import Network


def table_notes(name: str, networks: Collection[Network]) -> tuple[str, ...]:
    """What must be said below a table.

    Args:
        name: "table3" to "table7".
        networks: Those of the plan.

    Example:
        >>> table_notes("table3", ())
        ()
    """
    if name != "table7":
        return ()
    own = "; ".join(
        network.row for network in networks if network.kind is not None and network.row is not None
    )
    if any(network.start_from is not None for network in networks):
        differ = (
            "The other rows differ in the loss of the second stage alone: network, patches, steps and the first stage "
            "(F, with CE + Dice) are the same."
        )
    else:
        differ = "The other rows differ in the loss alone: network, patches and steps are the same."
    return (
        f"Rows with a network of their own: {own}. Each has the losses that its authors train it with, or nearest "
        "to those, from the first step on. Stages and channels of the network, patches and steps are those of the "
        "other rows; the number of weights is not. PIPO-FAN's scales are always supervised; else deep supervision is "
        "the config's. The conditioned U-Net and DoDNet are made of this package's blocks, and learn all annotated "
        "organs of a patch at once.",
        f"{differ} So the rows of PaNN's and PIPO-FAN's loss are their losses, not the methods. PaNN's rounds of "
        "training are not here, PIPO-FAN is in 3D, and the numbers are not those of the paper's Table 7.",
        "PaNN's prior is that of the fully annotated training cases, and its row has no Dice loss. Losses have the "
        "defaults of this package; learning rate and weights were tuned for none of the rows. The two that treat "
        "unlabelled organs as background, or ignore them, count and reduce the classes in Dice as ours does.",
    )
