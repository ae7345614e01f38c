"""Mistakes in optimizers: options, groups and states that are refused, each in one sentence."""

import math

import numpy as np
import pytest
from rules import FULL, SHAPES, draw, make, run, same

from xcnn import optim
from xcnn.errors import CheckpointError, DtypeError, ShapeError, UsageError, XcnnError
from xcnn.parameter import Parameter


class TestRefusals:
    p = Parameter(np.ones(2))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda p: optim.SGD([]),
                "SGD: there are no parameters; does the model have any, or was a generator already consumed?",
            ),
            (lambda p: optim.SGD({}), "SGD: expected parameters, got dict; pass model.parameters()"),
            (lambda p: optim.SGD(3), "SGD: expected parameters, got int; pass model.parameters()"),
            (lambda p: optim.SGD("p"), "SGD: expected parameters, got str; pass model.parameters()"),
            (lambda p: optim.SGD([np.ones(2)]), "SGD: expected parameters, got ndarray; pass model.parameters()"),
            (
                lambda p: optim.SGD([p, {"params": []}]),
                "SGD: expected parameters, got dict; pass model.parameters()",
            ),
            (lambda p: optim.SGD([{"params": []}]), "SGD: there are no parameters; does the model have any, "),
            (lambda p: optim.SGD([{"lr": 1}]), "SGD: a parameter group needs the key 'params', got ['lr']"),
            (
                lambda p: optim.SGD([{"params": p, "weight-decay": 0}]),
                "unknown SGD option 'weight-decay'; did you mean 'weight_decay'? (known: ",
            ),
            (
                lambda p: optim.SGD([{"params": p}, {"params": p}]),
                "SGD: Parameter(2,) occurs twice; a parameter may be in one group only, once",
            ),
            (lambda p: optim.SGD([p, p]), "SGD: Parameter(2,) occurs twice; "),
            (lambda p: optim.SGD(p, lr=-1), "SGD: lr must be a number in [0, inf), got -1"),
            (lambda p: optim.SGD(p, lr=math.inf), "SGD: lr must be a number in [0, inf), got inf"),
            (lambda p: optim.SGD(p, lr=math.nan), "SGD: lr must be a number in [0, inf), got nan"),
            (lambda p: optim.SGD(p, lr=True), "SGD: lr must be a number in [0, inf), got True"),
            (lambda p: optim.SGD(p, lr="1"), "SGD: lr must be a number in [0, inf), got '1'"),
            (lambda p: optim.SGD([{"params": p, "lr": -2}]), "SGD: lr must be a number in [0, inf), got -2"),
            (lambda p: optim.SGD(p, momentum=1.5), "SGD: momentum must be a number in [0, 1], got 1.5"),
            (lambda p: optim.SGD(p, dampening=-1), "SGD: dampening must be a number in [0, 1], got -1"),
            (lambda p: optim.SGD(p, weight_decay=-1), "SGD: weight_decay must be a number in [0, inf), got -1"),
            (lambda p: optim.SGD(p, nesterov=1), "SGD: nesterov must be True or False, got 1"),
            (lambda p: optim.SGD(p, nesterov=True), "SGD: nesterov needs a momentum above 0 and no dampening"),
            (lambda p: optim.Adam(p, betas=0.9), "Adam: betas must be 2 numbers, got 0.9"),
            (lambda p: optim.Adam(p, betas=(0.9, 1.0)), "Adam: betas[1] must be a number in [0, 1), got 1.0"),
            (lambda p: optim.AdamW(p, eps=-1e-8), "AdamW: eps must be a number in [0, inf), got -1e-08"),
            (lambda p: optim.RMSprop(p, alpha=1), "RMSprop: alpha must be a number in [0, 1), got 1"),
            (lambda p: optim.RMSprop(p, centered=None), "RMSprop: centered must be True or False, got None"),
        ],
    )
    def test_arguments(self, make, message):
        with pytest.raises(UsageError) as caught:
            make(self.p)
        assert str(caught.value).startswith(message)

    def test_a_gradient_that_does_not_fit(self):
        parameter = Parameter(np.ones(2, np.float32))
        optimizer = optim.SGD([parameter])
        parameter.grad = np.ones(1, np.float32)
        with pytest.raises(ShapeError, match=r"^SGD: the gradient of Parameter\(2,\) has shape \(1,\)$"):
            optimizer.step()
        parameter.grad = np.ones(2)
        with pytest.raises(
            DtypeError, match=r"^SGD: the gradient of Parameter\(2,\) is float64, the parameter float32$"
        ):
            optimizer.step()

    @pytest.mark.parametrize("bad", [np.ones(5), np.ones(4, np.float32)], ids=["shape", "dtype"])
    @pytest.mark.parametrize(("name", "options"), FULL)
    def test_a_gradient_that_does_not_fit_changes_nothing(self, name, options, bad):
        first, second, third = parameters = [Parameter(array) for array in draw(SHAPES, 0)]
        optimizer = optim.OPTIMIZERS[name]([{"params": [first, third]}, {"params": [second]}], **options)
        for steps in range(2):
            before = str(optimizer.state_dict())
            values = [p.data.copy() for p in parameters]
            for parameter, grad in zip(parameters, draw(SHAPES, 1), strict=True):
                parameter.grad = grad
            second.grad = bad
            with pytest.raises((ShapeError, DtypeError)):
                optimizer.step()
            assert str(optimizer.state_dict()) == before
            assert [p.updates for p in parameters] == [steps] * 3
            for parameter, value in zip(parameters, values, strict=True):
                same(parameter.data, value)
            second.grad = np.ones(4)
            optimizer.step()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda s: s["param_groups"].pop(), "Adam: the state has groups of [] parameters, the optimizer of [3]"),
            (
                lambda s: s["param_groups"][0].update(params=[0]),
                "Adam: the state has groups of [1] parameters, the optimizer of [3]",
            ),
            (
                lambda s: s["param_groups"][0].update(momentum=0.9),
                "Adam: the state has the options lr, betas, eps, weight_decay, momentum, "
                "not lr, betas, eps, weight_decay; does it belong to another optimizer?",
            ),
            (lambda s: s["param_groups"][0].update(lr=-1), "Adam: lr must be a number in [0, inf), got -1"),
            (lambda s: s["state"].update({7: {}}), "Adam: the state has a parameter 7, the optimizer has 3"),
            (
                lambda s: s["state"][1].update(exp_avg=np.ones(5)),
                "Adam: exp_avg of parameter 1 has shape (5,), expected (4,)",
            ),
        ],
    )
    def test_states_of_others_change_nothing(self, change, message):
        _, optimizer = make("adam", {})
        run(optimizer, range(2))
        before, state = optimizer.state_dict(), optimizer.state_dict()
        change(state)
        with pytest.raises((CheckpointError, UsageError)) as caught:
            optimizer.load_state_dict(state)
        assert str(caught.value) == message
        assert str(optimizer.state_dict()) == str(before)

    @pytest.mark.parametrize(
        "change",
        [
            {"state": {"0": 5}}, {"state": [1]}, {"state": {"a": {}}}, {"state": {None: {}}}, {"param_groups": 5},
            {"param_groups": [5]}, {"param_groups": [{"params": 5}]}, {"param_groups": [{1: 2, "params": [0, 1, 2]}]},
            {"state": {"0": {"exp_avg": [[1], [1, 2]]}}}, {"state": {"1": {"exp_avg": np.ones(4, complex)}}},
        ],
    )  # fmt: skip
    def test_states_of_another_form_change_nothing(self, change):
        _, optimizer = make("adam", {})
        run(optimizer, range(2))
        before = str(optimizer.state_dict())
        with pytest.raises(CheckpointError, match=r"^Adam: "):
            optimizer.load_state_dict({**optimizer.state_dict(), **change})
        assert str(optimizer.state_dict()) == before

    @pytest.mark.parametrize(("returned", "got"), [(None, "None"), (5, "5"), ([1.0], "float"), ([None], "NoneType")])
    def test_a_rule_that_returns_no_arrays(self, returned, got):
        class Rule(optim.Optimizer):
            def update(self, data, grads, states, group):
                return returned

        self.p.grad = np.ones_like(self.p.data)
        with pytest.raises(XcnnError, match=rf"^Rule: update must return [^\n]*, got {got}$"):
            Rule([self.p], lr=0.1).step()

    def test_another_rule(self):
        with pytest.raises(CheckpointError, match="does it belong to another optimizer"):
            make("sgd", {})[1].load_state_dict(make("adam", {})[1].state_dict())

    def test_all_are_of_xcnn(self):
        with pytest.raises(XcnnError):
            optim.SGD([])
