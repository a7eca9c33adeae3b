"""One process and its study: what it proposes, stops, keeps, and takes up again."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import optuna
import pytest
import torch
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from lt_pipeline.learning.data.distribution import LongTail
from lt_pipeline.learning.experiments.experiment import Experiment, Sets
from lt_pipeline.learning.experiments.run import run_experiment
from lt_pipeline.learning.experiments.store import Store
from lt_pipeline.learning.schema import UnwritableError, UserError
from lt_pipeline.pipelines.tune import nodes
from lt_pipeline.pipelines.tune.task import Task
from lt_pipeline.reports.console import print_sweep
from lt_pipeline.tracking.processes import is_alive, this_process
from lt_pipeline.tuning import study
from lt_pipeline.tuning.pictures import study_figures
from lt_pipeline.tuning.search import Follower, Surplus, short
from lt_pipeline.tuning.study import (
    PROCESS,
    REASON,
    best_trial,
    kept_trials,
    objective,
    open_study,
    release_lost,
    suggest,
    to_start,
    trials_table,
)
from sweeps import parameters, sets, task
from toys import toy_card, toy_images, toy_labels

RATE = "training.learning_rate"
LINE = {"training": {"learning_rate": {"low": 0.001, "high": 1.0, "log": True}}}


def score(config):
    """A made-up hold-out that likes a learning rate of 0.1."""
    return 1 / (1 + abs(config["training"]["learning_rate"] - 0.1))


@pytest.fixture
def quick(monkeypatch):
    """Trials that train nothing; returns the learning rates that were tried."""
    tried = []

    def train(self, config, report, number):
        tried.append(config["training"]["learning_rate"])
        for epoch in (1, 2, 3):
            report(epoch, score(config))
        return score(config)

    monkeypatch.setattr(Task, "train", train)
    return tried


def rates(one):
    return [trial.params["training.learning_rate"] for trial in one.study.trials]


def test_a_seed_proposes_the_same_however_often_the_search_stops(tmp_path, quick):
    whole = task(tmp_path / "a", search=LINE, trials=14)
    whole.search().run()
    for trials in (3, 12, 14):
        stopped = task(tmp_path / "b", search=LINE, trials=trials)
        stopped.search().run()
    assert rates(stopped) == rates(whole)
    assert len(set(rates(whole))) == 14
    other = task(tmp_path / "c", search=LINE, trials=14, seed=1)
    other.search().run()
    assert not set(rates(other)) & set(rates(whole))


@pytest.mark.parametrize("pruner", ["none", "median", "hyperband"])
def test_no_two_trials_are_drawn_alike(tmp_path, quick, pruner):
    found = [task(tmp_path / s, epochs=27, search=LINE, trials=9, pruner=pruner) for s in "ab"]
    for one in found:
        one.search().run()
    assert len(set(rates(one))) == 9
    assert rates(found[0]) == rates(found[1])


def test_tpe_keeps_away_from_what_is_being_tried(tmp_path, quick, monkeypatch):
    def proposed(folder):
        """The rates of eight trials that are asked for before any of them ends."""
        one = task(tmp_path / folder, search=LINE, trials=10)
        one.search().run()
        return [suggest(one.sweep.space, one.study.ask())[RATE] for _ in range(8)]

    knows = proposed("a")
    monkeypatch.setattr(study, "TPESampler", partial(TPESampler, constant_liar=False))
    does_not = proposed("b")
    assert knows[0] == does_not[0]
    assert max(knows) / min(knows) > 10 > max(does_not) / min(does_not)


def test_tpe_learns_and_random_does_not(tmp_path, quick):
    def late(name):
        one = task(tmp_path / name, search=LINE, trials=40, sampler=name, pruner="none")
        one.search().run()
        return sum(t.value for t in one.study.trials[20:]) / 20

    assert late("tpe") > late("random") + 0.02


def test_a_finished_search_does_nothing_and_more_trials_go_on(tmp_path, quick):
    task(tmp_path, search=LINE, trials=3).search().run()
    task(tmp_path, search=LINE, trials=3).search().run()
    assert len(quick) == 3
    task(tmp_path, search=LINE, trials=5).search().run()
    assert len(quick) == 5


def test_trials_that_fall_behind_the_median_are_stopped(tmp_path, monkeypatch):
    steps = []

    def train(self, config, report, number):
        number = len(steps)
        steps.append(0)
        value = 0.1 if number == 7 else 0.5
        for epoch in range(1, 11):
            steps[-1] = epoch
            report(epoch, value)
        return value

    monkeypatch.setattr(Task, "train", train)
    one = task(tmp_path, epochs=10, search=LINE, trials=9)
    one.search().run()
    assert [t.state for t in one.study.trials].index(TrialState.PRUNED) == 7
    # not within the first fifth of the epochs
    assert steps[7] == 2
    assert steps[8] == 10
    table = trials_table(one.study, one.sweep.space)
    assert table["epochs"].tolist() == steps
    assert best_trial(one.study).number == 0


def of_several(folder):
    """A sweep over images of several labels."""
    params = parameters("bce", epochs=2, search=LINE, trials=2, pruner="none")
    train, held = toy_labels(), toy_labels(40, seed=1)
    counts = train.labels.sum(0).tolist()
    card = toy_card()
    longtail = replace(LongTail.from_counts(counts, train.class_names), images=len(train))
    made = replace(card, longtail=longtail)
    return replace(task(folder, params), card=made, sets=(train, held, train[torch.arange(0)]))


def test_trials_on_several_labels_are_judged_by_mean_average_precision(tmp_path, caplog, capsys):
    one, metric = of_several(tmp_path), "validation/mean_average_precision"
    with caplog.at_level("INFO"):
        one.search().run(after=Follower(one.study, one.sweep))
    assert objective(one.study).key == metric
    assert "mean average precision" in objective(one.study).axis
    table = trials_table(one.study, one.sweep.space)
    assert "validation/mean_recall" not in table
    for trial in one.study.trials:
        # what the last epoch gives is what the finished method gives: it has no other end
        assert trial.value == pytest.approx(trial.intermediate_values[2])
        assert trial.value > 0.4
    assert table[metric].max() == best_trial(one.study).value
    assert f"2/2  trial 1 · {short(one.study.trials[1].params)}: " in caplog.text
    drawn = study_figures(one.study, one.sweep.space, "t")
    assert "mean average precision" in drawn["history.png"].axes[0].get_ylabel()
    assert "mean average precision" in drawn["epochs.png"].axes[0].get_ylabel()
    best = {"study": "s", "metric": metric, "params": best_trial(one.study).params, "trial": 0}
    best |= {"trials": {"complete": 2}, "storage": "x"}
    print_sweep(table, best, {"test/mean_average_precision": 0.5}, one.card, "kedro run", "u")
    said = capsys.readouterr().out
    assert "hold-out mAP" in said
    assert "mAP 50.0 %" in said


def test_hyperband_stops_trials_too(tmp_path, monkeypatch):
    def train(self, config, report, number):
        for epoch in range(1, 28):
            report(epoch, score(config))
        return score(config)

    monkeypatch.setattr(Task, "train", train)
    one = task(tmp_path, epochs=27, search=LINE, trials=20, pruner="hyperband")
    one.search().run()
    states = {t.state for t in one.study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_training_that_diverges_counts_as_one_that_fell_behind(tmp_path, monkeypatch):
    def train(self, config, report, number):
        if config["training"]["learning_rate"] > 0.1:
            raise UserError("the loss term is nan")
        return score(config)

    monkeypatch.setattr(Task, "train", train)
    one = task(tmp_path, search=LINE, trials=6)
    one.search().run()
    pruned = [t for t in one.study.trials if t.state == TrialState.PRUNED]
    assert pruned
    assert all(t.params["training.learning_rate"] > 0.1 for t in pruned)
    assert pruned[0].user_attrs[REASON] == "the loss term is nan"
    assert len(one.study.trials) == 6


# epochs between looks at the hold-out: 0 is none before the end
@pytest.mark.parametrize("monitor_every", [0, 1])
def test_a_trial_whose_scores_are_no_numbers_is_stopped_with_the_reason(tmp_path, monitor_every):
    rates = {"training": {"learning_rate": {"choices": [0.05, 1e37]}}}
    params = parameters(search=rates, trials=4, sampler="random", pruner="none")
    # one step: no loss sees what it did to the weights, which are large, and finite
    params["training"] |= {"batch_size": 75, "monitor_every": monitor_every}
    one = task(tmp_path, params)
    one.search().run()
    states = {trial.params["training.learning_rate"]: trial for trial in one.study.trials}
    assert states[0.05].state == TrialState.COMPLETE
    assert states[1e37].state == TrialState.PRUNED
    assert states[1e37].user_attrs[REASON] == (
        "scores must be finite, but those of 16 of 16 images are nan or infinite: the training "
        "diverged; lower training.learning_rate, or set training.gradient_clip"
    )
    assert best_trial(one.study).params["training.learning_rate"] == 0.05
    assert not list((tmp_path / "trials").rglob("*.pt"))


def test_a_trial_whose_last_step_spoils_the_weights_is_stopped_with_the_reason(
    tmp_path, monkeypatch
):
    step = torch.optim.SGD.step

    def last(self, *arguments):
        step(self, *arguments)
        if self.param_groups[0]["initial_lr"] > 0.1:
            self.param_groups[0]["params"][0].data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.SGD, "step", last)
    rates = {"training": {"learning_rate": {"choices": [0.05, 0.2]}}}
    params = parameters(search=rates, trials=4, sampler="random")
    params["training"] |= {"batch_size": 75}
    one = task(tmp_path, params)
    one.search().run()
    states = {trial.params["training.learning_rate"]: trial for trial in one.study.trials}
    assert states[0.05].state == TrialState.COMPLETE
    assert states[0.2].state == TrialState.PRUNED
    assert states[0.2].user_attrs[REASON] == (
        "weights are nan or infinite in epoch 1 of stage 'train': lower training.learning_rate, or "
        "set training.gradient_clip"
    )


def test_no_trial_at_all_is_one_line_with_the_reason(tmp_path, monkeypatch):
    def train(self, config, report, number):
        raise UserError("the loss term is nan")

    monkeypatch.setattr(Task, "train", train)
    one = task(tmp_path, search=LINE, trials=2)
    one.search().run()
    with pytest.raises(ValueError, match="no trial .* went to its end; the last one: the loss"):
        best_trial(one.study)


@pytest.mark.parametrize("error", [UnwritableError("no space"), ValueError("zip: a bug")])
def test_what_no_other_values_would_mend_ends_the_sweep(tmp_path, monkeypatch, error):
    def train(self, config, report, number):
        raise error

    monkeypatch.setattr(Task, "train", train)
    one = task(tmp_path, search=LINE, trials=2)
    with pytest.raises(type(error), match=str(error)):
        one.search().run()
    assert not [t for t in one.study.trials if t.state == TrialState.PRUNED]


def test_a_bug_is_not_hidden(tmp_path, monkeypatch):
    def train(self, config, report, number):
        raise KeyError("a bug")

    monkeypatch.setattr(Task, "train", train)
    one = task(tmp_path, search=LINE, trials=2)
    with pytest.raises(KeyError, match="a bug"):
        one.search().run()


def test_of_two_that_ask_at_one_moment_the_second_is_one_too_many(tmp_path, quick):
    one, two = (task(tmp_path, search=LINE, trials=1) for _ in range(2))
    first, second = one.study.ask(), two.study.ask()
    with pytest.raises(Surplus):
        two.search().objective(second)
    two.study.tell(second, state=TrialState.FAIL)
    assert one.search().objective(first) > 0
    assert [t.number for t in kept_trials(one.study)] == [0]


def gone():
    """The record of a process that was, on this machine."""
    code = "import json; from lt_pipeline.tracking.processes import this_process as p; "
    printed = subprocess.run(
        [sys.executable, "-c", code + "print(json.dumps(p()))"], capture_output=True, check=True
    )
    return json.loads(printed.stdout)


def test_a_trial_whose_process_died_is_tried_again_with_its_values(tmp_path, quick):
    one = task(tmp_path, search=LINE, trials=3, retries=1)
    lost = one.study.ask()
    value = lost.suggest_float("training.learning_rate", 0.001, 1.0, log=True)
    lost.set_user_attr(PROCESS, gone())
    alive = one.study.ask()
    alive.suggest_float("training.learning_rate", 0.001, 1.0, log=True)
    alive.set_user_attr(PROCESS, this_process())
    assert release_lost(one.study, one.sweep.config) == [0]
    assert release_lost(one.study, one.sweep.config) == []
    states = [t.state for t in one.study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    assert to_start(one.study, one.sweep.config) == 2
    one.search().run()
    assert quick[0] == value
    table = trials_table(one.study, one.sweep.space).set_index("trial")
    assert table.loc[2, "repeats"] == 0
    assert len(quick) == 2


def test_a_trial_that_dies_again_and_again_is_given_up_and_counts(tmp_path, quick):
    one = task(tmp_path, search=LINE, trials=2, retries=1)
    record = gone()
    for _ in range(2):
        trial = one.study.ask()
        trial.suggest_float("training.learning_rate", 0.001, 1.0, log=True)
        trial.set_user_attr(PROCESS, record)
        assert release_lost(one.study, one.sweep.config) == [trial.number]
    assert to_start(one.study, one.sweep.config) == 1
    one.search().run()
    assert len(quick) == 1


class Killed(BaseException):
    """The end of a process that nothing catches."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, KeyError, Killed])
