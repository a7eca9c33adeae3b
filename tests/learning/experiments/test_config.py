from __future__ import annotations

import pytest
import torch

from confs import parameters
from lt_pipeline.learning import methods
from lt_pipeline.learning.data.prepare import expected
from lt_pipeline.learning.data.profiles import profile_counts
from lt_pipeline.learning.experiments.config import (
    EvaluationConfig,
    ExperimentConfig,
    check_parameters,
    data_config,
    method_options,
    updated,
)
from lt_pipeline.learning.methods.more import MoreOptions
from lt_pipeline.learning.schema import UserError
from toys import PROJECT

ENVIRONMENTS = sorted(p.name for p in (PROJECT / "conf").iterdir() if p.is_dir())
# experts have parts of their own, which a transformer has not
NOT_OF = {"cifar100_lt_lift": {"darl", "dqroute", "lgla", "ride", "sade"}}


def there(environment):
    """Return its parameters, on other images of its kind where it wants files."""
    params = parameters(environment)
    on_files = params["data"].get("path")
    return {**params, "data": parameters("mosaics")["data"]} if on_files else params


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_is_valid_for_every_method(environment):
    params = there(environment)
    check_parameters(params)
    for method in methods.available():
        ExperimentConfig.resolve(method, params)


def test_every_method_has_its_file_of_parameters_and_every_file_its_method():
    files = {
        p.stem.removeprefix("parameters_") for p in (PROJECT / "conf/base").glob("parameters_*.yml")
    }
    assert files == {*methods.available(), "compare", "evaluate", "studies", "tune"}


def test_the_cifar_recipe_is_the_one_the_papers_figures_fit():
    config = ExperimentConfig.resolve("more", parameters("cifar100_lt"))
    training = config.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (200, 256, 0.3)
    assert (training.momentum, training.weight_decay, training.nesterov) == (0.9, 2e-4, False)
    assert (training.schedule, training.milestones, training.warmup_epochs) == (
        "step",
        (0.8, 0.9),
        5,
    )
    assert training.augment.autoaugment
    assert training.augment.cutout == 16
    assert config.model.backbone == "resnet32"
    assert data_config(parameters("cifar100_lt")).groups.sizes == (35, 35, 30)


@pytest.mark.parametrize("environment", [name for name in ENVIRONMENTS if "cifar" in name])
def test_btm_has_the_papers_fine_tuning_on_cifar(environment):
    params = parameters(environment)
    options = ExperimentConfig.resolve("btm", params).options
    # of ten classes a subset is 100 images, and a batch a quarter of it, too
    size = 256 if data_config(params).source == "cifar100" else 25
    for block in (options.branches, options.fc_classifier):
        assert (block.batch_size, block.learning_rate, block.weight_decay) == (size, 5e-3, 5e-4)


