"""`optim.param_groups`: which parameter is in which group, and training with the groups."""

import re

import numpy as np
import pytest

from xcnn import nn, optim
from xcnn.errors import CheckpointError, UsageError


def network():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    model.reset_parameters(0)
    return model


def names(model, groups):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[known[id(parameter)] for parameter in group["params"]] for group in groups]


def test_the_first_pattern_that_matches_wins_and_the_rest_is_last():
    model = network()
    groups = optim.param_groups(model, {"*.bias": {"weight_decay": 0}, "[01].*": {"lr": 0.5}})
    assert names(model, groups) == [["0.bias", "1.bias", "4.bias"], ["0.weight", "1.weight"], ["4.weight"]]
    rule = optim.AdamW(groups, lr=0.1, weight_decay=0.2)
    assert [(g["lr"], g["weight_decay"]) for g in rule.param_groups] == [(0.1, 0), (0.5, 0.2), (0.1, 0.2)]
    assert names(model, optim.param_groups(model, {"?.*": {}})) == [[name for name, _ in model.named_parameters()]]
    assert names(model, optim.param_groups(model, {})) == [[name for name, _ in model.named_parameters()]]


def test_groups_take_the_steps_of_pytorchs_groups():
    torch = pytest.importorskip("torch")
    ours, t = network(), torch.nn
    theirs = t.Sequential(t.Conv2d(1, 2, 3), t.BatchNorm2d(2), t.ReLU(), t.Flatten(), t.Linear(8, 3))
    theirs.load_state_dict({key: torch.from_numpy(value) for key, value in ours.state_dict().items()})
    patterns = {"*.bias": {"weight_decay": 0.0}, "0.*": {"lr": 0.001}}
    rule = optim.SGD(optim.param_groups(ours, patterns), lr=0.1, momentum=0.9, weight_decay=0.5)
    split: dict[str, list] = {"*.bias": [], "0.*": [], "": []}
    for name, parameter in theirs.named_parameters():
        split["*.bias" if name.endswith("bias") else "0.*" if name[0] == "0" else ""].append(parameter)
    groups = [{"params": split[key], **patterns.get(key, {})} for key in split]
    reference = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.5)
    x = np.random.default_rng(0).standard_normal((4, 1, 4, 4)).astype(np.float32)
    for _ in range(3):
        rule.zero_grad()
        y, backward = ours.forward(x)
        backward(y)
        rule.step()
        reference.zero_grad()
        z = theirs(torch.from_numpy(x))
        z.backward(z.detach())
        reference.step()
    for key, value in theirs.state_dict().items():
        np.testing.assert_allclose(ours.state_dict()[key], value.numpy(), rtol=1e-4, atol=1e-5, err_msg=key)


def test_a_shared_parameter_is_in_one_group():
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.weight = a.weight
    model = nn.Sequential(a, b)
    groups = optim.param_groups(model, {"0.*": {"lr": 1.0}})
    assert names(model, groups) == [["0.weight", "0.bias"], ["1.bias"]]
    optim.SGD(groups, lr=0.1)


def test_the_state_knows_its_groups():
    state = optim.SGD(optim.param_groups(network(), {"0.*": {"lr": 0.5}}), lr=0.1).state_dict()
    again = optim.SGD(optim.param_groups(network(), {"0.*": {"lr": 0.7}}), lr=0.2)
    again.load_state_dict(state)
    assert [group["lr"] for group in again.param_groups] == [0.5, 0.1]
    with pytest.raises(CheckpointError, match=r"^SGD: the state has groups of \[2, 4\] parameters"):
        optim.SGD(optim.param_groups(network(), {"*": {}}), lr=0.2).load_state_dict(state)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"0.wieght": {}},
            "param_groups: no parameter matches '0.wieght'; the names most like it are 0.weight, 4.weight, 1.weight",
        ),
        (
            {"0.*": {}, "0.bias": {}},
            "param_groups: all parameters that '0.bias' matches belong to earlier patterns",
        ),
        ([("*", {})], "param_groups: patterns must map patterns to options, got list"),
        (
            {"*": 0.1},
            "param_groups: a pattern and its options must be a string and a dict such as {'lr': 0.01}, got '*': 0.1",
        ),
        (
            {0: {}},
            "param_groups: a pattern and its options must be a string and a dict such as {'lr': 0.01}, got 0: {}",
        ),
    ],
)
def test_mistakes_are_one_sentence(patterns, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        optim.param_groups(network(), patterns)


def test_other_mistakes():
    with pytest.raises(UsageError, match=r"^param_groups: model must be an nn.Module, got list$"):
        optim.param_groups(network().parameters(), {})
    with pytest.raises(UsageError, match=r"^unknown SGD option 'l'; did you mean 'lr'"):
        optim.SGD(optim.param_groups(network(), {"*": {"l": 1}}), lr=0.1)
    with pytest.raises(UsageError, match=r"^SGD: there are no parameters"):
        optim.SGD(optim.param_groups(nn.ReLU(), {}), lr=0.1)