@pytest.mark.parametrize("lost", [3, 12])
def test_a_trial_that_is_lost_changes_none_of_the_others(tmp_path, monkeypatch, error, lost):
    tried, fail = [], [lost]

    def train(self, config, report, number):
        tried.append(number)
        if number in fail:
            fail.remove(number)
            raise error
        return score(config)

    monkeypatch.setattr(Task, "train", train)
    one, whole = (task(tmp_path / name, search=LINE, trials=14) for name in "ab")
    with pytest.raises(error):
        one.search().run()
    if error is Killed:
        release_lost(one.study, one.sweep.config, [this_process()["key"]])
    one.search().run()
    # it is tried again as what it was, at once
    assert tried == [*range(lost + 1), lost, *range(lost + 2, 15)]
    whole.search().run()
    failed, again = one.study.trials[lost : lost + 2]
    assert failed.state == TrialState.FAIL
    assert again.params == failed.params
    kept = [t.params for t in one.study.trials if t.state == TrialState.COMPLETE]
    assert kept == [t.params for t in whole.study.trials]


def test_a_trial_that_is_interrupted_again_and_again_is_given_up(tmp_path, monkeypatch):
    def train(self, config, report, number):
        raise KeyboardInterrupt

    monkeypatch.setattr(Task, "train", train)
    one = task(tmp_path, search=LINE, trials=1, retries=1)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            one.search().run()
    one.search().run()
    assert [t.state for t in one.study.trials] == [TrialState.FAIL] * 2