@pytest.mark.parametrize(
    ("environment", "classes", "largest", "images"),
    [
        ("base", 10, 124, 94),
        ("smoke", 10, 60, 40),
        ("cifar100_lt_btm", 100, 500, 949),
        ("cifar10_lt_btm", 10, 5000, 100),
    ],
)
def test_a_fine_tuning_of_btm_has_as_many_steps_an_epoch_as_the_papers(
    environment, classes, largest, images
):
    params = parameters(environment)
    branches = ExperimentConfig.resolve("btm", params).options.branches
    data = data_config(params)
    counts = profile_counts(
        data.profile,
        classes=classes,
        max_per_class=largest,
        imbalance_ratio=data.imbalance_ratio,
    )
    assert sum(min(n, branches.images) for n in counts) == images
    assert -(-images // branches.batch_size) == 4


@pytest.mark.parametrize("name", ["ood", "detectors"])
def test_a_name_twice_in_a_list_is_refused(name):
    known = {"ood": "uniform_noise", "detectors": "msp"}[name]
    with pytest.raises(ValueError, match=f"{name}: must differ .* has \\['{known}'\\] more"):
        ExperimentConfig.resolve("ce", {"evaluation": {name: [known, known]}})


def test_a_long_value_is_shown_in_part():
    with pytest.raises(ValueError, match="epochs: must be a whole number") as error:
        ExperimentConfig.resolve("ce", {"training": {"epochs": [1] * 100_000}})
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_ride_s_diversity_is_0_45_on_cifar_100_and_the_constructor_s_elsewhere(environment):
    params = parameters(environment)
    ride = ExperimentConfig.resolve("ride", params).options
    cifar100 = data_config(params).source == "cifar100"
    assert (ride.diversity, ride.temperature_gamma) == (0.45 if cifar100 else 0.2, 0.05)


def test_amplitudes_of_more_have_the_mean_over_classes_of_equation_2():
    """2 / C at C = 10 and 100, in the study and in the search."""
    params, tried = parameters("base"), [0, 0.02, 0.2, 2]
    assert params["studies"]["more_amplitude"]["sweep"]["values"] == tried
    assert params["more_search"]["options"]["amplitude"]["choices"] == tried


def test_a_methods_own_block_changes_single_values_of_what_is_shared():
    shared = {"training": {"epochs": 9, "warmup_epochs": 1, "augment": {"flip": 0.1}}}
    own = {"training": {"augment": {"cutout": 2}}, "model": {"head": "cosine"}}
    config = ExperimentConfig.resolve("more", {**shared, "more": own})
    assert config.training.epochs == 9
    assert (config.training.augment.flip, config.training.augment.cutout) == (0.1, 2)
    assert config.model.head == "cosine"
    assert isinstance(config.options, MoreOptions)


def test_merging_changes_neither_side():
    base, over = {"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}
    assert updated(base, over) == {"a": {"b": 3, "c": 2}}
    assert base == {"a": {"b": 1, "c": 2}}


def test_a_configuration_survives_json():
    config = ExperimentConfig.resolve("more", parameters("base"))
    assert ExperimentConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mor": {}}, "unknown parameter or method 'mor': did you mean 'more'"),
        ({"data": {"imbalance_ratio": 0.5}}, "data.imbalance_ratio: .*equal to 1, but got 0.5"),
        ({"data": {"source": "cifar1000"}}, "data.source: unknown source .* mean 'cifar100'"),
        ({"data": {"imbalance_ration": 5}}, "data: .*did you mean 'imbalance_ratio'"),
    ],
)
def test_wrong_shared_parameters_are_named_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        check_parameters(given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"more": {"options": {"rank": 0}}}, "more.options.rank: .*greater than 0, but got 0"),
        ({"more": {"options": {"amplitud": 1}}}, "more.options: .*did you mean 'amplitude'"),
        ({"more": {"option": {}}}, "more: .*did you mean 'options'"),
        ({"more": {"training": {"epochs": 0}}}, "training.epochs: .*greater than 0, but got 0"),
        ({"training": {"lerning_rate": 1}}, "training: .*did you mean 'learning_rate'"),
        ({"model": {"backbone": "resnet33"}}, "model.backbone: unknown backbone 'resnet33'"),
        ({"more": {"options": {"criterion": {"name": "poly"}}}}, "more.options.criterion: "),
        (
            {"dbm": {"model": {"head": "linear"}}},
            "dbm.options.criterion: the margin 'dbm' .*needs model.head = cosine, but it is lin",
        ),
        (
            {"more": {"options": {"criterion": {"name": "focal", "margin": {"name": "ldam"}}}}},
            "more.options.criterion: the margin 'ldam' .*needs model.head = cosine",
        ),
        (
            {"dbm": {"options": {"variant": "bs", "criterion": {"name": "focal"}}}},
            "variant 'bs' is the criterion 'balanced_softmax', but criterion.name is 'focal'",
        ),
        (
            {"evaluation": {"ood": ["svnh"]}},
            "evaluation.ood: unknown set 'svnh': did you mean 'svhn'",
        ),
        ({"evaluation": {"ood": ["folder:../x"]}}, "evaluation.ood: .*right under ood/"),
        ({"evaluation": {"detectors": ["odim"]}}, "evaluation.detectors: .*did you mean 'odin'"),
        (
            {"evaluation": {"ood": 5}},
            "^evaluation.ood: must be true, false or a list .each a text., but got 5$",
        ),
        ({"evaluation": {"ood": ["folder:a/b!"]}}, "evaluation.ood: .*letters, digits"),
        (
            {"evaluation": {"detectors": True}},
            "evaluation.detectors: must be a list .each a text., but got true",
        ),
        ({"evaluation": {"detectors": []}}, "evaluation.detectors: at least one detector"),
        ({"evaluation": {"detector": {"knn": 0}}}, "evaluation.detector.knn: "),
    ],
)
def test_wrong_parameters_of_an_experiment_are_named_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        ExperimentConfig.resolve("dbm" if "dbm" in given else "more", given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "method", "meant"),
    [
        ({"alpha": 0.3}, "dqroute", "dqroute.options.alpha"),
        ({"gamma": 0.3}, "ride", "ride.options.temperature_gamma"),
        ({"A": 2}, "more", "more.options.amplitude"),
        ({"K": 0.1}, "dbm", "dbm.options.criterion.margin.K"),
        ({"lambda": 1}, "dqroute", "dqroute.options.balance"),
        ({"N_D": 3}, "btm", "btm.options.branches.sets"),
        ({"epochs": 3}, "ce", "training.epochs"),
        ({"imbalance_ratio": 3}, None, "data.imbalance_ratio"),
        ({"more": {"A": 2}}, "more", "more.options.amplitude"),
        ({"more": {"options": {"A": 2}}}, "more", "more.options.amplitude"),
        ({"dbm": {"options": {"tau": 2}}}, "dbm", "dbm.options.criterion.margin.tau"),
        ({"data": {"IR": 2}}, "ce", "data.imbalance_ratio"),
    ],
)
def test_names_and_symbols_of_papers_point_to_their_parameters(given, method, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        check_parameters(given, method)


@pytest.mark.parametrize("block", ["training", "data", "more", "evaluation", "studies", "tune"])
@pytest.mark.parametrize("value", [None, [1], 3, "x"])
def test_a_block_cannot_be_dropped_for_what_the_code_says(block, value):
    with pytest.raises(ValueError, match=f"^{block}: must be a block of parameters, but got"):
        check_parameters({**parameters("base"), block: value})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"sampler": "class_balanced"}, "write training.sampler.name=class_balanced$"),
        ({"sampler": None}, "training.sampler: must be a block of parameters, but got null$"),
        ({"milestones": ["160"]}, "training.milestones: must be a number, but got '160'$"),
        ({"schedule": "cosin"}, "training.schedule: unknown schedule 'cosin': did you mean 'cos"),
    ],
)
def test_hints_say_what_to_write(given, line):
    with pytest.raises(ValueError, match=line):
        ExperimentConfig.resolve("ce", {"training": given})


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"profile": {"name": "pareto", "alpha": 1e-3}}, "data: profile: .*cannot be computed"),
        ({"profile": {"name": "pareto", "alpha": 1e18}}, "data: profile: .*cannot be computed"),
        ({"seed": 2**32}, "data.seed: must be below 2.32 in size"),
        ({"auxiliary": {"images": 10**12}}, "data.auxiliary.images: must be below 2.32"),
        ({"auxiliary": {"images": 10**9}}, "data.auxiliary.images: .*less than or equal"),
    ],
)
def test_what_no_library_could_do_is_refused_at_once(values, line):
    with pytest.raises(ValueError, match=line):
        data_config({"data": values})


