"""Work side by side: each is what it is alone, whatever becomes of the others."""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import pairwise
from threading import Barrier

import pytest
import torch
from torch.nn import functional as F

from lt_pipeline.learning.engine.checkpoint import ResumeFile
from lt_pipeline.learning.engine.config import TrainingConfig
from lt_pipeline.learning.engine.parallel import (
    RANDOM,
    Stopped,
    alone,
    at_once,
    go_on,
    results,
    side_by_side,
)
from lt_pipeline.learning.engine.stage import Stage
from lt_pipeline.learning.engine.trainer import fit
from lt_pipeline.learning.experiments.config import ExperimentConfig
from lt_pipeline.learning.experiments.experiment import Experiment
from lt_pipeline.learning.methods.families.base import Method, MethodOptions
from lt_pipeline.learning.models.network import ModelConfig
from lt_pipeline.learning.schema import UserError
from toys import toy_card, toy_images

CPU = torch.device("cpu")
# a run's seconds are its own
TIMES = {"train/seconds", "train/images_per_second"}
pytestmark = pytest.mark.usefixtures("two_threads")


def in_turn(tasks):
    return [task() for task in tasks]


def training(**values):
    return {"epochs": 2, "batch_size": 12, "warmup_epochs": 0, "monitor_every": 0, **values}


class Own:
    """A training of its own: method, options, weights, seed, rate, images."""

    def __init__(self, method, seed=0, options=None, **values):
        given = {"seed": seed, "training": training(**values), method: {"options": options or {}}}
        head = {"head": "cosine"} if method in ("darl", "dbm") else {}
        given["model"] = {"backbone": "resnet8", **head}
        self.experiment = Experiment(ExperimentConfig.resolve(method, given), toy_card())
        self.seed, self.data = seed, toy_images((10, 8, 6, 5), seed=seed)

    def __call__(self, resume=None, report=None):
        own = self.experiment.build()
        stage = next(stage for stage in self.experiment.stages if stage.trains)
        own.load_weights(stage, {})
        history = fit(
            own, stage, self.data, self.experiment.config.training, seed=self.seed, device=CPU,
            auxiliary=toy_images(seed=7), resume=resume, report=report,
        )  # fmt: skip
        return own.state_dict(), history


def same(one, other):
    (state, history), (true_state, true_history) = one, other
    assert state.keys() == true_state.keys()
    for name, value in true_state.items():
        assert torch.equal(state[name], value), name
    assert history.keys() == true_history.keys()
    assert all(history[name] == true_history[name] for name in history.keys() - TIMES)


RATE, DECAY, LONGER, SMALLER = (
    {"learning_rate": 0.01}, {"weight_decay": 0.1, "epochs": 3}, {"epochs": 3}, {"batch_size": 8}
)  # fmt: skip
TOGETHER = {
    "own rates": [("ce", 0, {}), ("ce", 1, {}, RATE), ("ce", 2, {}, DECAY)],
    "own options": [("more", 1, {}), ("more", 1, {"amplitude": 0.5}), ("more", 1, {"rank": 0.5})],
    "pairs": [("darl", 0, {}), ("darl", 1, {}, LONGER)],
    "views": [("bcl", 0, {}), ("bcl", 1, {}, RATE)],
    "outliers": [("oe", 0, {}), ("oe", 1, {"weight": 0.1})],
    "methods": [("dbm", 1, {}), ("dbm", 2, {}, SMALLER), ("ce", 1, {})],
}


@pytest.mark.parametrize("given", TOGETHER.values(), ids=TOGETHER)
def test_each_is_what_it_is_alone(given):
    trainings = [Own(*one[:3], **(one[3] if one[3:] else {})) for one in given]
    together = results(side_by_side(trainings, CPU))
    for one, other in zip(together, in_turn(trainings), strict=True):
        same(one, other)
    ends = [state["net.head.weight"] for state, _ in together]
    assert not any(torch.equal(a, b) for a, b in pairwise(ends))


def test_one_that_diverges_ends_and_the_others_go_on():
    trainings = [Own("ce", 0), Own("ce", 1, learning_rate=1e30), Own("ce", 2)]
    first, wrong, last = side_by_side(trainings, CPU)
    assert isinstance(wrong, UserError)
    assert str(wrong).startswith("the loss term 'cross_entropy' is nan in epoch 1 of stage 'train'")
    same(first, trainings[0]())
    same(last, trainings[2]())
    with pytest.raises(UserError, match="is nan in epoch 1"):
        results([first, wrong, last])


class Killed(BaseException):
    pass


def test_what_was_killed_resumes_each_from_its_own_state(tmp_path):
    trainings = [Own("ce", seed, epochs=4, checkpoint_every=0) for seed in (0, 1)]
    files = [ResumeFile(tmp_path / f"{k}.pt", str(k)) for k in (0, 1)]

    def kill(stage, epoch, values):
        if epoch == 2:
            raise Killed

    reports = (None, kill)
    given = zip(trainings, files, reports, strict=True)
    with pytest.raises(Killed):
        side_by_side([partial(one, file, report) for one, file, report in given], CPU)
    assert files[1].load()["epoch"] == 2
    again = [partial(one, file) for one, file in zip(trainings, files, strict=True)]
    for one, other in zip(results(side_by_side(again, CPU)), in_turn(trainings), strict=True):
        same(one, other)


