import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from partialseg.data.cards import read_card
from partialseg.data.classes import class_names
from partialseg.data.prepared import Case, Dataset, Prepared
from partialseg.data.relabel import prepared_values
from partialseg.errors import DataError
from partialseg.study.notes import table_notes
from partialseg.study.plan import (
    ANNOTATIONS,
    CARDS,
    TITLES,
    WEIGHTS,
    choose_networks,
    plan_study,
)
from partialseg.training.config import StageConfig, TrainingConfig, read_config
from partialseg.training.loss_config import LOSS_CONFIGS
from partialseg.training.network_config import UNetConfig

#: Table 1: what each kind of network is trained on, and which organs ∈ datasets it has a tick for.
TABLE_1 = {
    "f": {"btcv"},
    "p1": {"msd_liver"},
    "p2": {"msd_spleen"},
    "p3": {"msd_pancreas"},
    "p4": {"kits19"},
    "f+p1": {"btcv", "msd_liver"},
    "f+p2": {"btcv", "msd_spleen"},
    "f+p3": {"btcv", "msd_pancreas"},
    "f+p4": {"btcv", "kits19"},
    "all": set(CARDS),
}


@pytest.fixture(scope="module")
def paper() -> TrainingConfig:
    return read_config("paper")


def fake_prepared(network) -> Prepared:
    """What the plan asks of prepared data: which datasets there are, and which are fully annotated."""
    classes = class_names(network.data.organs)
    datasets = {
        name: Dataset(name, (), prepared_values(read_card(name), classes)) for name in network.data.cards
    }
    eye = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    cases = tuple(Case(name, "case", "train", (8, 8, 8), eye, (), (), "", "", "") for name in datasets)
    return Prepared(Path("prepared"), classes, (3.0, 1.5, 1.5), datasets, cases)


def datasets_of(network) -> set[str]:
    names = {"full": {"btcv"}, "all": set(network.data.cards)}
    return set().union(
        *(names[d] if isinstance(d, str) else d for d in (stage.config.datasets for stage in network.stages))
    )


def test_table_3_has_the_networks_of_table_1_with_three_losses_each_and_one_with_exclusion(paper):
    scored = [network for network in plan_study("table3", paper) if network.row is not None]
    kinds = [(network.name.split("-")[0], network.losses.terms) for network in scored]
    for kind in TABLE_1:
        assert [terms for name, terms in kinds if name == kind][:3] == [("mCE",), ("mDC",), ("mCE", "mDC")]
    assert len(scored) == 3 * len(TABLE_1) + 1
    assert scored[-1].losses.terms == ("mCE", "mDC", "eCE", "eDC")
    assert (scored[-1].losses.marginal, scored[-1].losses.exclusion) == (1, 2)
    assert all(network.losses.class_reduction == "sum" for network in scored)


def test_networks_draw_from_the_datasets_of_table_1(paper):
    for network in plan_study("table3", paper):
        kind = network.name.split("-")[0]
        assert datasets_of(network) == TABLE_1["f" if kind == "first" else kind], network.name


def test_every_row_of_table_3_has_every_organ_of_every_dataset_once(paper):
    cells = {(organ, card) for card in CARDS for organ in read_card(card).annotated}
    rows = {}
    for network in plan_study("table3", paper):
        if network.row is not None:
            rows.setdefault(network.row, []).extend(
                (organ, card)
                for card in network.scored_on
                for organ in read_card(card).annotated
                if organ in network.data.organs
            )
    assert len(rows) == 13
    for row, found in rows.items():
        assert len(found) == len(set(found)), row
        assert set(found) == cells, row


def test_table_4_shows_the_runs_of_table_3(paper):
    assert plan_study("table4", paper) == plan_study("table3", paper)


