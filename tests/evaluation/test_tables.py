"""Markdown tables of several runs."""

from hf_clipplus.evaluation.tables import mean_and_spread, runs_table, under_name


def test_mean_and_spread():
    assert mean_and_spread([12.34]) == "12.3"
    assert mean_and_spread([10.0, 14.0]) == "12.0 ± 2.8"


def test_a_row_per_arm_and_the_chance_last():
    runs = {
        "ours": [{"hit": 0.1, "chance_hit": 0.02, "steps": 1000}, {"hit": 0.3, "chance_hit": 0.02, "steps": 1400}],
        "theirs": [{"hit": 0.05, "chance_hit": 0.02, "steps": 900}],
    }
    assert runs_table(runs, {"R@1": "hit"}, {"steps": "steps"}).splitlines() == [
        "| arm | R@1 | steps |",
        "| --- | ---: | ---: |",
        "| ours | 20.0 ± 14.1 | 1200 |",
        "| theirs | 5.0 | 900 |",
        "| chance | 2.0 |  |",
    ]


def test_scores_under_a_name_keep_chance_in_front():
    assert under_name("pets", {"top1": 0.5, "chance_top1": 0.1}) == {"pets_top1": 0.5, "chance_pets_top1": 0.1}