def test_an_interrupt_stops_those_that_are_at_work():
    both = Barrier(2)

    def endless():
        both.wait(5)
        while True:
            go_on()
            time.sleep(0.001)

    def interrupted():
        both.wait(5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([interrupted, endless, endless], CPU)


def test_a_training_stops_between_two_steps():
    began, steps = Barrier(2), []

    class Waiting(Method):
        def loss(self, batch, progress):
            if not steps:
                began.wait(5)
                told.wait(5)
            steps.append(1)
            return {"plain": F.cross_entropy(self.net(batch.images), batch.labels)}

    told = threading.Event()
    method = Waiting(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())

    def interrupted():
        began.wait(5)
        threading.Timer(0.1, told.set).start()
        raise KeyboardInterrupt

    given = method, Stage("train"), toy_images(), TrainingConfig(**training(epochs=50))
    with pytest.raises(KeyboardInterrupt):
        side_by_side([interrupted, partial(fit, *given, seed=0, device=CPU)], CPU)
    assert len(steps) == 1


def test_threads_are_shared_and_left_as_they_were():
    both = Barrier(2)

    def looked():
        both.wait(5)
        state = torch.get_num_threads(), at_once(), threading.get_ident()
        both.wait(5)
        return state

    for threads, share in ((2, 1), (4, 2)):
        torch.set_num_threads(threads)
        seen = results(side_by_side([looked, looked], CPU))
        assert [one[:2] for one in seen] == [(share, 2)] * 2
        assert seen[0][2] != seen[1][2]
        assert torch.get_num_threads() == threads
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))  # noqa: B023
        thread.start()
        thread.join()
        assert later == [threads], "a thread's own number hides what later ones begin with"
    assert at_once() == 1


def test_no_more_are_at_work_than_there_are_threads():
    def count():
        time.sleep(0.01)
        return at_once()

    assert max(results(side_by_side([count] * 6, CPU))) == 2
    torch.set_num_threads(1)
    assert results(side_by_side([count] * 3, CPU)) == [1, 1, 1]


def test_groups_inside_of_others_count_all():
    inner = [at_once, at_once]
    torch.set_num_threads(4)
    both = Barrier(4)

    def counted():
        both.wait(5)
        number = at_once()
        both.wait(5)
        return number

    inner = lambda: results(side_by_side([counted, counted], CPU))  # noqa: E731
    assert results(side_by_side([inner, inner], CPU)) == [[4, 4], [4, 4]]


def test_seconds_are_each_ones_share():
    """Of two that train at once, both are said to take half of the time that passes."""
    one = Own("ce", epochs=1)
    both = Barrier(2)

    class Slow(Method):
        def loss(self, batch, progress):
            both.wait(5)
            time.sleep(0.05)
            return {"plain": F.cross_entropy(self.net(batch.images), batch.labels)}

    def trained():
        method = Slow(MethodOptions(), ModelConfig(backbone="resnet8"), toy_card())
        given = method, Stage("train"), one.data, TrainingConfig(**training(epochs=1))
        started = time.monotonic()
        history = fit(*given, seed=0, device=CPU)
        both.wait(5)
        return time.monotonic() - started, history

    for passed, history in results(side_by_side([trained, trained], CPU)):
        seconds = history["train/seconds"][0]["value"]
        assert 0.05 < seconds < 0.6 * passed
        assert history["train/images_per_second"][0]["value"] * seconds == pytest.approx(24)


def test_weights_are_drawn_by_one_at_a_time():
    wanted = [Own("ce", seed).experiment.build().state_dict() for seed in range(6)]

    def build(seed):
        return [Own("ce", seed).experiment.build().state_dict() for _ in range(5)]

    together = results(side_by_side([partial(build, seed) for seed in range(6)], CPU))
    for states, true in zip(together, wanted, strict=True):
        assert all(torch.equal(s[name], true[name]) for s in states for name in true)
    assert RANDOM.acquire(blocking=False)
    RANDOM.release()


def test_one_at_a_time_does_what_is_called_alike():
    inside = []

    def enter(key):
        with alone(key):
            inside.append(key)
            time.sleep(0.02)
            position = inside.count(key)
            inside.remove(key)
        return position

    assert results(side_by_side([partial(enter, "x")] * 4, CPU)) == [1] * 4


def test_one_alone_is_done_here():
    assert side_by_side([threading.get_ident], CPU) == [threading.get_ident()]
    (wrong,) = side_by_side([partial(int, "x")], CPU)
    assert isinstance(wrong, ValueError)
    assert side_by_side([], CPU) == []


def test_nobody_is_told_to_stop_where_nobody_asked():
    go_on()
    assert not issubclass(Stopped, Exception), "what fails by itself is caught"


@pytest.mark.gpu
def test_on_a_gpu_each_has_a_stream_and_is_what_it_is_alone():
    device, streams = torch.device("cuda"), []

    def trained(seed):
        streams.append(torch.cuda.current_stream(device))
        own = Own("ce", seed).experiment.build()
        given = own, Stage("train"), toy_images(seed=seed), TrainingConfig(**training())
        fit(*given, seed=seed, device=device)
        return own.state_dict()

    tasks = [partial(trained, seed) for seed in range(4)]
    together = results(side_by_side(tasks, device))
    assert len({stream.cuda_stream for stream in streams}) == 4
    for state, true in zip(together, in_turn(tasks), strict=True):
        for name, value in true.items():
            torch.testing.assert_close(state[name], value, rtol=1e-2, atol=1e-3, msg=name)