@pytest.mark.parametrize("table", TITLES)
def test_all_networks_of_a_table_take_the_same_number_of_steps(table, paper):
    networks = {network.name: network for network in plan_study(table, paper)}
    steps = {name: network.steps(paper.batch_size) for name, network in networks.items()}
    whole = {
        name: steps[name] + (steps[network.start_from] if network.start_from else 0)
        for name, network in networks.items()
        if network.row is not None
    }
    # Section 4.3: 120 epochs of 500 patches of F, then 80 epochs of 500 patches of each of five datasets.
    assert set(whole.values()) == {(120 * 500 + 80 * 500 * 5) // 2}


def test_patches_are_shared_by_the_datasets_of_a_network(paper):
    networks = {network.name: network for network in plan_study("table3", paper)}
    for name, expected in {
        "p1-ce": [500, 2500],
        "f+p1-ce": [250, 1250],
        "f-ce": [2500],
        "all-ce": [500],
    }.items():
        network = networks[name]
        config = network.training_config(paper, fake_prepared(network))
        assert [stage.patches_per_dataset for stage in config.stages] == expected
        assert config.losses == network.losses
        given = {stage.name: stage for stage in paper.stages}
        for stage in config.stages:  # all else is as in the config of the study
            kept = {"datasets", "patches_per_dataset"}
            assert stage.model_dump(exclude=kept) == given[stage.name].model_dump(exclude=kept)


def test_table_5_has_the_nine_ratios_after_the_same_first_stage(paper):
    beginning, *networks = plan_study("table5", paper)
    assert beginning.losses.terms == ("mCE", "mDC")
    assert [network.row for network in networks] == [
        "4:1",
        "3:1",
        "2:1",
        "1:1",
        "1:2",
        "1:3",
        "1:4",
        "1:0",
        "0:1",
    ]
    for network, weights in zip(networks, WEIGHTS, strict=True):
        assert (network.losses.marginal, network.losses.exclusion) == weights
        assert network.start_from == beginning.name
    assert networks[-1].losses.terms == ("eCE", "eDC")
    assert networks[-2].losses.terms == ("mCE", "mDC")


def test_what_tables_3_and_5_have_in_common_is_one_and_the_same_training(paper):
    first, second = ({n.name: n for n in plan_study(table, paper)} for table in ("table3", "table5"))
    shared = first.keys() & second.keys()
    assert shared == {"first-ce+dice", "all-ce+dice", "all-ce+dice+exclusion-1to2"}
    for name in shared:
        configs = [n.training_config(paper, fake_prepared(n)) for n in (first[name], second[name])]
        assert configs[0] == configs[1]


def test_table_6_hides_the_organs_of_the_papers_shares_of_cases(paper):
    networks = plan_study("table6", paper)
    assert [network.row for network in networks] == ["24/00", "19/05", "14/10", "9/15", "4/20"]
    for network, (full, single) in zip(networks, ANNOTATIONS, strict=True):
        assert network.data.cards == ("btcv",)
        assert network.data.single_organ == single / (full + single)
        assert [stage.config.datasets for stage in network.stages] == ["full", "all"]


def test_table_7_compares_losses_on_the_same_network_after_the_same_first_stage(paper):
    options = {"class_reduction": "sum", "include_background": False, "batch": True}
    paper = paper.model_copy(update={"losses": paper.losses.model_copy(update=options)})
    beginning, *networks = [network for network in plan_study("table7", paper) if network.kind is None]
    assert (beginning.name, beginning.row) == ("first-ce+dice", None)
    assert [network.losses.preset for network in networks[:3]] == [
        "prior_aware",
        "target_adaptive",
        "partial_supervision",
    ]
    assert {network.losses.preset for network in networks} == set(LOSS_CONFIGS)
    assert all(network.start_from == beginning.name for network in networks)
    assert {datasets_of(network) == set(CARDS) for network in networks} == {True}
    ours, others = networks[2], [*networks[:2], *networks[3:]]
    assert {network.stages for network in others} == {ours.stages}
    for network in others:
        expected = LOSS_CONFIGS[network.losses.preset]()
        if network.losses.preset in ("naive_background", "ignore_background"):
            expected = expected.model_copy(update=options)  # as ours
        assert network.losses == expected


def test_table_7_has_the_networks_of_the_methods_too_in_the_stages_that_ours_has(paper):
    paper = paper.model_copy(
        update={"network": UNetConfig(base_channels=8, deep_supervision=True, encoder="residual")}
    )
    networks = {network.name: network for network in plan_study("table7", paper)}
    rows = [network.row for network in networks.values() if network.row is not None]
    assert rows[2:6] == [
        "PIPO-FAN, network and loss",
        "ours, CE+Dice+exclusion",
        "DoDNet's dynamic head, masked sigmoid",
        "conditioned U-Net, masked sigmoid",
    ]
    beginning, ours = networks["first-ce+dice"], networks["all-ce+dice+exclusion-1to2"]
    for name, kind, preset in (
        ("pipo-fan", "pipo_fan", "target_adaptive"),
        ("dynamic-head", "dynamic_head", "masked_sigmoid"),
        ("conditioned", "conditioned", "masked_sigmoid"),
    ):
        own = networks[f"first-{name}"], networks[f"all-{name}"]
        assert own[1].start_from == own[0].name
        assert (own[0].row, own[0].stages, own[1].stages) == (None, beginning.stages, ours.stages)
        for network in own:
            config = network.training_config(paper, fake_prepared(network))
            assert (config.network.kind, config.losses.preset) == (kind, preset)
            assert (config.network.base_channels, config.network.deep_supervision) == (8, True)
            assert config.network.strides == paper.network.strides
            assert TrainingConfig.model_validate(config.model_dump()) == config
    assert ours.training_config(paper, fake_prepared(ours)).network == paper.network


def test_scales_of_pipo_fan_are_supervised_also_where_the_config_has_no_deep_supervision(paper):
    networks = {network.name: network for network in plan_study("table7", paper)}
    assert not paper.network.deep_supervision
    supervised = {
        name: networks[name].training_config(paper, fake_prepared(networks[name])).network.deep_supervision
        for name in ("all-pipo-fan", "all-dynamic-head", "all-conditioned")
    }
    assert supervised == {"all-pipo-fan": True, "all-dynamic-head": False, "all-conditioned": False}


def test_table_7_shares_our_network_with_table_3_and_says_what_it_does_not_compare(paper):
    shared = set(plan_study("table7", paper)) & {
        dataclasses.replace(network, row="ours, CE+Dice+exclusion") if network.row else network
        for network in plan_study("table3", paper)
    }
    assert {network.name for network in shared} == {"first-ce+dice", "all-ce+dice+exclusion-1to2"}
    assert "networks and losses of other methods" in TITLES["table7"]
    notes = " ".join(table_notes("table7", plan_study("table7", paper)))
    assert "a network of their own: PIPO-FAN, network and loss; DoDNet's" in notes
    assert "PaNN's rounds of training are not here" in notes
    assert "the first stage (F, with CE + Dice) are the same" in notes


def test_table_7_names_no_first_stage_where_there_is_none(paper):
    networks = plan_study("table7", paper.model_copy(update={"stages": paper.stages[1:]}))
    assert all(network.start_from is None and network.row for network in networks)
    notes = " ".join(table_notes("table7", networks))
    assert "the loss alone: network, patches and steps are the same" in notes
    assert "stage" not in notes


@pytest.mark.parametrize("table", TITLES)
def test_a_config_with_a_preset_of_its_own_is_refused(table, paper):
    other = paper.model_copy(update={"losses": LOSS_CONFIGS["target_adaptive"]()})
    with pytest.raises(DataError, match="its losses are target_adaptive, and a study chooses"):
        plan_study(table, other)


def test_unknown_table_is_refused(paper):
    with pytest.raises(ValueError, match="no study 'table8'"):
        plan_study("table8", paper)


def test_a_config_without_a_stage_on_all_datasets_is_refused(paper):
    stage = StageConfig(name="F", datasets="full", epochs=1, patches_per_dataset=1)
    named = StageConfig(name="named", datasets=("btcv",), epochs=1, patches_per_dataset=1)
    for stages in ((stage,), (named, *paper.stages)):
        with pytest.raises(DataError, match="its stages draw from"):
            plan_study("table3", paper.model_copy(update={"stages": stages}))


def test_without_a_first_stage_networks_begin_at_random(paper):
    networks = plan_study("table5", paper.model_copy(update={"stages": paper.stages[1:]}))
    assert len(networks) == 9
    assert all(network.start_from is None for network in networks)


def test_a_chosen_network_brings_the_one_it_starts_from(paper):
    networks = plan_study("table3", paper)
    assert [n.name for n in choose_networks(networks, ["p2-dice"])] == ["p2-dice"]
    assert [n.name for n in choose_networks(networks, ["all-dice"])] == ["first-dice", "all-dice"]
    assert choose_networks(networks, []) == networks
    with pytest.raises(ValueError, match="no network p9-ce"):
        choose_networks(networks, ["p9-ce"])


def test_plans_and_tables_need_no_tensorflow():
    code = (
        "import sys, partialseg.study.plan, partialseg.study.annotation, partialseg.study.table\n"
        "sys.exit(', '.join({'tensorflow', 'keras'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
