"""`xcnn bench` and its room: contestants compute the same, work is counted correctly, no worker hangs or is lost."""

import functools
import importlib.util
import json
import math
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xcnn import compare, models, nn, ops, plots
from xcnn.cli import _console
from xcnn.compare import worker
from xcnn.compare.bench import Result, Timing
from xcnn.compare.meter import growth
from xcnn.compare.profile import profile
from xcnn.errors import UsageError

OURS = compare.Contestant("xcnn", "cpu")
PEERS = compare.contestants(["cpu"], compare.PEERS)[1:]
QUICK = ["--models", "report", "--batch-sizes", "2", "--rounds", "1", "--seconds", "0.001", "--threads", "1"]


@pytest.fixture
def xcnn(xcnn):
    """Run `xcnn bench` in an empty folder: (exit code, stdout, stderr)."""
    return functools.partial(xcnn, "bench")


def steps(contestant, case, count):
    with contestant.opened(case) as step:
        return [step() for _ in range(count)]


@pytest.mark.parametrize("peer", PEERS, ids=str)
@pytest.mark.parametrize("model", models.MODELS)
def test_a_peer_trains_as_we_do(model, peer):
    """With a learning rate at which the losses depend visibly on the gradients."""
    pytest.importorskip(peer.name)
    case = compare.Case(model, 4, "train", 1, lr=1e-3)
    ours, theirs = steps(OURS, case, 4), steps(peer, case, 4)
    assert max(ours) - min(ours) > 1e-3
    np.testing.assert_allclose(theirs, ours, rtol=2e-5)


@pytest.mark.parametrize("peer", PEERS, ids=str)
@pytest.mark.parametrize("model", models.MODELS)
def test_a_peer_infers_as_we_do(model, peer):
    pytest.importorskip(peer.name)
    case = compare.Case(model, 3, "infer", 1)
    (ours,), (theirs,) = steps(OURS, case, 1), steps(peer, case, 1)
    assert ours.shape == (3, 10)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5 * np.abs(ours).max())


def entered(monkeypatch, *layers):
    """Enter a network of these layers and a linear one, for images of 7 x 7."""

    def build(shape, classes):
        model = nn.Sequential(*layers, nn.Flatten())
        features = model(np.zeros((1, *shape), np.float32)).shape[1]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, classes))

    monkeypatch.setitem(models.MODELS, "own", models.Entry("for tests", build, 1, (2, 7, 7)))
    return compare.Case("own", 3, "train", 1, lr=1e-2)


class Renamed(nn.Conv2d):
    """A subclass that computes the same."""


class Doubled(nn.Conv2d):
    def forward(self, x, train=True):
        return super().forward(2 * x, train)


class Other(nn.Conv2d, op=ops.conv_transpose2d):
    """A subclass of another op."""


@pytest.mark.parametrize("peer", PEERS, ids=str)
@pytest.mark.parametrize(
    "layer",
    [
        Renamed(2, 3, 3, padding="same"),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool2d((4, None)),
    ],
    ids=str,
)
def test_a_peer_builds_a_layer_with_its_options(layer, peer, monkeypatch):
    pytest.importorskip(peer.name)
    case = entered(monkeypatch, layer)
    np.testing.assert_allclose(steps(peer, case, 3), steps(OURS, case, 3), rtol=2e-5)


def test_pytorch_builds_every_batch_norm(monkeypatch):
    pytest.importorskip("torch")
    for options in ({"affine": False}, {"track_running_stats": False}, {"momentum": None}):
        case = entered(monkeypatch, nn.BatchNorm2d(2, **options))
        np.testing.assert_allclose(steps(PEERS[0], case, 3), steps(OURS, case, 3), rtol=2e-5)


@pytest.mark.parametrize(
    ("peer", "layer", "message"),
    [
        ("torch", Doubled(2, 3, 3), "Doubled overrides forward of Conv2d, so PyTorch cannot run it"),
        ("jax", Doubled(2, 3, 3), "Doubled overrides forward of Conv2d, so JAX cannot run it"),
        ("torch", Other(2, 2, 3), "Other overrides the op of Conv2d, so PyTorch cannot run it"),
        ("torch", nn.GELU(), "unknown PyTorch layer 'GELU'"),
        ("jax", nn.GELU(), "unknown JAX layer 'GELU'"),
        (
            "torch",
            nn.Conv2d(2, 3, 3, padding=((1, 0), (0, 1))),
            "for PyTorch, Conv2d takes one padding per axis only",
        ),
        ("jax", nn.BatchNorm2d(2, momentum=None), "for JAX, BatchNorm2d takes affine, track_running_stats and"),
        ("jax", nn.Flatten(2), r"for JAX, Flatten takes \(1, -1\) only, got \(2, -1\)"),
    ],
)
def test_a_peer_refuses_a_layer_that_it_would_build_otherwise(peer, layer, message, monkeypatch):
    pytest.importorskip(peer)
    (contestant, *_) = (one for one in PEERS if one.name == peer)
    with pytest.raises(UsageError, match=message):
        steps(contestant, entered(monkeypatch, layer), 1)


