import numpy as np
import pandas as pd

from partialseg.study.table import render_study, study_markdown, study_table


def scores_of(dice: dict[tuple[str, str], list[float]]) -> pd.DataFrame:
    """Scores of some cases; Dice 0 is a missed organ, which has no distance."""
    rows = [
        {
            "dataset": dataset,
            "case": f"case_{number}",
            "organ": organ,
            "dice": value,
            **{name: 10 * (1 - value) if value else np.nan for name in ("hd_mm", "hd95_mm", "assd_mm")},
            "nsd": value,
            "outcome": "scored" if value else "missed",
            "hd95_definition": "directed_max",
            "nsd_tolerance_mm": 2.0,
        }
        for (organ, dataset), values in dice.items()
        for number, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def example() -> pd.DataFrame:
    return study_table(
        {
            "own": scores_of({("liver", "btcv"): [0.5, 0.5], ("spleen", "btcv"): [0.0, 0.8]}),
            "joint": scores_of({("liver", "btcv"): [0.7, 0.9], ("spleen", "btcv"): [0.2, 0.4]}),
        }
    )


def test_all_is_the_mean_over_organs_and_datasets():
    table = example()
    totals = table[table["organ"] == "all"].set_index("network")
    assert np.allclose(totals.loc[["own", "joint"], "dice_mean"], [0.45, 0.55])
    assert totals["missed"].tolist() == [1, 0]


def test_markdown_has_a_block_per_metric_and_the_best_in_bold():
    text = study_markdown("Title", example(), ["dice", "hd95_mm"], ["A note."])
    assert text.startswith("# Title\n\n## Dice\n")
    assert "| network | liver ∈ btcv | spleen ∈ btcv | all | missed |" in text
    assert "| own | 0.500 ± 0.000 | **0.400 ± 0.566** | 0.450 | 1 |" in text
    assert "| joint | **0.800 ± 0.141** | 0.300 ± 0.141 | **0.550** | 0 |" in text
    # The network that missed a spleen has a distance less: no best among unequal numbers of cases.
    assert "| own | 5.00 ± 0.00 | 2.00 (1 of 2) | 3.50 (3 of 4) | 1 |" in text
    assert "| joint | **2.00 ± 1.41** | 7.00 ± 1.41 | 4.50 | 0 |" in text
    assert text.endswith("- A note.\n")


def test_terminal_shows_the_mean_of_each_row():
    table = render_study("Title", example(), ["dice", "hd_mm"])
    assert [column.header for column in table.columns] == ["network", "Dice", "HD mm", "missed"]
    assert list(table.columns[1].cells) == ["0.450", "0.550"]