@pytest.mark.parametrize("reports", [True, False])
def test_a_process_goes_on_whose_trial_another_one_gave_up(tmp_path, monkeypatch, reports, caplog):
    asleep = [0]

    def train(self, config, report, number):
        if number in asleep:
            asleep.remove(number)
            release_lost(other.study, other.sweep.config, [this_process()["key"]])
            if reports:
                report(1, 0.5)
        return score(config)

    monkeypatch.setattr(Task, "train", train)
    one, other = (task(tmp_path, search=LINE, trials=2) for _ in range(2))
    one.search().run()
    assert "Trial 0 was given up by another process" in caplog.text
    states = [t.state for t in one.study.trials]
    assert states == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]
    assert one.study.trials[1].params == one.study.trials[0].params


def test_values_that_the_method_refuses_together_count_as_a_trial_that_fell_behind(tmp_path, quick):
    space = {"nesterov": {"choices": [False, True]}, "momentum": {"choices": [0.0, 0.9]}}
    one = task(tmp_path, search={"training": space}, trials=12, pruner="none")
    one.search().run()
    for trial in one.study.trials:
        refused = trial.params == {"training.nesterov": True, "training.momentum": 0.0}
        assert trial.state == (TrialState.PRUNED if refused else TrialState.COMPLETE)
        assert refused == ("nesterov" in trial.user_attrs.get(REASON, ""))
    assert len(quick) < len(one.study.trials) == 12


