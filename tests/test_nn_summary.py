"""`nn.summary`: shapes, parameters, multiply-adds and kept bytes, counted by hand."""

import numpy as np
import pytest

from xcnn import models, nn
from xcnn._dispatch import portable
from xcnn.errors import ShapeError, UsageError

MODEL = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1, groups=1),  # keeps x, which is the input
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.Residual(nn.Conv2d(8, 8, 3, padding=1, bias=False)),
    nn.ConvTranspose2d(8, 4, 2, stride=2),
    nn.Dropout(0.5),
    nn.Flatten(),
    nn.Linear(4 * 64, 10),
)


def test_rows_are_the_calls_of_the_layers_in_order():
    rows = nn.summary(MODEL, (3, 4, 4), batch=2).rows
    assert [(row.name, row.layer) for row in rows] == [
        *(("0", "Conv2d"), ("1", "BatchNorm2d"), ("2", "ReLU"), ("3.body", "Conv2d"), ("3.add", "Add")),
        *(("4", "ConvTranspose2d"), ("5", "Dropout"), ("6", "Flatten"), ("7", "Linear")),
    ]
    assert [row.shape for row in rows] == [(2, 8, 4, 4)] * 5 + [(2, 4, 8, 8)] * 2 + [(2, 256), (2, 10)]
    assert [row.parameters for row in rows] == [8 * 27 + 8, 16, 0, 8 * 72, 0, 8 * 16 + 4, 0, 0, 2570]


def test_multiply_adds_are_those_of_the_loops():
    work = {row.name: row.multiply_adds for row in nn.summary(MODEL, (3, 4, 4), batch=2).rows}
    assert work["0"] == 2 * 8 * 16 * 3 * 9
    assert work["3.body"] == 2 * 8 * 16 * 8 * 9
    assert work["4"] == 2 * 8 * 16 * 4 * 4  # every input pixel times its kernels
    assert work["7"] == 2 * 256 * 10
    assert work["1"] == work["2"] == work["3.add"] == 0


def test_groups_divide_the_work():
    one, four = (nn.summary(nn.Conv2d(8, 8, 3, groups=g), (8, 5, 5)).total for g in (1, 4))
    assert one.multiply_adds == 4 * four.multiply_adds


def test_the_total_adds_up_and_the_state_stays_as_it_was():
    state, stream = MODEL.state_dict(), MODEL[5].rng.bit_generator.state
    summary = nn.summary(MODEL, (3, 4, 4), batch=2)
    assert summary.total.parameters == sum(p.data.size for p in MODEL.parameters())
    for field in ("parameters", "multiply_adds", "kept"):
        assert getattr(summary.total, field) == sum(getattr(row, field) for row in summary.rows)
    assert MODEL[5].rng.bit_generator.state == stream
    for key, value in MODEL.state_dict().items():
        np.testing.assert_array_equal(value, state[key])
    assert not any("forward" in vars(module) for _, module in MODEL.modules())


def test_kept_bytes_count_every_array_once():
    kept = {row.name: row.kept for row in nn.summary(MODEL, (3, 4, 4), batch=2).rows}
    assert kept["0"] == 0  # x is the caller's
    assert kept["2"] == 2 * 8 * 16 * 4  # y of ReLU ...
    assert kept["3.body"] == 0  # ... which the convolution keeps too
    assert kept["6"] == 0
    assert kept["1"] == (2 * 8 * 16 + 8 + 8) * 4  # x, and the mean and rstd of each channel


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 3)])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_keeps_here_what_it_keeps_in_training(shape, affine):
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm1d, 3: nn.BatchNorm2d}[len(shape)](4, affine=affine)
    _, backward = norm.forward(np.ones((2, *shape), np.float32))
    kept = sum(
        array.nbytes for name, array in backward.saved().items() if name.rpartition(".")[2] not in ("x", "weight")
    )
    assert nn.summary(norm, shape, batch=2).total.kept == kept


def test_a_batch_of_one_may_have_one_number_per_channel():
    summary = nn.summary(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), (3,))
    assert [row.kept for row in summary.rows] == [0, 3 * 4 * 4]
    assert nn.summary(models.build("resnet20", (3, 4, 4)), (3, 4, 4)).total.shape == (1, 10)


def test_a_shared_layer_has_a_row_per_call_and_parameters_once():
    layer = nn.Linear(4, 4)
    summary = nn.summary(nn.Sequential(layer, nn.ReLU(), layer), (4,))
    assert [row.parameters for row in summary.rows] == [20, 0, 0]
    assert [row.multiply_adds for row in summary.rows] == [16, 0, 16]


@pytest.mark.parametrize("where", ["strict", "torch"])
def test_other_devices_tell_the_same(where):
    pytest.importorskip("torch" if where == "torch" else "array_api_strict")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Tanh())
    with portable(np):  # a kernel may keep something else
        on_host = nn.summary(model, (1, 4, 4))
    assert nn.summary(model.to(where), (1, 4, 4)) == on_host


def test_frozen_parameters_are_counted_and_have_a_column():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert "frozen" not in str(nn.summary(model, (4,)))
    model[:2].freeze()
    model[2].bias.trainable = False
    summary = nn.summary(model, (4,))
    assert [(row.parameters, row.frozen) for row in (*summary.rows, summary.total)] == [
        *((15, 15), (6, 6), (8, 2), (29, 23))
    ]
    lines = str(summary).splitlines()
    assert lines[0].split() == ["name", "layer", "output", "parameters", "frozen", "multiply-adds", "kept"]
    assert lines[-1].split()[2:4] == ["29", "23"]
    assert len({len(line) for line in lines}) == 1


def test_errors():
    with pytest.raises(UsageError, match="summary: batch must be an integer of at least 1, got 0"):
        nn.summary(MODEL, (3, 4, 4), batch=0)
    with pytest.raises(ShapeError, match=r"^0 \(Conv2d\): conv2d: "):
        nn.summary(MODEL, (4, 4, 4))
    assert not any("forward" in vars(module) for _, module in MODEL.modules())


def test_the_table_is_aligned_and_names_everything():
    lines = str(nn.summary(MODEL, (3, 4, 4))).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split() == ["name", "layer", "output", "parameters", "multiply-adds", "kept"]
    assert lines[-1].startswith("total")
    assert len(lines) == 9 + 4