def test_the_threads_of_a_contestant_are_set_back():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with compare.Contestant("torch", "torch:cpu", "NCHW").opened(compare.Case("report", 1, "train", before + 1)):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_work_is_counted_as_by_hand():
    first, second = 28 * 28 * 6 * 25, 10 * 10 * 16 * 6 * 25
    linear = [400 * 120, 120 * 84, 84 * 10]
    forward = dict(zip(["0", "3", "7", "9", "11"], [first, second, *linear], strict=True))
    found = compare.Case("lenet5", 8, "infer", 1).flops()
    assert found == {name: 2 * 8 * work for name, work in forward.items()}
    found = compare.Case("lenet5", 8, "train", 1).flops()
    assert found == {name: 2 * 8 * work * (2 if name == "0" else 3) for name, work in forward.items()}


def test_what_has_to_be_moved_is_counted_as_by_hand():
    """Each layer's input x, output y and parameters p, of `lenet5` at batch 8."""
    layers = [
        (28 * 28, 6 * 28 * 28, 156),
        (6 * 14 * 14, 16 * 10 * 10, 2416),
        (400, 120, 48120),
        (120, 84, 10164),
        (84, 10, 850),
    ]
    assert compare.Case("lenet5", 8, "infer", 1).moved() == 4 * sum(8 * x + 8 * y + p for x, y, p in layers)
    whole = sum(3 * 8 * x + 2 * 8 * y + 8 * p for x, y, p in layers)
    assert compare.Case("lenet5", 8, "train", 1).moved() == 4 * (whole - 8 * 28 * 28 - 156)


def test_every_step_is_as_much_work_as_the_first():
    """The weights hardly change, so that gradients do not vanish and nothing decays to subnormal numbers."""
    losses = steps(OURS, compare.Case("lenet5", 1, "train", 1), 200)
    assert losses[-1] == pytest.approx(losses[0], rel=1e-4)


def timing(contestant, *rounds, batch=10):
    return Timing(contestant, batch, 1.0, rounds, None, None)


def test_statistics_by_hand():
    ours = timing(OURS, 1.0, 2.0, 4.0)
    fast, slow = (timing(compare.Contestant("torch", "torch", layout), *rounds) for layout, rounds in
                  (("channels_last", (3.0, 2.0, 2.0)), ("NCHW", (9.0, 9.0, 1.0))))  # fmt: skip
    assert ours.images_per_second == 5
    assert ours.quartiles == (3.75, 7.5)
    assert timing(OURS, 2.0).quartiles == (5, 5)
    assert ours.ratio(fast) == 1  # of 3, 1 and 1/2
    assert ours.ratio(slow) == 4.5  # of 9, 4.5 and 1/4
    case = compare.Case("report", 10, "train", 1)
    assert Result(case, (ours,), (slow, fast), 1, 1, {}).best(ours) is fast
    assert Result(case, (ours,), (), 1, 1, {}).best(ours) is None


def test_shares_by_hand():
    ours, on_gpu = timing(OURS, 2.0), timing(compare.Contestant("xcnn", "cuda"), 0.5)
    rates = {"cpu": {"sgemm": 100.0}, "cuda:0": {"sgemm": 1000.0, "copy": 400.0}}
    result = Result(compare.Case("report", 10, "train", 1), (ours, on_gpu), (), 50, 20, rates)
    assert [result.share(ours, name) for name in ("sgemm", "copy")] == [0.25, None]
    assert [result.share(on_gpu, name) for name in ("sgemm", "copy")] == [0.1, 0.1]


