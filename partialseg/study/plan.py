"""Which networks a table of the paper compares: on which data, with which losses, for how many steps.

Every network of a table takes the same number of steps. A stage that draws N patches from each of five datasets
is, for a network with two datasets, one that draws 5 N / 2 from each of the two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from partialseg.data.classes import PAPER_ORGANS
from partialseg.data.prepared import Prepared
from partialseg.errors import DataError
from partialseg.training.config import StageConfig, TrainingConfig, stage_datasets
from partialseg.training.loss_config import LOSS_CONFIGS, LossConfig
from partialseg.training.network_config import NetworkConfig, network_of_kind

#: The fully annotated dataset F, by its card.
FULL = "btcv"
#: P1 to P4: card, organs, and the name of the data prepared for these organs alone.
PARTIAL: dict[str, tuple[str, tuple[str, ...], str]] = {
    "P1": ("msd_liver", ("liver",), "liver"),
    "P2": ("msd_spleen", ("spleen",), "spleen"),
    "P3": ("msd_pancreas", ("pancreas",), "pancreas"),
    "P4": ("kits19", ("left_kidney", "right_kidney"), "kidneys"),
}
CARDS = (FULL, *(card for card, _, _ in PARTIAL.values()))
#: On full annotations the marginal losses are the regular ones.
LOSSES: dict[str, tuple[str, ...]] = {"CE": ("mCE",), "Dice": ("mDC",), "CE+Dice": ("mCE", "mDC")}
#: marginal : exclusion, the rows of Table 5; the paper says ten and lists nine.
WEIGHTS: tuple[tuple[int, int], ...] = (
    (4, 1), (3, 1), (2, 1), (1, 1), (1, 2), (1, 3), (1, 4), (1, 0), (0, 1),
)  # fmt: skip
#: The best of Table 5, with which all other tables are made.
BEST_WEIGHTS = (1, 2)
#: Rows of Table 6: cases with all organs and with one organ, of 24 for training.
ANNOTATIONS: tuple[tuple[int, int], ...] = ((24, 0), (19, 5), (14, 10), (9, 15), (4, 20))
#: Rows of Table 7: how the network is called, and the preset of its losses. PaNN and PIPO-FAN are the paper's rows;
#: those after ours are further ways to learn from partial labels.
OTHERS: dict[str, tuple[str, str]] = {
    "PaNN's loss": ("all-prior-aware", "prior_aware"),
    "PIPO-FAN's loss": ("all-target-adaptive", "target_adaptive"),
}
#: Rows with a network of their own: how it is called, its kind, and the preset of the losses that its authors train it
#: with, or nearest to those. PIPO-FAN is the paper's row; the others are further networks for partial labels.
METHODS: dict[str, tuple[str, str, str]] = {
    "PIPO-FAN, network and loss": ("pipo-fan", "pipo_fan", "target_adaptive"),
}
FURTHER_METHODS: dict[str, tuple[str, str, str]] = {
    "DoDNet's dynamic head, masked sigmoid": ("dynamic-head", "dynamic_head", "masked_sigmoid"),
    "conditioned U-Net, masked sigmoid": ("conditioned", "conditioned", "masked_sigmoid"),
}
FURTHER: dict[str, tuple[str, str]] = {
    "masked sigmoid": ("all-masked-sigmoid", "masked_sigmoid"),
    "leaf-Dice": ("all-leaf-dice", "leaf_dice"),
    "label-set Dice": ("all-label-set-dice", "label_set_dice"),
    "unlabelled organs ignored": ("all-ignore-background", "ignore_background"),
    "unlabelled organs as background": ("all-naive-background", "naive_background"),
    "published code, summed logits": ("all-published-code", "published_code_with_summed_logits"),
}

TITLES = {
    "table3": "Table 3: Dice by training data and loss",
    "table4": "Table 4: Hausdorff distance by training data and loss",
    "table5": "Table 5: weights of marginal and exclusion loss",
    "table6": "Table 6: fewer annotations in F",
    "table7": "Table 7: networks and losses of other methods",
}
#: What is shown of each table, each in a block of its own.
METRICS = {
    "table3": ("dice",),
    "table4": ("hd95_mm", "hd_mm", "hd95_voxels"),
    "table5": ("dice", "hd95_mm", "hd_mm"),
    "table6": ("dice", "hd95_mm", "hd_mm"),
    "table7": ("dice", "hd95_mm", "hd_mm"),
}


@dataclass(frozen=True)
class TrainingData:
    """A prepared folder.

    Attributes:
        name: Its name.
        cards: The datasets.
        organs: The classes without background; other organs are background.
        single_organ: Share of the training cases of F that keep one organ alone (Table 6).
    """

    name: str
    cards: tuple[str, ...]
    organs: tuple[str, ...]
    single_organ: float = 0.0


@dataclass(frozen=True)
class Stage:
    """A stage of training.

    Attributes:
        config: Its config, on the datasets of the network.
        patches: In an epoch, over all these datasets; `config.patches_per_dataset` is that of Ψ_All.
    """

    config: StageConfig
    patches: int


@dataclass(frozen=True)
class Network:
    """One training.

    Attributes:
        name: Of its folders, and what `--only` takes.
        row: The row of the table that shows it, alone or with other networks, organ by organ; None where it
            only serves as the beginning of others.
        data: What it is trained on.
        losses: Which losses, with which weights.
        stages: In order.
        start_from: Name of the network with whose weights it begins; None for random ones.
        kind: Of its network, with the stages of the config's; None: the config's own.
    """

    name: str
    row: str | None
    data: TrainingData
    losses: LossConfig
    stages: tuple[Stage, ...]
    start_from: str | None = None
    kind: str | None = None

    def steps(self, batch_size: int) -> int:
        """Number of steps, without those of the network that it starts from.

        Patches that cannot be shared evenly by the datasets of a stage are rounded up in training.
        """
        return sum(stage.config.epochs * -(-stage.patches // batch_size) for stage in self.stages)

    @property
    def scored_on(self) -> tuple[str, ...]:
        """The datasets on whose test cases it is scored: all that annotate one of its organs."""
        return self.data.cards

    def network(self, base: TrainingConfig) -> NetworkConfig:
        """The network of its config."""
        return base.network if self.kind is None else network_of_kind(self.kind, base.network)

    def training_config(self, base: TrainingConfig, prepared: Prepared) -> TrainingConfig:
        """The config of its training: its losses, stages and kind of network, all else as in `base`.

        Raises:
            DataError: If the prepared data lack a dataset.
        """
        stages = []
        for stage in self.stages:
            each = -(-stage.patches // len(stage_datasets(stage.config, prepared)))
            stages.append(stage.config.model_copy(update={"patches_per_dataset": each}))
        # Nothing in it depends on the table, so that tables in one folder can share the network.
        named = {"name": f"{base.name}_{self.name}", "description": f"{self.name} of a study"}
        own = {"network": self.network(base), "losses": self.losses, "stages": tuple(stages)}
        return base.model_copy(update={**named, **own})


def plan_study(name: str, config: TrainingConfig) -> tuple[Network, ...]:
    """List the networks of a table, each after the one that it starts from.

    Args:
        name: "table3" to "table7".
        config: Network, optimiser, patches and the two stages of the network on all datasets.

    Raises:
        DataError: If the config has other stages, or losses of a preset of its own.
        ValueError: If there is no such table.

    Example:
        >>> from partialseg.training.config import read_config
        >>> [network.name for network in plan_study("table6", read_config("paper"))]
        ['f-24-0', 'f-19-5', 'f-14-10', 'f-9-15', 'f-4-20']
    """
    planners = {
        "table3": _data_and_losses,
        "table4": _data_and_losses,
        "table5": _weights,
        "table6": _annotations,
        "table7": _other_methods,
    }
    if name not in planners:
        raise ValueError(f"there is no study {name!r}; there are {', '.join(planners)}")
    if config.losses.preset != "partial_supervision":
        raise DataError(
            config.name,
            f"its losses are {config.losses.preset}, and a study chooses the losses of its networks itself",
            "take `preset` and its options out of `losses`",
        )
    return tuple(planners[name](config))


def choose_networks(networks: Collection[Network], only: Collection[str]) -> tuple[Network, ...]:
    """The networks of these names and those that they start from, in order; all if no name is given.

    Raises:
        ValueError: If there is no network of such a name.
    """
    by_name = {network.name: network for network in networks}
    unknown = [name for name in only if name not in by_name]
    if unknown:
        raise ValueError(f"there is no network {', '.join(unknown)}; there are {', '.join(by_name)}")
    wanted = set(only or by_name)
    wanted |= {start for name in wanted if (start := by_name[name].start_from) is not None}
    return tuple(network for network in networks if network.name in wanted)


def _data_and_losses(config: TrainingConfig) -> Iterable[Network]:
    """Tables 3 and 4."""
    beginnings = {loss: _beginning(config, loss) for loss in LOSSES}
    yield from (network for network in beginnings.values() if network is not None)
    _, joint = _split_stages(config)
    for loss in LOSSES:
        stages = _stages(joint, lambda _: "full")
        start = beginnings[loss] and beginnings[loss].name
        losses = _marginal(config, loss)
        yield Network(f"f-{loss.lower()}", f"Ψ_F, {loss}", _everything(), losses, stages, start)
    for with_full in (False, True):
        row = "Ψ_F+Pi" if with_full else "Ψ_Pi"
        for loss in LOSSES:
            for part in PARTIAL:
                yield _own_network(config, part, loss, with_full, f"{row}, {loss}")
    for loss in LOSSES:
        yield _on_all(config, _marginal(config, loss), f"all-{loss.lower()}", f"Ψ_All, {loss}", loss)
    yield _weighted(config, BEST_WEIGHTS, "Ψ_All, CE+Dice+exclusion")


def _weights(config: TrainingConfig) -> Iterable[Network]:
    """Table 5. The first stage is that of all: regular losses on F, also where the second has no marginal loss."""
    beginning = _beginning(config, "CE+Dice")
    if beginning is not None:
        yield beginning
    for marginal, exclusion in WEIGHTS:
        yield _weighted(config, (marginal, exclusion), f"{marginal}:{exclusion}")


def _annotations(config: TrainingConfig) -> Iterable[Network]:
    """Table 6."""
    first, joint = _split_stages(config)
    for full, single in ANNOTATIONS:
        name = f"f-{full}-{single}"
        data = TrainingData(name, (FULL,), PAPER_ORGANS, single / (full + single))
        stages = _stages((*first, *joint), lambda stage: stage.datasets)
        yield Network(name, f"{full}/{single:02}", data, _all_losses(config, BEST_WEIGHTS), stages)


def _other_methods(config: TrainingConfig) -> Iterable[Network]:
    """Table 7, with further networks and losses below its rows."""
    beginning = _beginning(config, "CE+Dice")
    if beginning is not None:
        yield beginning
    for row, (name, preset) in OTHERS.items():
        yield _on_all(config, _other(config, preset), name, row, "CE+Dice")
    for row, method in METHODS.items():
        yield from _method(config, row, *method)
    yield _weighted(config, BEST_WEIGHTS, "ours, CE+Dice+exclusion")
    for row, method in FURTHER_METHODS.items():
        yield from _method(config, row, *method)
    for row, (name, preset) in FURTHER.items():
        yield _on_all(config, _other(config, preset), name, row, "CE+Dice")


def _everything() -> TrainingData:
    return TrainingData("all", CARDS, PAPER_ORGANS)


def _beginning(config: TrainingConfig, loss: str) -> Network | None:
    """The stages on F, which all networks with all organs have in common; None where the config has none."""
    first, _ = _split_stages(config)
    if not first:
        return None
    stages = _stages(first, lambda _: "full")
    return Network(f"first-{loss.lower()}", None, _everything(), _marginal(config, loss), stages)


def _own_network(config: TrainingConfig, part: str, loss: str, with_full: bool, row: str) -> Network:
    """A network for the organs of one partial dataset alone, trained on it, or on it and F."""
    card, organs, data_name = PARTIAL[part]
    datasets = (FULL, card) if with_full else (card,)
    first, joint = _split_stages(config)
    name = f"f+{part.lower()}-{loss.lower()}" if with_full else f"{part.lower()}-{loss.lower()}"
    data = TrainingData(data_name, (FULL, card), organs)
    stages = _stages((*first, *joint), lambda _: datasets)
    return Network(name, row, data, _marginal(config, loss), stages)


def _weighted(config: TrainingConfig, weights: tuple[int, int], row: str) -> Network:
    """Ψ_All with both Dice and CE losses; its name is the same in all tables, so that they can share it."""
    marginal, exclusion = weights
    if not exclusion:
        return _on_all(config, _marginal(config, "CE+Dice"), "all-ce+dice", row, "CE+Dice")
    name = f"all-ce+dice+exclusion-{marginal}to{exclusion}"
    return _on_all(config, _all_losses(config, weights), name, row, "CE+Dice")


def _on_all(config: TrainingConfig, losses: LossConfig, name: str, row: str, begin_with: str) -> Network:
    beginning = _beginning(config, begin_with)
    _, joint = _split_stages(config)
    stages = _stages(joint, lambda stage: stage.datasets)
    return Network(name, row, _everything(), losses, stages, beginning and beginning.name)


def _method(config: TrainingConfig, row: str, name: str, kind: str, preset: str) -> Iterable[Network]:
    """A network of another kind with its authors' losses or nearest to those, in stages like ours, the first too."""
    first, joint = _split_stages(config)
    data, losses, start = _everything(), _other(config, preset), None
    if first:
        start = f"first-{name}"
        yield Network(start, None, data, losses, _stages(first, lambda _: "full"), kind=kind)
    yield Network(f"all-{name}", row, data, losses, _stages(joint, lambda stage: stage.datasets), start, kind)