def fits(method, change):
    params = updated(parameters("smoke"), change)
    ExperimentConfig.resolve(method, params).check_data(data_config(params))


NEIGHBOURS = {"detectors": ["knn"], "detector": {"knn": 241}}
PLANE = {"detectors": ["vim"], "detector": {"vim_dimensions": 64}}


@pytest.mark.parametrize(
    ("method", "change", "line"),
    [
        ("ce", {"training": {"batch_size": 300}}, "training.batch_size .* is 300 with 240 images"),
        ("ce", {"training": {"augment": {"crop_padding": 8}}}, "training.augment.crop_padding"),
        ("ce", {"training": {"augment": {"cutout": 17}}}, "training.augment.cutout .* 8 x 8"),
        ("ce", {"model": {"backbone": "resnet18", "weights": "default"}}, "weights .* 3 channels"),
        ("ce", {"model": {"weights": "default"}}, "model.weights=default needs one of resnet18"),
        ("ce", {"evaluation": NEIGHBOURS}, "evaluation.detector.knn .* at most the 240"),
        ("ce", {"evaluation": PLANE}, "evaluation.detector.vim_dimensions .* 64 dimensions"),
        ("ce", {"data": {"groups": {"rule": "split", "sizes": [9, 0, 0]}}}, "data.groups.sizes"),
        ("ce", {"data": {"groups": {"few_below": 200}}}, "data.groups.few_below must be <="),
        ("ce", {"data": {"max_per_class": 129}}, "data.max_per_class .* source has 128"),
        ("ce", {"data": {"imbalance_ratio": 61}}, "data.imbalance_ratio 61 .* must be <= 60"),
        ("lgla", {"lgla": {"options": {"experts": 12}}}, "lgla: options.experts .* at most 11"),
        ("dqroute", {"dqroute": {"options": {"tail_below": 300}}}, "dqroute: tail_below must be <"),
        (
            "sade",
            {"sade": {"options": {"aggregation": {"augment": {"crop_padding": 9}}}}},
            "sade.options.aggregation.augment.crop_padding",
        ),
    ],
)
def test_sizes_that_do_not_fit_the_data_are_known_before_anything_runs(method, change, line):
    with pytest.raises(ValueError, match=line) as error:
        fits(method, change)
    assert "\n" not in str(error.value)