def test_trials_with_equal_values_do_not_disturb_each_other(tmp_path):
    one = task(tmp_path, epochs=3, search=LINE)
    config = one.sweep.experiment({"training.learning_rate": 0.05}).model_dump(mode="json")
    values = []

    def report(step, value):
        if step == 2:
            (state,) = tmp_path.rglob("*.pt")
            # another worker does the whole of it, and tidies up
            values.append(one.train(config, lambda step, value: None, 1))
            assert list(tmp_path.rglob("*.pt")) == [state]

    values.append(one.train(config, report, 0))
    assert values[0] == values[1]
    assert not list(tmp_path.rglob("*.pt"))


class Clock:
    """Time that passes only where something is waited for; then, another machine ends a trial."""

    def __init__(self, one, trial):
        self.one, self.trial, self.waited = one, trial, 0

    def time(self):
        return 1000.0

    def sleep(self, seconds):
        self.waited += 1
        self.one.study.tell(self.trial, 0.5)


def elsewhere(one, monkeypatch):
    """A trial that runs in another process, and the time until it ends."""
    trial = one.study.ask()
    trial.suggest_float("training.learning_rate", 0.001, 1.0, log=True)
    trial.set_user_attr(PROCESS, this_process())
    clock = Clock(one, trial)
    monkeypatch.setattr(nodes, "time", clock)
    return clock


