"""NCCL with a pretended CuPy, whose streams take their work in any order that events and messages allow.

A stream is a queue. Nothing runs until all processes have put all their work on their streams; then `finish` takes work
from one stream or another by chance. A group of messages ends when each has met its counterpart, which must be in the
group that is first on the other stream. Memory that is freed is used again by the stream that had asked for it.
"""

import collections
import ctypes
import functools
import random
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import test_parallel as parallel
from fake_processes import Fake, alike, run

from xcnn import data, devices
from xcnn.errors import DeviceError, DtypeError
from xcnn.parallel.nccl import NCCL, device_of, with_gpus
from xcnn.training.processes import Processes
from xcnn.training.sums import Sum


class Here(threading.local):
    """The GPU of a thread, which plays a process."""

    def __init__(self):
        self.streams = [Stream()]
        self.group = None
        self.calls = []


class Stream:
    made: ClassVar[list[Any]] = []

    def __init__(self, non_blocking=False):
        self.queue, self.free, self.non_blocking = collections.deque(), collections.defaultdict(list), non_blocking
        self.ptr = id(self)
        Stream.made.append(self)

    def __enter__(self):
        here.streams.append(self)
        return self

    def __exit__(self, *args):
        assert here.streams.pop() is self

    def record(self, event):
        self.queue.append(event)
        return event

    def wait_event(self, event):
        self.queue.append(("wait", event))


class Event:
    def __init__(self, disable_timing):
        assert disable_timing
        self.over = False


class Communicator:
    def __init__(self, size, name, rank):
        assert name == NAME
        self.size, self.rank = size, rank

    def send(self, address, nbytes, kind, other, stream):
        self._note("send", address, nbytes, kind, other, stream)

    def recv(self, address, nbytes, kind, other, stream):
        self._note("recv", address, nbytes, kind, other, stream)

    def _note(self, what, address, nbytes, kind, other, stream):
        assert here.group is not None, "outside of a group, a message would wait for its counterpart"
        assert kind == "bytes"
        assert other != self.rank
        here.group.append((what, self.rank, other, address, nbytes, stream))


NAME = bytes((3 * k) % 256 for k in range(128))
"""The id of a communicator."""


def group_start():
    assert here.group is None
    here.group = []


def group_end():
    group, here.group = here.group, None
    streams = {message[-1] for message in group}
    assert len(streams) == 1
    (stream,) = [one for one in Stream.made if one.ptr in streams]
    assert stream.non_blocking, "a blocking stream waits for the computation"
    stream.queue.append({"rank": group[0][1], "left": group})


def finish(seed):
    """Run everything, in an order by chance."""
    chance, streams = random.Random(seed), [stream for stream in Stream.made if stream.queue]
    while streams:
        chance.shuffle(streams)
        if not any(_step(stream, streams) for stream in streams):
            raise AssertionError(f"deadlock: {[stream.queue[0] for stream in streams]}")
        streams = [stream for stream in streams if stream.queue]


def _step(stream, streams):
    """Do the first work of a stream, as far as is possible; return whether anything was done."""
    first = stream.queue[0]
    if isinstance(first, Event):
        first.over = True
    elif isinstance(first, tuple):
        if not first[1].over:
            return False
    elif callable(first):
        first()
    else:
        return _meet(first, stream, streams)
    stream.queue.popleft()
    return True


def _meet(group, stream, streams):
    """Pass the messages of a group whose counterparts are in the first group of another stream."""
    groups = {one.queue[0]["rank"]: one for one in streams if one.queue and isinstance(one.queue[0], dict)}
    before = len(group["left"])
    for message in list(group["left"]):
        what, rank, other, address, nbytes, _ = message
        theirs = groups[other].queue[0]["left"] if other in groups else []
        for counterpart in theirs:
            if counterpart[0] != what and counterpart[2] == rank:
                assert counterpart[4] == nbytes, "another message was meant"
                source, target = (address, counterpart[3]) if what == "send" else (counterpart[3], address)
                ctypes.memmove(target, source, nbytes)
                group["left"].remove(message)
                theirs.remove(counterpart)
                break
    for one in (stream, *groups.values()):
        if one.queue and isinstance(one.queue[0], dict) and not one.queue[0]["left"]:
            one.queue.popleft()
    return len(group["left"]) < before


class Memory:
    """Memory that goes back to the stream that has asked for it."""

    def __init__(self, nbytes):
        self.stream = here.streams[-1]
        free = self.stream.free[nbytes]
        self.bytes = free.pop() if free else np.full(nbytes, 255, np.uint8)

    def __del__(self):
        self.stream.free[self.bytes.size].append(self.bytes)