def _marginal(config: TrainingConfig, loss: str) -> LossConfig:
    return config.losses.model_copy(update={"terms": LOSSES[loss], "marginal": 1.0, "exclusion": 0.0})


def _all_losses(config: TrainingConfig, weights: tuple[int, int]) -> LossConfig:
    """Marginal and exclusion losses of these weights; terms of weight 0 are left out."""
    marginal, exclusion = weights
    terms = (("mCE", "mDC") if marginal else ()) + (("eCE", "eDC") if exclusion else ())
    update = {"terms": terms, "marginal": float(marginal), "exclusion": float(exclusion)}
    return config.losses.model_copy(update=update)


def _other(config: TrainingConfig, preset: str) -> LossConfig:
    """A preset with its own defaults; regular losses on changed labels have the Dice options of ours."""
    losses = LOSS_CONFIGS[preset]()
    if preset not in ("naive_background", "ignore_background"):
        return losses
    options = ("class_reduction", "include_background", "batch")
    return losses.model_copy(update={option: getattr(config.losses, option) for option in options})


def _split_stages(config: TrainingConfig) -> tuple[tuple[StageConfig, ...], tuple[StageConfig, ...]]:
    """The stages on F that come first, and those from the first one on all datasets on."""
    number = next((i for i, stage in enumerate(config.stages) if stage.datasets == "all"), None)
    if number is None or any(stage.datasets not in ("full", "all") for stage in config.stages):
        datasets = ", ".join(str(stage.datasets) for stage in config.stages)
        problem = (
            f"its stages draw from {datasets}; a study takes `full` and `all`, at least one of them `all`"
        )
        raise DataError(config.name, problem, "set `datasets` of the stages in the config")
    return config.stages[:number], config.stages[number:]


def _stages(stages: Iterable[StageConfig], datasets_of) -> tuple[Stage, ...]:  # noqa: ANN001 (a function of a stage)
    """The same stages on other datasets, with the number of patches that Ψ_All draws in them."""
    return tuple(
        Stage(
            config=stage.model_copy(update={"datasets": datasets_of(stage)}),
            patches=stage.patches_per_dataset * (len(CARDS) if stage.datasets == "all" else 1),
        )
        for stage in stages
    )