def test_growth_by_hand():
    def result(batch, size, seconds, model="report"):
        case = compare.Case(model, batch, "train", 1, size=size)
        return Result(case, (timing(OURS, seconds, batch=batch),), (timing(PEERS[0], 9.0, batch=batch),), 1, 1, {})

    # Per image 1/2, 3/4 and 2/4 seconds.
    batches = [result(batch, None, seconds) for batch, seconds in ((2, 1.0), (4, 3.0), (8, 4.0))]
    assert compare.growths(batches) == [compare.Growth("report, train", "cpu", "image", 2, 8, 1.5)]
    # Per pixel 1/2, 1/4 and 1/4 of the same; what is alone has nothing to be compared with.
    sizes = [result(1, size, seconds) for size, seconds in ((8, 2.0), (16, 4.0), (32, 16.0))]
    alone = [result(2, 8, 1.0, "vgg_small"), result(1, 16, 1.0, "vgg_small")]
    assert compare.growths([*sizes, *alone]) == [compare.Growth("report, batch 1, train", "cpu", "pixel", 8, 32, 2.0)]


@pytest.mark.parametrize("peer", PEERS, ids=str)
@pytest.mark.parametrize("model", models.MODELS)
def test_images_of_another_size(model, peer):
    """64 pixels are more than the networks flatten: maps are averaged."""
    pytest.importorskip(peer.name)
    case = compare.Case(model, 2, "infer", 1, size=64)
    assert case.shape == (models.MODELS[model].shape[0], 64, 64)
    (ours,), (theirs,) = steps(OURS, case, 1), steps(peer, case, 1)
    assert ours.shape == (2, 10)
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-5 * np.abs(ours).max())