# of the same kind and less to build, up to 86 million weights for each method
SMALLER = {"vit_base": "vit_tiny", "resnet32": "resnet8", "resnet20": "resnet8", "34": "18"}


def smaller(params):
    """Return parameters of a smaller network of the kind."""
    backbone = params["model"]["backbone"]
    for large, small in SMALLER.items():
        backbone = backbone.replace(large, small)
    return updated(params, {"model": {"backbone": backbone}})


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_conf_says_fits_its_data(environment):
    params = updated(there(environment), {"data": {"auxiliary": {"name": "gaussian_noise"}}})
    data = data_config(params)
    several, refused = expected(data).longtail.several, set()
    for method in methods.available():
        config = ExperimentConfig.resolve(method, params if method == "lift" else smaller(params))
        if not (several and methods.get(method).why_one_label(config.options)):
            try:
                config.check_data(data)
            except UserError:
                refused.add(method)
    assert refused == NOT_OF.get(environment, set())


def test_looking_whether_it_fits_changes_no_draw():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    fits("ce", {})
    assert torch.rand(1) == wanted


def test_sets_that_are_named_must_be_there_and_whole(tmp_path):
    data = data_config({})
    with pytest.raises(ValueError, match=r"^evaluation.ood: svhn is not there: no test_32x"):
        EvaluationConfig(ood=("svhn",)).check_files(data, tmp_path)
    EvaluationConfig(ood=True).check_files(data, tmp_path)
    EvaluationConfig(ood=("digits", "uniform_noise")).check_files(data, tmp_path)
    folder = tmp_path / "ood" / "mine"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^evaluation.ood: .*a.png is damaged"):
        EvaluationConfig(ood="folder:mine").check_files(data, tmp_path)


def test_difficulty_on_a_hold_out_needs_one():
    params = updated(
        parameters("base"), {"cdb_ce": {"options": {"criterion": {"difficulty": "validation"}}}}
    )
    experiment = ExperimentConfig.resolve("cdb_ce", params)
    with pytest.raises(ValueError, match="data.validation is 0"):
        experiment.check_data(data_config(params))
    experiment.check_data(data_config(updated(params, {"data": {"validation": 0.2}})))
    ExperimentConfig.resolve("cdb_ce", parameters("base")).check_data(data_config(params))


