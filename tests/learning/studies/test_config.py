from __future__ import annotations

import pytest

from confs import parameters
from lt_pipeline.learning.experiments.config import data_config
from lt_pipeline.learning.studies.config import StudyConfig
from lt_pipeline.learning.studies.plan import Plan
from lt_pipeline.pipeline_registry import makers

ARMS = {"a": {"method": "ce"}, "b": {"method": "dbm", "options": {"variant": "ce"}}}
# that measures a cost, and this is for folds
ONCE = ("more_overhead", "more_multilabel", "heads")
SWEEP = {"method": "dbm", "path": "options.criterion.margin.K", "values": [0.1, 0.3]}


@pytest.mark.parametrize(("environment", "seeds", "epochs"), [("base", 3, 60), ("smoke", 1, 2)])
def test_every_study_has_a_pipeline_and_its_arms_can_be_trained(environment, seeds, epochs):
    params = parameters(environment)
    assert set(params["studies"]) <= set(makers(params))
    for name, block in params["studies"].items():
        study = StudyConfig.read(block, f"studies.{name}")
        experiments = study.experiments(params)
        assert len(experiments) == len(study.all_arms()) > 1
        assert study.seeds == (1 if name in ONCE else seeds)
        said = Plan.of(name, params).in_words([], {})
        assert f" {epochs * study.seeds * len(experiments):,} epochs" in said
        for label, experiment in experiments.items():
            experiment.check_data(data_config(params))
            assert experiment.training.epochs == epochs
            assert f"{label} (seed 0" in said


def test_with_several_labels_mores_ablations_stand_on_bce():
    """As in its paper: figures 2 c, d and 3, table 11."""
    params = parameters("mosaics")
    for name in ("more_amplitude", "more_rank", "more_discrepancy", "more_parts"):
        study = StudyConfig.read(params["studies"][name], f"studies.{name}")
        arms = study.experiments(params)
        assert study.reference == "BCE"
        assert {arm.options.criterion.name for arm in arms.values()} == {"bce"}
        for arm in arms.values():
            arm.check_data(data_config(params))
        assert len(arms) == len(study_of_one(name).all_arms())


def study_of_one(name):
    return StudyConfig.read(parameters()["studies"][name], f"studies.{name}")


def test_table_5_takes_the_components_one_by_one():
    params = parameters()
    study = StudyConfig.read(params["studies"]["dbm_components"])
    arms = study.experiments(params)
    seen = []
    for experiment in arms.values():
        margin = experiment.options.criterion.margin
        seen.append(
            (
                experiment.options.criterion.name,
                experiment.model.head,
                margin.positives if margin else None,
            )
        )
    components = [("linear", None), ("cosine", None)]
    components += [("cosine", positives) for positives in ("none", "all", "hard")]
    losses = ("cross_entropy", "balanced_softmax")
    assert seen == [(loss, *component) for loss in losses for component in components]


def test_a_sweep_makes_an_arm_of_each_value_beside_the_baselines():
    study = StudyConfig.read({"title": "t", "arms": {"BS": ARMS["a"]}, "sweep": SWEEP}, "studies.s")
    arms = study.experiments(parameters())
    assert list(arms) == ["BS", "K = 0.1", "K = 0.3"]
    assert [arms[f"K = {k}"].options.criterion.margin.K for k in (0.1, 0.3)] == [0.1, 0.3]
    # what the sweep does not name is as in conf/
    assert arms["K = 0.3"].model.head == "cosine"
    assert arms["K = 0.3"].options.criterion.margin.positives == "hard"


def test_an_arm_goes_over_its_methods_own_block():
    params = parameters()
    params["dbm"]["options"]["criterion"]["margin"]["K"] = 0.25
    study = StudyConfig.read({"title": "t", "arms": ARMS}, "studies.s")
    assert study.experiments(params)["b"].options.criterion.margin.K == 0.25
    assert study.experiments(params)["b"].options.criterion.name == "cross_entropy"
    assert params["dbm"]["options"]["variant"] == "bs", "the parameters stay as they are"