def test_memory_is_the_growth_during_the_measurement():
    grown = growth()
    if grown() is None:
        pytest.skip("the system does not tell")
    with mmap.mmap(-1, 2**26) as pages:  # not from the heap, which may hold free memory
        pages[:: mmap.PAGESIZE] = bytes(2**26 // mmap.PAGESIZE)
    assert 0.9 * 2**26 < grown() < 2**27  # the system counts in steps
    assert growth()() < 2**22  # a new peak begins


@pytest.mark.parametrize("mode", compare.MODES)
def test_a_profile_accounts_for_the_whole_step(mode):
    case = compare.Case("resnet20", 2, mode, 1)
    rows = profile(case, "cpu", 0.01)
    assert [row.what for row in rows[-2:]] == (
        ["update", "loss and the rest"] if mode == "train" else ["Linear", "the rest"]
    )
    assert sum(row.share for row in rows) == pytest.approx(1, abs=0.3)  # medians need not add up
    conv = next(row for row in rows if row.name == "3.body.0")
    assert conv.what == "Conv2d"
    assert conv.forward > 0
    assert (conv.backward > 0) == (mode == "train")
    assert conv.flops == 2 * 2 * 32 * 32 * 16 * 16 * 9 * (3 if mode == "train" else 1)


def test_a_worker_that_dies_is_one_sentence_at_once():
    with worker.Worker(OURS, compare.Case("report", 1, "train", 1)) as one:
        assert one.ask("ready") is None
        one.process.kill()
        with pytest.raises(compare.SpeedError, match=r"xcnn cpu fails at report, batch 1, train: .* exit code -9"):
            one.ask("burst", seconds=0.1)


def test_a_worker_that_fails_gives_its_reason():
    with (
        worker.Worker(compare.Contestant("xcnn", "cdua"), compare.Case("report", 1, "train", 1)) as one,
        pytest.raises(compare.SpeedError, match=r"xcnn cdua fails at .*: .*unknown device 'cdua'; did you mean 'cuda'"),
    ):
        one.ask("ready")


@pytest.mark.parametrize(
    ("errors", "gist"),
    [
        ("", ""),
        ("one\n\ntwo\n", "two"),
        ("Traceback (most recent call last):\n  File\nx.Error: no triton\n\nSet FLAG for more\n", "x.Error: no triton"),
        ("Traceback (most recent call last):\nA: b\n\nTraceback (most recent call last):\nC: it raised:\nD: e\n\nf\n",
         "C: it raised: D: e"),
        ("Traceback (most recent call last):\nC: it raised:\n", "C: it raised:"),
        ("Traceback (most recent call last):\n", ""),
    ],
)  # fmt: skip
def test_the_last_line_of_an_error_is_reported(errors, gist):
    assert worker._gist(errors) == gist


def test_a_worker_that_does_not_answer_times_out(monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 0.5)
    with (
        worker.Worker(OURS, compare.Case("report", 1, "train", 1)) as one,
        pytest.raises(compare.SpeedError, match=r"no answer in 0\.5 seconds"),
    ):
        one.ask("burst", seconds=60)


def test_workers_end_with_the_context():
    with worker.Worker(OURS, compare.Case("report", 1, "train", 1)) as one:
        pass
    assert one.process.returncode is not None


def test_json_lines(xcnn):
    code, out, err = xcnn(*QUICK, "--mode", "both", "--json", "--profile")
    assert code == 0
    head, *lines = map(json.loads, out.splitlines())
    assert list(head) == ["kind", "cpu", "cores", "load", "versions", "threads"]
    assert head["threads"] == 1
    assert head["versions"]["numpy"] == np.__version__
    speeds = [line for line in lines if line["kind"] == "speed"]
    assert [(line["mode"], line["contestant"], line["variant"]) for line in speeds] == [
        ("train", "xcnn", "cpu"), ("infer", "xcnn", "cpu"),
    ]  # fmt: skip
    for line in speeds:
        assert line["images_per_second"] == pytest.approx(2 / line["rounds"][0])
        assert line["first"] > 0
        assert line["waited"] is None or line["waited"] >= 0
        assert line["gflops"] > 0
        assert line["ratios"] == {}
    layers = [line for line in lines if line["kind"] == "profile" and line["mode"] == "train"]
    assert [line["what"] for line in layers] == [
        "Conv2d", "ReLU", "MaxPool2d", "Flatten", "Linear", "update", "loss and the rest",
    ]  # fmt: skip
    assert len(speeds) + sum(line["kind"] == "profile" for line in lines) == len(lines)
    assert "report, batch 2, infer (2 of 2)" in err


def test_table_against_pytorch(xcnn, tmp_path):
    pytest.importorskip("torch")
    code, out, err = xcnn(*QUICK, "--against", "torch", "--profile", "--plot", "speeds.png")
    assert code == 0
    lines = out.splitlines()
    assert "1 thread of" in lines[0]
    assert "torch 2" in lines[0]
    (header,) = (line for line in lines if line.startswith("model"))
    ours, theirs = "images/s  spread  GFLOP/s  of-peak memory first", "ratio best peer images/s spread memory"
    assert header.split() == f"model batch {ours} {theirs}".split()
    (row,) = (line for line in lines if line.startswith("report "))
    assert any(way in row for way in compare.PEERS["torch"]["cpu"])
    (mean,) = (line for line in lines if line.startswith("train on cpu: geometric mean of the ratios"))
    assert mean.endswith("(report, batch 2)")
    assert any(line.split()[:2] == ["0", "Conv2d"] for line in lines)
    assert "picture: speeds.png" in err
    with Image.open(tmp_path / "speeds.png") as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank


def test_several_batches_and_sizes(xcnn):
    code, out, _ = xcnn(*QUICK[:2], "-b", "2,3", "--sizes", "12,20", *QUICK[4:])
    assert code == 0
    assert [line.split(" on cpu")[0] for line in out.splitlines() if ": time per " in line] == [
        "report at 12x12, train", "report, batch 2, train", "report at 20x20, train", "report, batch 3, train",
    ]  # fmt: skip
    assert "times its least, batch 2 to 3" in out
    assert "times its least, 12 to 20 pixels square" in out
    code, out, _ = xcnn(*QUICK, "--sizes", "12,20", "--json")
    assert code == 0
    *speeds, growth = [json.loads(line) for line in out.splitlines()[1:]]
    assert [line["shape"] for line in speeds] == [[1, 12, 12], [1, 20, 20]]
    small, large = (144 * speeds[0]["images_per_second"], 400 * speeds[1]["images_per_second"])
    assert growth.pop("factor") == pytest.approx(max(small, large) / min(small, large))
    assert growth == {
        "kind": "growth", "cases": "report, batch 2, train", "device": "cpu", "unit": "pixel",
        "smallest": 12, "largest": 20,
    }  # fmt: skip


def test_means_in_json(xcnn):
    pytest.importorskip("torch")
    code, out, _ = xcnn("--models", "report,lenet5", *QUICK[2:], "--against", "torch", "--json")
    assert code == 0
    *_, mean = lines = [json.loads(line) for line in out.splitlines()]
    ratios = {line["model"]: line["ratio"] for line in lines if line.get("contestant") == "xcnn"}
    assert mean["kind"] == "mean"
    assert mean["geometric_mean"] == pytest.approx(math.sqrt(ratios["report"] * ratios["lenet5"]))
    assert mean["lowest"] == min(ratios.values())
    assert {line["variant"] for line in lines if line.get("contestant") == "torch"} == set(
        compare.PEERS["torch"]["cpu"]
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--models", "lenet"], "unknown model 'lenet'; did you mean 'lenet5'?"),
        (["--devices", "cdua"], "unknown device 'cdua'; did you mean 'cuda'?"),
        (["--against", "troch"], "unknown peer 'troch'; did you mean 'torch'?"),
        (["--against", "torch", "--ways", "channel_last"], "unknown way 'channel_last'; did you mean 'channels_last'?"),
        (["--ways", "NCHW"], "--ways selects ways of the libraries in against; name one there, such as torch"),
        (["--mode", "training"], "unknown mode 'training'; did you mean 'train'?"),
        (["--batch-sizes", "1,many"], "--batch-sizes takes integers separated by commas, got '1,many'"),
        (["--sizes", "28,x"], "--sizes takes integers separated by commas, got '28,x'"),
        (["--sizes", "8"], "lenet5 takes images of 12 x 12 or more, got 8"),
        (["--batch-sizes", "0"], "batch size must be an integer of at least 1, got 0"),
        (["--threads", "0"], "threads must be an integer of at least 1, got 0"),
        (["--rounds", "0"], "rounds must be an integer of at least 1, got 0"),
        (["--seconds", "0"], "seconds must be a number in (0, inf), got 0"),
        (["--models", ","], "name at least one model"),
    ],
)
def test_invalid_requests_are_refused(xcnn, argv, message):
    code, out, err = xcnn(*argv)
    assert (code, out) == (2, "")
    assert message in err
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1


