"""Averages of the weights, and the best weights: their formula, their files, and what training does not see of them."""

import numpy as np
import pytest
from tasks import BATCHES, X, batch_norm_network, trainer_of, vectors

from xcnn import ops
from xcnn.errors import CheckpointError, ShapeError, UsageError
from xcnn.training import EMA, Callback, EarlyStopping, KeepBest


class States(Callback):
    def __init__(self):
        self.seen = []

    def on_batch_end(self, trainer, epoch, batch, metrics):
        self.seen.append(trainer.model.state_dict())


def test_averaged_weights_are_those_of_the_formula():
    states, plain = States(), trainer_of(batch_norm_network(), "cross_entropy")
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[ema := EMA(0.7), states])
    expected = {name: value.astype(np.float64) for name, value in plain.model.state_dict().items()}
    (*_, record) = training.fit(BATCHES, 3, validation=BATCHES)
    (*_, last) = plain.fit(BATCHES, 3, validation=BATCHES)
    assert ema.updates == 12
    for t, state in enumerate(states.seen, 1):
        decay = min(0.7, (1 + t) / (10 + t))
        for name, value in state.items():
            counts = value.dtype.kind == "i"  # such as the number of batches
            expected[name] = value if counts else decay * expected[name] + (1 - decay) * value
    raw = training.model.state_dict()
    with training.inference_weights():
        averaged = training.model.state_dict()
        for name, value in expected.items():
            np.testing.assert_allclose(averaged[name], value, rtol=1e-5, atol=1e-6)
        assert training.state_dict()["weights"]["0.weight"].tobytes() == raw["0.weight"].tobytes()
        with pytest.raises(UsageError, match=r"^fit: leave `with trainer"):
            training.fit(BATCHES)
    other = batch_norm_network()
    other.load_state_dict(averaged)
    x = BATCHES[0][0]
    assert training.predict(x).tobytes() == ops.softmax(other(x), dim=1)[0].tobytes()
    assert record["val_loss"] == trainer_of(other, "cross_entropy").evaluate(BATCHES).loss != last["val_loss"]
    assert record["train_loss"] == last["train_loss"]
    for name, value in plain.model.state_dict().items():  # training does not know of the average
        assert raw[name].tobytes() == value.tobytes() == training.model.state_dict()[name].tobytes()


def test_the_average_of_what_does_not_change_keeps_its_bits():
    model = batch_norm_network()
    training = trainer_of(model, "cross_entropy", lr=0.0, callbacks=[EMA(0.9)])
    before = model.state_dict()
    training.fit(BATCHES, 2)
    with training.inference_weights():
        for name in ("0.weight", "1.weight", "3.bias"):
            assert model.state_dict()[name].tobytes() == before[name].tobytes()


@pytest.mark.parametrize("average", [False, True])
def test_the_best_weights_can_be_restored(average):
    best = KeepBest(monitor="val_loss")
    callbacks = [EMA(0.5), best] if average else [best]
    training = trainer_of(batch_norm_network(), "cross_entropy", lr=1.0, callbacks=callbacks)
    other = [(BATCHES[0][0] + 1, BATCHES[1][1])]
    history = training.fit(BATCHES, 6, validation=other)
    losses = [record["val_loss"] for record in history]
    assert losses[-1] > min(losses)
    assert best.describe(len(history)) == f"epoch {np.argmin(losses) + 1} of 6, best val_loss {min(losses):.4g}"
    assert training.evaluate(other).loss == losses[-1]
    best.restore(training)
    assert training.evaluate(other).loss == min(losses)
    assert trainer_of(training.model, "cross_entropy").evaluate(other).loss == min(losses)
    assert KeepBest().describe(3) == "no epoch of 3, as none has a val_loss"


def test_a_function_saves_the_averaged_weights():
    saved = []
    keep = KeepBest(save=lambda record: saved.append((training.model.state_dict(), training.state_dict()["weights"])))
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[EMA(0.5), keep])
    training.fit(BATCHES, 1, validation=BATCHES)
    with training.inference_weights():
        assert saved[0][0]["0.weight"].tobytes() == training.model.state_dict()["0.weight"].tobytes()
    assert saved[0][1]["0.weight"].tobytes() == training.model.state_dict()["0.weight"].tobytes()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("EMA", {"average": 3}),
        ("EMA", {"average": {"0.weight": np.zeros(3)}}),
        ("EMA", {"updates": -1}),
        ("EMA", {"updates": "x"}),
        ("KeepBest", {"weights": {"a": 3}}),
    ],
)
def test_a_damaged_state_is_refused(name, change):
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[EMA(), KeepBest(monitor="train_loss")])
    training.fit(BATCHES)
    state = training.state_dict()
    state["callbacks"][name].update(change)

    def load_and_train():
        training.load_state_dict(state)
        training.fit(BATCHES)

    with pytest.raises(CheckpointError):
        load_and_train()


def test_several_averages_give_the_weights_back():
    training = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[EMA(0.9), EMA(0.5)])
    plain = trainer_of(batch_norm_network(), "cross_entropy")
    for one in (training, plain):
        one.fit(BATCHES, 2, validation=BATCHES)
        one.predict(BATCHES[0][0])
    for name, value in plain.model.state_dict().items():
        assert training.model.state_dict()[name].tobytes() == value.tobytes()


def test_an_average_begins_anew_after_reset():
    start = batch_norm_network().state_dict()
    training = trainer_of(batch_norm_network(), "cross_entropy", lr=0.0, callbacks=[ema := EMA(0.9)])
    training.fit(BATCHES)
    start["0.weight"] = start["0.weight"] + 1
    training.model.load_state_dict(start)
    ema.reset()
    assert ema.updates == 0
    training.fit(BATCHES)
    with training.inference_weights():
        assert training.model.state_dict()["0.weight"].tobytes() == start["0.weight"].tobytes()


def test_callbacks_of_another_trainer_begin_anew():
    """As in a loop over folds: neither the best weights nor the average of the first fold may reach the second."""

    def fold(callbacks, lr):
        training = trainer_of(batch_norm_network(), "cross_entropy", lr=lr, callbacks=callbacks)
        history = training.fit(BATCHES, 4, validation=BATCHES)
        return training, [record["val_loss"] for record in history]

    keep = KeepBest()
    callbacks = [EMA(0.5), keep, EarlyStopping(patience=1)]
    fold(callbacks, lr=0.1)
    again, losses = fold(callbacks, lr=1e-4)
    assert losses == fold([EMA(0.5), KeepBest(), EarlyStopping(patience=1)], lr=1e-4)[1]
    assert keep.best == min(losses)
    keep.restore(again)
    assert again.evaluate(BATCHES).loss == min(losses)


def test_the_average_of_another_network_is_never_used():
    """Neither if that has failed in its first step, nor before the first `fit`."""
    ema = EMA(0.9)
    with pytest.raises(ShapeError):
        trainer_of(batch_norm_network(), "cross_entropy", callbacks=[ema]).fit([(X[:6, :2], BATCHES[0][1])])
    other = trainer_of(vectors(3), "cross_entropy", callbacks=[ema])
    x = X.astype(np.float64)
    other.fit([(x, np.arange(12) % 3)])
    expected = trainer_of(batch_norm_network(), "cross_entropy").evaluate(BATCHES).loss
    third = trainer_of(batch_norm_network(), "cross_entropy", callbacks=[ema])
    assert third.evaluate(BATCHES).loss == expected
