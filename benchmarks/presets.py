"""The presets `paper` and `default` on the demo's data: the same network size, patch and number of steps.

    partialseg phantom RAW --preset demo
    partialseg prepare btcv msd_liver msd_spleen msd_pancreas kits19 --raw RAW --out PREPARED --spacing 6 4 4
    python benchmarks/presets.py PREPARED --out DIR [--steps 1000] [--seeds 0 1]

All are tried on the same held-out cases (fold 0 of 3) after each epoch. `paper` is section 4.3 with its rate of
1e-1, `paper, rate 1e-3` the same with a lower one, `default` the other preset, without augmentation and with a mean of
the weights over a hundred steps, since steps are few here; then `default` with the augmentation, and without the mean.
Each stage is as long as its share of all steps. With several seeds the curves and the table are means over them. Writes
presets.png and presets.md beside the runs. Stopped and started again, it goes on; about four minutes a row and seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

from partialseg.training import read_config, train
from partialseg.training.config import TrainingConfig

#: The demo's patch and network, which its data were made for.
SIZE = {"patch_size": (32, 64, 80), "batch_size": 2, "monitor_patches": 1}
NETWORK = {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)), "base_channels": 8}
VALIDATION = {"folds": 3, "fold": 0, "patches": 6, "volumes_every": 5}
EPOCHS = 20


def configs(steps: int) -> dict[str, TrainingConfig]:
    """What is compared; every one takes so many steps in 20 epochs."""
    paper, default = read_config("paper").model_dump(), read_config("default").model_dump()
    of_epoch = steps // EPOCHS
    for content in (paper, default):
        content |= SIZE
        content["network"] |= NETWORK
    paper["validation"] = {**VALIDATION, "keep": "last"}
    default["validation"] = {**VALIDATION, "keep": "best"}
    # 120 and 80 epochs in the paper; the second stage has five datasets.
    for content in (paper, default):
        full, every = content["stages"]
        content["stages"] = (
            {**full, "epochs": EPOCHS * 3 // 5, "patches_per_dataset": 2 * of_epoch},
            {**every, "epochs": EPOCHS * 2 // 5, "patches_per_dataset": 2 * of_epoch // 5},
        )
    optimizer = default["optimizer"]
    # Of so few steps: a mean over a hundred of them, and no augmentation, which pays over many more.
    short = {**default, "augmentation": None, "optimizer": {**optimizer, "ema": 0.99}}
    contents = {
        "paper": paper,
        "paper, rate 1e-3": {**paper, "optimizer": {**paper["optimizer"], "learning_rate": 1e-3}},
        "default": short,
        "default, augmented": {**short, "augmentation": default["augmentation"]},
        "default, no mean": {**short, "optimizer": {**optimizer, "ema": None}},
    }
    return {name: TrainingConfig.model_validate(content) for name, content in contents.items()}


def logs_of(options: argparse.Namespace) -> dict[str, list[pd.DataFrame]]:
    """Train every config with every seed; log.csv of each, by the config's name."""
    logs: dict[str, list[pd.DataFrame]] = {}
    for seed in options.seeds:
        for name, config in configs(options.steps).items():
            if options.only and name not in options.only:
                continue
            out = options.out / f"{name.replace(',', '').replace(' ', '_')}_{seed}"
            run = train(config.model_copy(update={"seed": seed}), options.prepared, out)
            logs.setdefault(name, []).append(pd.read_csv(run.folder / "log.csv"))
    return logs


def spread(values: list[float]) -> str:
    """The mean, and all where there are several."""
    each = f" ({', '.join(f'{value:.3f}' for value in values)})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{each}"


def main() -> None:
    """Train, plot, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", metavar="ROW", help="rows, where not all are wanted")
    options = parser.parse_args()
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = [
        "| preset | Dice of held-out volumes: best | last | Dice of patches: last | minutes |",
        "|---|---|---|---|---|",
    ]
    for name, of_seeds in logs_of(options).items():
        columns = ["loss", "dice_patches", "dice_volumes", "seconds"]
        log = sum(log[columns] for log in of_seeds) / len(of_seeds)
        epochs = range(1, len(log) + 1)
        left.plot(epochs, log["loss"], label=name)
        (line,) = right.plot(epochs, log["dice_patches"], alpha=0.4)
        volumes = log["dice_volumes"].dropna()
        right.plot(volumes.index + 1, volumes, "o-", color=line.get_color(), label=name)
        cells = (
            spread([one["dice_volumes"].max() for one in of_seeds]),
            spread([one["dice_volumes"].dropna().iloc[-1] for one in of_seeds]),
            spread([one["dice_patches"].iloc[-1] for one in of_seeds]),
            f"{log['seconds'].sum() / 60:.1f}",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    left.set(xlabel="epoch", ylabel="loss of training", yscale="log")
    right.set(xlabel="epoch", ylabel="mean Dice, held out (dots: whole volumes)", ylim=(0, 1))
    right.legend()
    figure.savefig(options.out / "presets.png", dpi=120)
    (options.out / "presets.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