def test_a_peer_that_is_not_installed(xcnn, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, out, err = xcnn(*QUICK, "--against", "jax")
    assert (code, out) == (1, "")
    assert "error: bench: jax is not installed; pip install jax" in err


def test_zero_rounds_are_refused():
    cases = [compare.Case("report", 1, "train", 1)]
    with pytest.raises(UsageError, match="rounds must be an integer of at least 1"):
        list(compare.bench(cases, [OURS], 0, 0.1))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the workers in /proc")
def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(xcnn, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "bench", lambda *_: pytest.fail("measured"))
    code, out, err = xcnn("--plot", "nowhere/x.png")
    assert (code, out) == (2, "")
    assert err == "error: cannot write nowhere/x.png: there is no folder nowhere\n"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    code, _, err = xcnn("--plot", str(tmp_path / "x.png"))
    assert code == 2
    assert err == f"error: cannot write {tmp_path}/x.png: {tmp_path} is read-only\n"


def test_a_table_wider_than_the_terminal_keeps_its_columns(monkeypatch, capsys):
    """Columns of no width are worse than lines that the terminal wraps."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    _console.print_table("name", "number", "unit", rows=[("mnist_cnn", "1,234,567", "images/s")], fold=False)
    out = capsys.readouterr().out
    assert "mnist_cnn" in out
    assert "1,234,567" in out
    assert "images/s" in out


def test_ctrl_c_ends_the_workers(tmp_path):
    """They run in separate sessions, which the signal does not reach."""
    command = [sys.executable, "-m", "xcnn", "bench", "--models", "report", "--batch-sizes", "2", "--seconds", "60"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "(1 of 1)" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(1)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split()
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
        assert process.wait(30) == 130
    assert err.splitlines()[-1] == "error: interrupted"
    assert workers
    for one in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(int(one), 0)


def test_the_picture_shows_every_contestant(tmp_path):
    rates = {
        "lenet5 at $5": {"xcnn cpu": (10.0, 9.0, 12.0), "torch NCHW": (20.0, 20.0, 20.0)},
        "report": {"xcnn cpu": (5, 4, 6)},
    }
    with Image.open(plots.speeds(rates, tmp_path / "speeds.png", "2 threads")) as image:
        assert np.asarray(image.convert("L")).std() > 5  # not blank


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(xcnn, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "matplotlib" else found(name))
    code, out, err = xcnn("--plot", "speeds.png")
    assert (code, out) == (1, "")
    assert err == "error: pictures need matplotlib; pip install 'xcnn[plots]'\n"


def test_the_process_of_pytorch_keeps_freed_memory_as_ours_does():
    pytest.importorskip("torch")
    code = (
        "import sys; from xcnn.compare import Case, Contestant\n"
        "with Contestant('torch', 'torch:cpu', 'NCHW').opened(Case('report', 1, 'infer', 1)):\n"
        "    assert 'xcnn.kernels.cpu._memory' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