def test_the_dbm_recipe_is_the_papers():
    params = parameters("cifar100_lt_dbm")
    training = ExperimentConfig.resolve("dbm", params).training
    assert (training.epochs, training.batch_size, training.learning_rate) == (200, 64, 0.1)
    assert (training.momentum, training.weight_decay, training.nesterov) == (0.9, 2e-4, False)
    assert (training.schedule, training.warmup_epochs) == ("cosine", 5)
    assert (training.augment.autoaugment, training.augment.cutout) == (True, 16)
    contrastive = ExperimentConfig.resolve("bcl", params).training
    assert (contrastive.batch_size, contrastive.learning_rate) == (256, 0.15)
    options = ExperimentConfig.resolve("dbm", params).options
    assert (options.variant, options.criterion.name) == ("bs", "balanced_softmax")
    assert (options.criterion.margin.K, options.criterion.margin.tau) == (0.1, 1.0)
    assert ExperimentConfig.resolve("dbm", params).model.scale == 32
    assert data_config(params).groups.rule == "counts"


@pytest.mark.parametrize(
    ("variant", "name", "start"),
    [
        ("ce", "cross_entropy", None),
        ("cb", "class_balanced", 0.0),
        ("drw", "class_balanced", 0.8),
        ("bs", "balanced_softmax", None),
        ("bcl", "balanced_contrastive", None),
    ],
)
def test_a_variant_of_dbm_chooses_the_loss_behind_the_margin(variant, name, start):
    given = {"dbm": {"options": {"variant": variant, "criterion": {"margin": {"K": 0.3}}}}}
    config = ExperimentConfig.resolve("dbm", updated(parameters("base"), given))
    criterion = config.options.criterion
    assert criterion.name == name
    assert getattr(criterion, "start", None) == start
    assert criterion.margin.name == "dbm"
    assert criterion.margin.K == 0.3
    # what was resolved is understood again
    again = ExperimentConfig.model_validate(config.model_dump(mode="json"))
    assert again == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dbm": {"options": {"variant": "xx"}}}, "dbm.options.variant: unknown variant 'xx'"),
        ({"dbm": 3}, "dbm: must be a block of parameters, but got 3"),
        ({"training": 3}, "training: must be a block of parameters, but got 3"),
        ({"data": 3}, "data: must be a block of parameters, but got 3"),
        (
            {"dbm": {"options": {"criterion": {"margin": {"K": -1}}}}},
            r"dbm.options.criterion.margin.K: .*greater than or equal to 0, but got -1",
        ),
        (
            {"more": {"options": {"criterion": {"margin": {"name": "dbm"}}}}},
            "more.options.criterion: needs its name",
        ),
        (
            {"more": {"options": {"criterion": {"name": "focal", "margin": {"name": "dmb"}}}}},
            "more.options.criterion.margin: unknown margin 'dmb': did you mean 'dbm'",
        ),
    ],
)
def test_blocks_of_methods_that_are_not_run_are_checked_too(change, message):
    params = {**parameters("base"), **change}
    with pytest.raises(ValueError, match=message):
        check_parameters(params)
        ExperimentConfig.resolve("ce", params)


def test_ood_sets_are_one_name_several_all_or_none():
    def names(given):
        return EvaluationConfig.model_validate({"ood": given}).ood_names

    assert names("svhn") == ("svhn",)
    assert names(["svhn", "folder:mine"]) == ("svhn", "folder:mine")
    assert names(False) == ()
    assert {"svhn", "gaussian_noise", "cifar10"} < set(names(True))
    assert EvaluationConfig(detectors="knn").detectors == ("knn",)


def test_auxiliary_images_are_not_those_of_the_source():
    with pytest.raises(ValueError, match=r"data: auxiliary.name is 'cifar10', the source itself"):
        data_config({"data": {"source": "cifar10", "auxiliary": {"name": "cifar10"}}})
    with pytest.raises(ValueError, match=r"data.auxiliary.name: unknown set 'blurred'"):
        data_config({"data": {"auxiliary": {"name": "blurred"}}})