class Array:
    """An array of a GPU: what is done to it is put on the current stream."""

    def __init__(self, memory, view):
        self.memory, self.view = memory, view
        self.shape, self.dtype, self.nbytes = view.shape, view.dtype, view.nbytes
        self.flags, self.strides = view.flags, view.strides
        self.data = SimpleNamespace(ptr=view.ctypes.data)
        self.device = "gpu"

    def __array_namespace__(self, api_version=None):
        return namespace

    def __getitem__(self, key):
        return Array(self.memory, self.view[key])

    def __setitem__(self, key, value):
        target, source = self.view[key], value.view
        put(functools.partial(np.copyto, target, source))

    def __iadd__(self, other):
        target, source = self.view, other.view
        put(functools.partial(np.add, target, source, out=target))
        return self


def put(work):
    here.streams[-1].queue.append(work)


def empty(shape, dtype, device=None):
    memory = Memory(int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return Array(memory, memory.bytes.view(dtype).reshape(shape))


def zeros(shape, dtype, device=None):
    array = empty(shape, dtype)
    put(functools.partial(array.view.fill, 0))
    return array


def uploaded(values):
    """Return an array that gets its values in the order of the stream."""
    array = zeros(values.shape, values.dtype)
    put(functools.partial(np.copyto, array.view, values))
    return array


namespace: Any = ModuleType("pretended_gpu")
namespace.empty, namespace.zeros, namespace.__array_namespace__ = empty, zeros, None
here = Here()
GPU = devices.Device("cuda:0", namespace, "gpu", "a pretended GPU")


@pytest.fixture(autouse=True)
def nccl(monkeypatch):
    library: Any = ModuleType("cupy")
    library.ndarray = type("ndarray", (), {})  # array_api_compat looks for it
    pretended = SimpleNamespace(
        available=True, get_unique_id=lambda: NAME, NcclCommunicator=Communicator, NCCL_UINT8="bytes",
        groupStart=group_start, groupEnd=group_end,
    )  # fmt: skip
    library.cuda = SimpleNamespace(Stream=Stream, Event=Event, get_current_stream=lambda: here.streams[-1])
    monkeypatch.setitem(sys.modules, "cupy.cuda.nccl", pretended)
    monkeypatch.setitem(sys.modules, "cupy", library)
    monkeypatch.setattr(Stream, "made", [])
    here.streams[:] = [Stream()]
    return pretended


def summed(size, count, length, sums, seed):
    """Return for each process the sums of `count` parts, for several batches, with work of its own in between."""
    values = np.random.default_rng(count).standard_normal((sums, count, length)).astype(np.float32)
    found: Any = [[] for _ in range(size)]
    own: Any = [[] for _ in range(size)]

    def act(host):
        processes = NCCL(host, GPU)
        like = zeros((1,), np.float32)
        for step in range(sums):
            total = Sum(processes, count, 16 + step, like, length)
            for part in processes.mine(count):
                total.add(part, uploaded(values[step, part]))
            total.start()
            total.advance()
            later = uploaded(np.full(length, step, np.float32))  # the backward pass goes on
            processes.wait(total.advance)
            result, other = np.empty(length, np.float32), np.empty(length, np.float32)
            put(functools.partial(np.copyto, result, total.total.view))
            put(functools.partial(np.copyto, other, later.view))
            found[processes.rank].append(result)
            own[processes.rank].append(other)

    run(size, act)
    finish(seed)
    return values, found, own


@pytest.mark.parametrize(("size", "count"), [(2, 2), (2, 5), (3, 7), (4, 4), (4, 2), (5, 13)])
def test_sums_in_any_order_of_the_streams(size, count):
    for seed in range(6):
        Stream.made.clear()
        values, found, own = summed(size, count, 11, 3, seed)
        for step in range(3):
            alone = Sum(Processes(), count, 16, np.zeros(1, np.float32), 11)
            for part in range(count):
                alone.add(part, values[step, part].copy())
            alone.start()
            for rank in range(size):
                assert found[rank][step].tobytes() == alone.total.tobytes()
                assert (own[rank][step] == step).all()


def test_arrays_of_the_host_go_the_other_way():
    def act(host):
        processes = NCCL(host, GPU)
        other = 1 - processes.rank
        sent, came = uploaded(np.full(3, 7.0 + processes.rank)), zeros((3,), np.float64)
        there, back = np.full(2, processes.rank), np.zeros(2, int)
        done = processes.exchange([(other, there), (other, sent)], [(other, came), (other, back)], 5)
        while not done():
            pass
        result = np.zeros(3)
        put(functools.partial(np.copyto, result, came.view))
        return back.tolist(), processes.gather(np.asarray([processes.rank])), result, host.exchanges

    found = run(2, act)
    assert [back for back, *_ in found] == [[1, 1], [0, 0]]
    assert [[array.tolist() for array in gathered] for _, gathered, *_ in found] == [[[0], [1]]] * 2
    assert [exchanges for *_, exchanges in found] == [4, 4]  # two for the id
    finish(1)
    assert [result.tolist() for _, _, result, _ in found] == [[8.0] * 3, [7.0] * 3]


def test_what_is_computed_meanwhile_does_not_wait():
    """With the other process far behind, the work of a backward pass is done before the sums."""
    log = []

    def act(host):
        processes = NCCL(host, GPU)
        total = Sum(processes, 2, 16, zeros((1,), np.float32), 4)
        total.add(processes.rank, uploaded(np.ones(4, np.float32)))
        if processes.rank:
            here.streams[-1].queue.append(("wait", late))
        total.start()
        total.advance()
        put(lambda: log.append(("computed", processes.rank)))
        processes.wait(total.advance)
        put(lambda: log.append(("summed", processes.rank)))

    late = Event(disable_timing=True)
    run(2, act)
    for stream in Stream.made:
        while stream.queue and _step(stream, []):  # all that needs nobody else
            pass
    assert log == [("computed", 0)]
    late.over = True
    finish(0)
    assert sorted(log) == [("computed", 0), ("computed", 1), ("summed", 0), ("summed", 1)]


def test_mistakes(nccl):
    with pytest.raises(DeviceError, match=r"^NCCL: where must be a GPU such as cuda:0, got cpu$"):
        NCCL(Processes(), devices.device("cpu"))
    one = NCCL(Fake(0, 1, None), GPU)
    with pytest.raises(DtypeError, match=r"^NCCL: exchange takes contiguous arrays, got one of the strides \(8,\)$"):
        one.exchange([(1, zeros((4,), np.float32)[::2])], [])
    nccl.available = False
    with pytest.raises(DeviceError, match=r"^NCCL: CuPy finds no NCCL; pip install nvidia-nccl-cu12"):
        NCCL(Processes(), GPU)


def test_only_several_processes_with_gpus_need_nccl():
    alone, two = Processes(), Fake(0, 2, None)
    assert with_gpus(alone, GPU) is alone
    assert with_gpus(two, devices.device("cpu")) is two
    assert isinstance(run(2, lambda host: with_gpus(host, GPU))[1], NCCL)


@pytest.mark.parametrize(("spec", "opened"), [("cuda", "cuda:2"), ("auto", "cuda:2"), ("cuda:0", "cuda:0")])
def test_each_process_of_a_host_has_a_gpu_of_its_own(spec, opened, monkeypatch):
    monkeypatch.setattr("xcnn.parallel.nccl.device", lambda name: SimpleNamespace(name=FOUND.get(name, name)))
    processes = Fake(5, 8, None)
    processes.local_rank = 2
    assert device_of(processes, spec).name == opened
    assert device_of(Processes(), "cuda").name == "cuda:0"
    assert device_of(processes, "cpu").name == "cpu"


FOUND = {"cuda": "cuda:0", "auto": "cuda:0"}


class InOrder(Fake):
    """Processes whose exchanges of gradients and statistics end in the order in which they begin, as those of NCCL do.

    Messages have no tag, and `exchange` returns when they have come: in the order of a GPU's work, they have.
    """

    def exchange(self, sends, receives, tag=0):
        device = [array.dtype.kind == "f" and tag not in (0, 1) for _, array in (*sends, *receives)]
        assert len(set(device)) == 1 or not device
        if not any(device):
            return super().exchange(sends, receives, tag)
        done = super().exchange(sends, receives, 32_767)
        self.wait(done)
        return lambda: True


@pytest.mark.parametrize("sync", [False, True])
def test_all_processes_begin_their_exchanges_in_one_order(sync, monkeypatch):
    """The last batches have fewer parts than there are processes."""
    monkeypatch.setattr("fake_processes.Fake", InOrder)
    x, y = parallel.X[:34], parallel.Y[:34]
    alone = parallel.trainer(None, 4, sync_batch_norm=sync)
    alone.fit(data.Loader((x, y), batch_size=16), 2, progress=False)

    def act(processes):
        training = parallel.trainer(processes, 4, sync_batch_norm=sync)
        training._step._sums.nbytes = 2000
        training.fit(data.Loader((x, y), batch_size=16), 2, progress=False)
        return training.model.state_dict()

    assert alike([alone.model.state_dict(), *run(4, act)])