@pytest.mark.parametrize("test_best", [True, False])
def test_trials_that_run_elsewhere_are_waited_for_also_behind_the_timeout(
    tmp_path, quick, monkeypatch, test_best
):
    one = replace(task(tmp_path, search=LINE, trials=1, test_best=test_best), deadline=1.0)
    clock = elsewhere(one, monkeypatch)
    nodes._do_trials(one)
    # one that does not judge has else no best trial to end with
    assert clock.waited == 1
    assert best_trial(one.study).value == 0.5


def test_a_machine_that_helps_does_not_wait_once_there_is_a_best_trial(
    tmp_path, quick, monkeypatch
):
    params = parameters(search=LINE, trials=2, test_best=False)
    one = task(tmp_path, params)
    clock = elsewhere(one, monkeypatch)
    _, best, _ = nodes.search(params, one.card, *one.sets, tmp_path)
    assert clock.waited == 0
    assert (best["trial"], best["to_start"], best["running"]) == (1, 0, 1)


@pytest.mark.parametrize(("to_start", "running"), [(0, 1), (1, 0)])
def test_the_test_set_is_not_read_while_trials_are_left(to_start, running, caplog):
    best = {"to_start": to_start, "running": running}
    with caplog.at_level("INFO"):
        assert nodes.test_best(parameters(), {}, best, *[None] * 6) == {}
    assert "The test set is not read: 1 trials are left" in caplog.text


def test_a_number_that_another_process_has_now_is_not_the_process():
    record = this_process()
    assert is_alive(record)
    assert not is_alive({**record, "created": record["created"] - 100})
    assert not is_alive({**record, "host": "elsewhere"})
    assert not is_alive(gone())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"search": {"training": {"learning_rate": {"low": 0.002, "high": 1.0, "log": True}}}},
            r"another search space: training.learning_rate was low 0.001, high 1.0, log True and "
            r"is low 0.002, high 1.0, log True now; .* tune.study=NAME",
        ),
        (
            {"search": LINE, "epochs": 2},
            "other fixed parameters: training.epochs was 1 and is 2 now",
        ),
    ],
)
def test_a_study_of_the_same_name_with_another_space_is_one_line(tmp_path, changes, message):
    assert task(tmp_path, search=LINE).study.study_name == "ce-digits-lt-ir10"
    with pytest.raises(ValueError, match=message):
        _ = task(tmp_path, **changes).study
    params = parameters(study="other", **changes)
    assert task(tmp_path, params).study.study_name == "other"


