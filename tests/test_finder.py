"""The learning-rate range test: its losses against a plain loop, what it leaves alone, and its suggestion."""

import itertools
import math

import numpy as np
import pytest
import resumable

from xcnn import nn, optim, plots
from xcnn.errors import DataError, DivergedError, UsageError
from xcnn.training import EMA, LRFinder, Trainer, find_lr


def regression(lr=1.0, rule=optim.SGD, **options):
    """Return a trainer of a linear model in float64, and batches."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8, 4))
    y = x @ np.array([[1.0], [-2.0], [0.5], [3.0]])
    model = nn.Linear(4, 1, bias=False).to("cpu", "float64")
    model.weight.data = np.full((1, 4), 0.5)
    return Trainer(model, rule([{"params": [model.weight], "lr": lr}], **options), "mse_loss"), list(
        zip(x, y, strict=True)
    )


def test_losses_are_those_of_a_plain_loop():
    trainer, batches = regression()
    found = find_lr(trainer, batches, 1e-3, 1.0, steps=20)
    assert len(found.lrs) > 15
    assert repr(found) == f"LRFinder(suggestion={found.suggestion:.3g}, 20 learning rates from 0.001 to 1)"
    assert repr(LRFinder((), (), None)) == "LRFinder(suggestion=None, 0 learning rates)"
    np.testing.assert_allclose(found.lrs, np.geomspace(1e-3, 1.0, 20)[: len(found.lrs)], rtol=1e-12)
    weight, losses = np.full(4, 0.5), []
    for lr, (x, y) in zip(found.lrs, itertools.cycle(batches), strict=False):
        error = x @ weight - y[:, 0]
        losses.append(np.mean(error**2))
        weight = weight - lr * 2 * x.T @ error / len(error)
    keep = math.exp(-1 / 2)  # averaged over a tenth of 20 steps
    shares = [keep ** np.arange(n)[::-1] for n in range(1, 21)]
    expected = [np.dot(share, losses[: len(share)]) / share.sum() for share in shares[: len(losses)]]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-9)
    assert found.suggestion == found.lrs[2 + int(np.argmin(expected[2:]))] / 10


@pytest.mark.parametrize(("rule", "schedule"), [("adam", "one-cycle"), ("nesterov", "epochs"), ("sgd", "plateau")])
@pytest.mark.parametrize("high", [1.0, 1e20])
def test_the_trainer_is_as_it_was(rule, schedule, high):
    """With dropout, batch norm, clipping and augmentation; also where the copy diverges."""
    train, _ = resumable.small_digits()
    ends = []
    for test in (False, True):
        trainer = resumable.make_trainer(rule, schedule, clip_norm=1.0)
        trainer.fit(resumable.loader(train), 1)
        before, rates = state(trainer), [dict(group) for group in trainer.optimizer.param_groups]
        if test:
            with np.errstate(all="ignore"):
                found = find_lr(trainer, resumable.loader(train), 1e-3, high, steps=12)
            assert np.all(np.isfinite(found.losses))
            assert len(found.lrs) == len(found.losses) <= 12
            assert state(trainer) == before
            assert [dict(group) for group in trainer.optimizer.param_groups] == rates
        trainer.fit(resumable.loader(train), 1)
        ends.append(state(trainer))
    assert ends[0] == ends[1]


def state(trainer):
    """Return all of a trainer's state but times, so that equality compares bits."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items() if key not in TIMES}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else value

    return plain(trainer.state_dict())


TIMES = ("seconds", "data_seconds", "samples_per_second")


def test_it_ends_where_the_loss_diverges():
    trainer, batches = regression()
    with np.errstate(all="ignore"):
        found = find_lr(trainer, batches, 1e-4, 1e9, steps=60)
    assert len(found.lrs) < 60
    assert max(found.losses[:-1]) <= 4 * min(found.losses)
    assert found.suggestion < found.lrs[-1] / 10