# A method on top of another


def on_top(**blocks):
    """Return the configuration of crt, without the files in conf/."""
    return ExperimentConfig.resolve("crt", {"model": {"backbone": "resnet8"}, **blocks})


def test_a_method_takes_over_the_block_of_the_one_it_stands_on():
    below = {
        "options": {"criterion": {"name": "focal", "gamma": 3.0}, "experts": 4},
        "model": {"head": "cosine", "scale": 20.0},
        "training": {"epochs": 30, "augment": {"cutout": 4}},
    }
    config = on_top(ride=below, crt={"options": {"pretrain": "ride"}})
    alone = ExperimentConfig.resolve("ride", {"model": {"backbone": "resnet8"}, "ride": below})
    assert config.options.pretrain_options == alone.options
    assert config.options.pretrain_options.criterion.gamma == 3.0
    assert config.options.pretrain_options.experts == 4
    assert (config.model, config.training) == (alone.model, alone.training)
    assert (config.model.head, config.training.epochs) == ("cosine", 30)
    # of the criterion, only the first stage's
    assert config.options.criterion.name == "cross_entropy"


def test_its_own_block_goes_before_at_every_depth():
    below = {
        "options": {"criterion": {"name": "focal", "gamma": 3.0}, "experts": 4, "shared": "all"},
        "model": {"head": "cosine", "scale": 20.0},
        "training": {"epochs": 30, "augment": {"cutout": 4, "flip": 0.25}},
    }
    own = {
        "options": {"pretrain": "ride", "pretrain_options": {"criterion": {"gamma": 5.0},
                                                             "experts": 2}},
        "model": {"scale": 10.0},
        "training": {"augment": {"cutout": 2}},
    }  # fmt: skip
    config = on_top(ride=below, crt=own, training={"epochs": 7, "momentum": 0.5})
    inner = config.options.pretrain_options
    assert (inner.criterion.gamma, inner.experts, inner.shared) == (5.0, 2, "all")
    assert (config.model.head, config.model.scale) == ("cosine", 10.0)
    training = config.training
    assert (training.epochs, training.momentum) == (30, 0.5)
    assert (training.augment.cutout, training.augment.flip) == (2, 0.25)
    # the block of ride stays ride's
    assert ExperimentConfig.resolve("ride", {"ride": below}).options.experts == 4