def test_all_arms_are_judged_as_the_study_says_and_otherwise_as_usual():
    params = parameters()
    params["evaluation"]["landscape"]["seed"] = 3
    told = {"title": "t", "arms": ARMS, "evaluation": {"landscape": {"images": 4}}}
    for one in StudyConfig.read(told, "studies.s").experiments(params).values():
        how = one.evaluation.landscape
        assert (how.images, how.seed) == (4, 3)
    assert params["evaluation"]["landscape"]["images"] == 0, "the parameters stay as they are"
    wrong = StudyConfig.read({**told, "evaluation": {"lanscape": {}}}, "studies.s")
    with pytest.raises(ValueError, match="arm 'a': evaluation: unknown parameter 'lanscape'"):
        wrong.experiments(params)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"title": "t"}, "studies.s: needs arms or a sweep"),
        (3, "studies.s: .*but got 3"),
        ({"title": "t", "sweep": {**SWEEP, "values": [0.1, 0.1]}}, "that differ, but .*K = 0.1"),
        ({"title": "t", "arms": {"a b": ARMS["a"], "a+b": ARMS["a"]}}, "that differ"),
        ({"title": "t", "sweep": {**SWEEP, "path": "K"}}, "studies.s.sweep.path: must lie in"),
        ({"title": "t", "sweep": {**SWEEP, "method": "dmb"}}, "sweep.method: .*did you mean 'dbm'"),
        (
            {"title": "t", "arms": {"a": {"method": "cee"}}},
            "unknown method 'cee': did you mean 'ce'",
        ),
        ({"title": "t", "arms": ARMS, "seeds": 0}, "studies.s.seeds: .*equal to 1, but got 0"),
        ({"title": "t", "sweep": {**SWEEP, "values": []}}, "studies.s.sweep.values"),
        ({"title": "t", "arm": ARMS}, "did you mean 'arms'"),
        (
            {"title": "t", "arms": ARMS, "columns": ["S"]},
            "columns: unknown columns .S.: valid",
        ),
        (
            {"title": "t", "arms": {**ARMS, "c": None}, "against": "c"},
            "studies.s: against must be null or one of .*'a', 'b'.*, but is 'c'",
        ),
    ],
)
def test_wrong_studies_are_refused_in_one_line(block, message):
    with pytest.raises(ValueError, match=message) as error:
        StudyConfig.read(block, "studies.s")
    assert "\n" not in str(error.value)


def test_an_arm_with_a_wrong_parameter_is_refused():
    study = StudyConfig.read({"title": "t", "sweep": {**SWEEP, "path": "options.K"}}, "studies.s")
    with pytest.raises(ValueError, match="arm 'K = 0.1': dbm.options: unknown parameter 'K'"):
        study.experiments(parameters())


def test_differences_are_from_the_first_arm_or_the_one_that_is_named():
    assert StudyConfig.read({"title": "t", "arms": ARMS}, "studies.s").reference == "a"
    assert StudyConfig.read({"title": "t", "arms": ARMS, "against": "b"}).reference == "b"
    swept = StudyConfig.read({"title": "t", "sweep": SWEEP, "against": "K = 0.3"}, "studies.s")
    assert swept.reference == "K = 0.3"


def test_a_null_arm_is_taken_out():
    study = StudyConfig.read({"title": "t", "arms": {**ARMS, "c": None}}, "studies.s")
    assert list(study.all_arms()) == ["a", "b"]


def test_gml_as_released_is_the_second_stage_of_mislas_with_another_loss():
    params = parameters("cifar100_lt_btm")
    arms = StudyConfig.read(params["studies"]["btm_gml"]).experiments(params)
    for released, usual in (("GML released", "MiSLAS"), ("BTM GML released", "BTM")):
        one, other = arms[released].options, arms[usual].options
        assert (one.criterion.name, one.criterion.p) == ("geometric_mean", 1.0)
        assert one.model_copy(update={"criterion": other.criterion}) == other
    ours = arms["GML"].options.classifier
    assert (ours.sampler.name, ours.scale, ours.head_rate) == ("instance_balanced", False, 1.0)


def test_the_readings_of_fc_differ_in_nothing_else():
    params = parameters("cifar100_lt_btm")
    arms = StudyConfig.read(params["studies"]["btm_fc"]).experiments(params)
    stages = {name: arm.options.fc_classifier for name, arm in arms.items() if arm.options.has_fc}
    recipes = [(s.learning_rate, s.batch_size, s.weight_decay, s.restart) for s in stages.values()]
    text = (5e-3, 256, 5e-4)
    assert recipes == [(*text, False), (*text, True), (0.1, None, None, False)]
    assert set(arms) - set(stages) == {"no FC"}
    usual = arms["FC as the fine-tunings"].options
    for name in stages:
        changed = arms[name].options.model_copy(update={"fc_classifier": usual.fc_classifier})
        assert changed == usual
    assert arms["no FC"].options.classifier.epochs == 40, "as long at last as behind FC"


@pytest.mark.parametrize("env", ["cifar10_lt_btm", "cifar100_lt_btm"])
def test_every_study_can_be_read_in_every_environment(env):
    params = parameters(env)
    for name, block in params["studies"].items():
        assert StudyConfig.read(block, f"studies.{name}").experiments(params)