def test_groups_keep_their_ratios_and_the_schedule_its_place():
    seen = []

    class Spy(optim.SGD):
        def step(self):
            seen.append([group["lr"] for group in self.param_groups])
            super().step()

    _, batches = regression()
    model = nn.Linear(4, 1).to("cpu", "float64")
    optimizer = Spy([{"params": [model.weight], "lr": 0.2}, {"params": [model.bias], "lr": 0.1}])
    schedule = optim.OneCycleLR(optimizer, [0.2, 0.1], 9, cycle_momentum=False)
    find_lr(Trainer(model, optimizer, "mse_loss", schedule=schedule), batches, 1e-3, 1e-2, steps=3)
    np.testing.assert_allclose(seen, [[1e-3, 5e-4], [10**-2.5, 10**-2.5 / 2], [1e-2, 5e-3]])
    assert schedule.last_epoch == 0


def test_without_a_fall_there_is_no_suggestion():
    trainer, _ = regression()
    batch = np.zeros((2, 4)), np.ones((2, 1))  # nothing can be learned from zeros
    found = find_lr(trainer, [batch], steps=4)
    assert found.losses == pytest.approx((1.0,) * 4)
    assert found.suggestion is None


def test_an_iterator_gives_what_it_has_which_is_told():
    trainer, batches = regression()
    with pytest.warns(
        UserWarning, match=r"^find_lr: the data ended after 3 of 10 batches, at the learning rate 6e-06;"
    ):
        assert len(find_lr(trainer, iter(batches), steps=10).lrs) == 3
    with pytest.raises(DataError, match="find_lr: there is no batch to train on"):
        find_lr(trainer, iter(()), steps=10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0}, r"find_lr: low must be a number in \(0, inf\), got 0"),
        ({"low": 1, "high": 0.1}, "find_lr: low must be less than high, got 1 and 0.1"),
        ({"steps": 1}, "find_lr: steps must be an integer of at least 2, got 1"),
        ({"trainer": 3}, "find_lr: trainer must be a Trainer, got 3"),
        ({"data": 3}, "find_lr: data must be "),
        ({"step": 3}, "find_lr: no argument 'step'; did you mean 'steps'?"),
    ],
)
def test_refusals(options, message):
    trainer, batches = regression()
    with pytest.raises(UsageError, match=message):
        find_lr(**{"trainer": trainer, "data": batches, **options})


def test_an_optimizer_without_a_learning_rate_is_refused_and_trains_with_progress(capsys):
    class Signs(optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, size=0.01)

        def update(self, data, grads, states, group):
            yield from (w - group["size"] * np.sign(grad) for w, grad in zip(data, grads, strict=True))

    _, batches = regression()
    model = nn.Linear(4, 1).to("cpu", "float64")
    trainer = Trainer(model, Signs(model.parameters()), "mse_loss")
    with pytest.raises(UsageError, match="find_lr: Signs has no learning rate lr to change"):
        find_lr(trainer, batches)
    trainer.fit(batches, 1, progress=True)
    assert "training mse_loss, Signs\n" in capsys.readouterr().err


def test_data_that_are_not_finite_are_an_error():
    trainer, _ = regression()
    with pytest.raises(DivergedError, match="hold nan; check the data"):
        find_lr(trainer, [(np.full((2, 4), np.nan), np.ones((2, 1)))])


@pytest.mark.parametrize("suggestion", [0.01, None])
def test_the_picture_shows_the_suggestion(tmp_path, suggestion):
    pytest.importorskip("matplotlib")
    image = pytest.importorskip("PIL.Image")
    result = LRFinder((1e-3, 1e-2, 0.1, 1.0), (2.0, 1.5, 1.0, 1e6), suggestion)
    with image.open(plots.lr_finder(result, str(tmp_path / "lr.png"), "a $title")) as drawn:
        r, g, _ = np.moveaxis(np.asarray(drawn.convert("RGB")).astype(int), -1, 0)
    assert (np.sum(r - g > 40) > 100) == (suggestion is not None)


def test_inside_inference_weights_the_trained_weights_are_tested():
    trainer, batches = regression()
    trainer = Trainer(trainer.model, trainer.optimizer, "mse_loss", callbacks=[EMA(0.9)])
    trainer.optimizer.param_groups[0]["lr"] = 0.01
    trainer.fit(batches, 2)
    outside, before = find_lr(trainer, batches, 1e-3, 1.0, steps=9), state(trainer)
    with trainer.inference_weights():
        assert find_lr(trainer, batches, 1e-3, 1.0, steps=9) == outside
    assert state(trainer) == before