def test_a_chain_takes_over_all_blocks_the_outer_ones_first():
    blocks = {
        "mixup": {"options": {"mix": {"alpha": 0.3, "cutmix": False}},
                  "training": {"epochs": 50, "momentum": 0.7}, "model": {"head": "cosine"}},
        "mislas": {"options": {"classifier": {"epochs": 3}}, "training": {"epochs": 60}},
        "crt": {"options": {"pretrain": "mislas"}, "training": {"batch_size": 12}},
    }  # fmt: skip
    config = on_top(**blocks)
    assert config.options.built_on == ("mislas", "mixup")
    assert config.options.pretrain_options.classifier.epochs == 3
    assert config.options.pretrain_options.pretrain_options.mix.alpha == 0.3
    training = config.training
    assert (training.epochs, training.momentum, training.batch_size) == (60, 0.7, 12)
    assert config.model.head == "cosine"
    again = ExperimentConfig.model_validate(config.model_dump(mode="json"))
    assert again == config


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ({"crt": {"options": {"pretrain": "mixupp"}}},
         "^crt.options.pretrain: unknown method 'mixupp': did you mean 'mixup'"),
        ({"crt": {"options": {"pretrain": None}}}, "^crt.options.pretrain: unknown method null"),
        ({"crt": {"options": {"pretrain": "crt"}}},
         "^crt.options.pretrain: crt cannot be trained on top of itself"),
        ({"crt": {"options": {"pretrain": "mislas"}}, "mislas": {"options": {"pretrain": "crt"}}},
         "mislas.options.pretrain: crt cannot be trained on top of itself"),
        ({"crt": {"options": {"pretrain": "mislas"}}, "mislas": {"options": {"pretrain": "lws"}},
          "lws": {"options": {"pretrain": "crt"}}},
         "lws.options.pretrain: crt cannot be trained on top of itself"),
        ({"crt": {"options": {"pretrain": "mislas"}},
          "mislas": {"options": {"pretrain": "mislas"}}},
         "mislas.options.pretrain: mislas cannot be trained on top of itself"),
        ({"crt": {"options": {"pretrain": "ncm"}}},
         "crt.options: .*pretrain: ncm replaces its classifier after training.*choose another"),
        ({"crt": {"options": {"pretrain": "tau_norm"}}}, "tau_norm replaces its classifier"),
        ({"crt": {"options": {"pretrain_options": {"rank": 1}}}},
         r"crt.options.*pretrain_options.*unknown parameter 'rank'"),
        ({"crt": {"options": {"pretrain": "more", "pretrain_options": {"rank": 2}}}},
         r"crt.options.*pretrain_options.rank: .*less than 1, but got 2"),
        ({"crt": {"options": {"pretrain": "more"}}, "more": {"options": {"rank": 2}}},
         "more.options.rank: .*less than 1, but got 2"),
        ({"crt": {"options": {"pretrain": "dbm"}}, "model": {"head": "linear"}},
         "crt.options.*pretrain_options.criterion.*needs model.head = cosine, but it is linear"),
        ({"crt": {"options": {"classifier": {"epoch": 3}}}},
         "crt.options.classifier: .*did you mean 'epochs'"),
        ({"crt": {"options": {"classifier": {"epochs": 0}}}},
         "crt.options.classifier.epochs: .*greater than 0, but got 0"),
    ],
)  # fmt: skip
def test_wrong_methods_to_stand_on_are_named_in_one_line(blocks, message):
    with pytest.raises(ValueError, match=message) as error:
        on_top(**blocks)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("given", [3, "mix", ["mix"]])
def test_options_for_the_first_method_are_a_block(given):
    with pytest.raises(ValueError, match=r"crt.options.pretrain_options") as error:
        on_top(crt={"options": {"pretrain_options": given}})
    assert "\n" not in str(error.value)


def test_the_first_methods_own_first_method_can_be_changed_on_the_way():
    given = {"gml": {"options": {"pretrain": "mislas", "pretrain_options": {"pretrain": "ce"}}}}
    _, options = method_options("gml", {**given, "mixup": {"options": {"mix": {"alpha": 0.4}}}})
    assert options.built_on == ("mislas", "ce")
    assert options.handles_imbalance
    given["gml"]["options"]["pretrain_options"]["pretrain"] = "gml"
    with pytest.raises(ValueError, match="gml cannot be trained on top of itself"):
        method_options("gml", given)


def test_the_usual_first_methods_block_is_taken_over_where_none_is_named():
    block, options = method_options("mislas", {"mixup": {"training": {"epochs": 4}}})
    assert block.training == {"epochs": 4}
    assert options.pretrain == "mixup"
    # and it changes nothing of what was given
    given = {"mixup": {"options": {"mix": {"alpha": 0.4}}}, "mislas": {"options": {}}}
    method_options("mislas", given)
    assert given == {"mixup": {"options": {"mix": {"alpha": 0.4}}}, "mislas": {"options": {}}}


def test_a_criterion_of_another_name_begins_anew():
    base = {"criterion": {"name": "label_aware_smoothing", "head": 0.3, "tail": 0.0}}
    over = {"criterion": {"name": "geometric_mean"}}
    assert updated(base, over) == over
    assert updated(base, {"criterion": {"tail": 0.1}})["criterion"] == {
        "name": "label_aware_smoothing", "head": 0.3, "tail": 0.1,
    }  # fmt: skip
    assert updated({"sampler": {"name": "reverse", "defer": 0.5}}, {"sampler": {"name": "x"}}) == {
        "sampler": {"name": "x", "defer": 0.5}
    }
