from partialseg.report.run_facts import run_facts
from partialseg.training.config import TrainingConfig
from partialseg.training.runs import Run, write_run


def test_cases_are_counted_and_all_else_is_said_in_words(tmp_path):
    names = tuple(f"case_{number:05}" for number in range(1200))
    run = Run(
        tmp_path,
        TrainingConfig(name="x"),
        ("background", "liver"),
        (3.0, 1.5, 1.5),
        {"lits": ("liver",)},
        cases={"train": {"lits": names, "btcv": names[:2]}, "test": {"lits": names[:3]}},
    )
    write_run(run, {"keras": "3.1"}, {"lits": names[:7], "btcv": names[:1]}, {})
    facts = run_facts(tmp_path)["facts"]
    assert facts["cases"] == "train: lits 1,200, btcv 2; test: lits 3"
    assert facts["held out"] == "lits 7, btcv 1"
    assert facts["predicted whole"] == "none"
    assert facts["datasets"] == "lits: liver"
    assert facts["versions"] == "keras: 3.1"
