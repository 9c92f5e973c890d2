import io

from rich.console import Console

from partialseg.evaluation import compare, organ_table, render_table
from partialseg.evaluation.rendering import layout, markdown


def test_the_table_names_its_definition_of_hd95(scores):
    assert "larger of the two directed 95th percentiles" in markdown(organ_table(scores))


def test_the_better_of_two_networks_is_marked(scores):
    worse = scores.assign(dice=scores["dice"] - 0.1, hd95_mm=scores["hd95_mm"] + 1)
    table = compare({"F alone": worse, "F ∪ P": scores})
    arranged = layout(table)
    marked = {arranged.headers[i] for row in arranged.rows for i, cell in enumerate(row) if cell.best}
    assert marked == {"F ∪ P: Dice", "F ∪ P: HD95 mm"}
    assert arranged.rows[-1][0].text == "all"


def test_hd95_of_unlike_cases_is_not_called_better(make_scores):
    misses = make_scores(("btcv", "a", "liver", 0.8, 3.0), ("btcv", "b", "liver", 0.0, None))
    finds = make_scores(("btcv", "a", "liver", 0.8, 3.0), ("btcv", "b", "liver", 0.5, 9.0))
    arranged = layout(compare({"misses": misses, "finds": finds}))
    best = [arranged.headers[i] for i, cell in enumerate(arranged.rows[0]) if cell.best]
    assert best == ["finds: Dice"]
    assert arranged.rows[0][arranged.headers.index("missed")].text == "1 / 0"


def test_the_terminal_table_holds_every_row(scores):
    rendered = render_table(compare({"F [alone]": scores, "F ∪ P": scores}), title="test cases")
    assert rendered.row_count == 4
    assert [str(column.header) for column in rendered.columns][:3] == [
        "organ ∈ dataset",
        "n",
        "F [alone]: Dice",
    ]


def test_the_mean_of_all_is_not_marked_where_a_network_lacks_an_organ(scores):
    liver = scores[scores["organ"] == "liver"]
    worse = scores.assign(dice=scores["dice"] - 0.1)
    arranged = layout(compare({"liver network": liver, "F": scores, "worse": worse}))
    assert any(cell.best for cell in arranged.rows[0])
    assert not any(cell.best for cell in arranged.rows[-1])


def test_in_brief_there_are_means_alone_and_no_counts_that_are_all_0(scores):
    arranged = layout(organ_table(scores), brief=True)
    assert arranged.headers == ["organ ∈ dataset", "n", "Dice", "HD mm", "HD95 mm", "missed", "both empty"]
    assert not any("±" in cell.text for row in arranged.rows for cell in row)


def test_in_brief_a_wide_table_fits_100_columns(make_scores):
    rows = [
        ("msd_pancreas", f"c{i}", "right_kidney", 0.9 - 0.001 * i if i else 0.0, 100.0 if i else None)
        for i in range(200)
    ]
    console = Console(width=100, file=io.StringIO())
    console.print(render_table(organ_table(make_scores(*rows))))
    lines = console.file.getvalue().splitlines()
    assert any("right kidney ∈ msd_pancreas" in line and "(199 of 200)" in line for line in lines)