def test_a_study_of_other_data_is_one_line(tmp_path):
    one = task(tmp_path, search=LINE)
    _ = one.study
    with pytest.raises(ValueError, match="other data: data_hash was 000"):
        open_study(one.sweep, "1" * 64, tmp_path)


def test_a_damaged_file_is_one_line(tmp_path):
    _ = task(tmp_path, search=LINE).study
    journal = tmp_path / "journal.log"
    journal.write_text(journal.read_text() + "{half a li\n{}\n")
    with pytest.raises(ValueError, match="journal.log is damaged .*delete it"):
        _ = task(tmp_path, search=LINE).study


def test_sqlite_is_refused(tmp_path):
    with pytest.raises(ValueError, match="SQLite file, which loses trials"):
        _ = task(tmp_path, storage="sqlite:///x.db", search=LINE).study


def test_a_storage_that_is_not_there_is_one_line_without_the_password(tmp_path):
    url = "postgresql://someone:secret@127.0.0.1:1/none"
    with pytest.raises(ConnectionError, match=r"tune.storage postgresql://someone:\*\*\*@") as e:
        _ = task(tmp_path, storage=url, search=LINE).study
    assert "secret" not in str(e.value)
    assert "\n" not in str(e.value)
    with pytest.raises(ConnectionError, match="cannot be reached"):
        _ = task(tmp_path, storage="nonsense", search=LINE).study


def test_a_trial_gives_what_the_methods_own_nodes_give(tmp_path):
    one = task(tmp_path, method="mislas", search=LINE, trials=1)
    reported = []
    config = one.sweep.experiment({"training.learning_rate": 0.05})
    result = one.train(
        config.model_dump(mode="json"), lambda step, value: reported.append((step, value)), 0
    )
    train, validation, auxiliary = sets()
    test = toy_images((6, 6, 6, 6), seed=2)
    images, store = Sets(train, validation, test, auxiliary), Store(tmp_path / "own")
    alone = run_experiment(Experiment(config, one.card), images, tmp_path, store)
    assert result == alone["validation/mean_recall"]
    # epochs of both stages, counted through
    assert [step for step, _ in reported] == [1, 2, 3]
    assert reported[-1][1] == result
    assert not list((tmp_path / "trials").glob("[!s]*"))


def test_stages_that_lead_nowhere_are_not_trained(tmp_path, monkeypatch):
    from lt_pipeline.pipelines.tune import task as module

    asked = []
    once = module.run_stages

    def run_stages(experiment, stages, *rest):
        asked.extend(stage.role for stage in stages)
        return once(experiment, stages, *rest)

    monkeypatch.setattr(module, "run_stages", run_stages)
    one = task(tmp_path, method="btm", trials=1)
    assert one.sweep.base.options.references
    config = one.sweep.experiment({}).model_dump(mode="json")
    assert 0 <= one.train(config, lambda step, value: None, 0) <= 1
    assert set(asked) == {"line", "branch"}


def test_a_stopped_trial_leaves_no_state_and_a_killed_one_its_own(tmp_path):
    one = task(tmp_path, epochs=3, search=LINE)
    config = one.sweep.experiment({"training.learning_rate": 0.05}).model_dump(mode="json")

    def stop(error):
        def report(step, value):
            if step == 2:
                raise error

        return report

    with pytest.raises(KeyboardInterrupt):
        one.train(config, stop(KeyboardInterrupt()), 0)
    assert list((tmp_path / "trials").rglob("*.pt"))
    again = []
    with pytest.raises(optuna.TrialPruned):
        one.train(
            config,
            lambda step, value: again.append(step) or stop(optuna.TrialPruned())(step, value),
            0,
        )
    assert again == [1, 2]
    assert not list((tmp_path / "trials").rglob("*.pt"))
