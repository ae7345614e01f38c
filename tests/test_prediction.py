"""The model of the time of a step in several processes. Run as a program, this file prints the tables of the docs."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from fake_processes import run

from xcnn import models, nn
from xcnn.parallel.prediction import WAYS, Link, Work, efficiency, gradients, measure, step
from xcnn.training.step import bucket

RANKS = tuple(2**k for k in range(1, 11))

NETWORKS = {"lenet5": (4096, 0.12e-3, 0.024e-3), "resnet20": (4096, 1.1e-3, 1.08e-3), "resnet50": (8192, 32e-3, 139e-3)}
"""Images of the whole batch; seconds of a step, and per image, on one thread, as measured at 1 to 64 images."""

LINKS = {
    "within a host": Link(1e-6, math.inf, 2e-6, 9e9, 10e9),
    "10 Gbit/s Ethernet": Link(30e-6, 1.1e9, 5e-6, 3e9, 10e9),
    "100 Gbit/s fabric": Link(2e-6, 11e9, 0.5e-6, math.inf, 10e9),
}
"""The first has measured numbers; the others have usual ones of TCP, and of a device that moves bytes by itself."""

BUCKETS = tuple(2**k for k in range(17, 26))
"""Sizes of buckets, of which the best counts for the usual ways."""

LINK = Link(1e-3, 1e6, 0.0, math.inf, math.inf)


def tables():
    """Return the tables of the docs, as lines."""
    lines = ["| network | images of a step | fixed, ms | per image, ms | gradients, MB |", "|---|---:|---:|---:|---:|"]
    works = {}
    for name, (images, fixed, each) in NETWORKS.items():
        network = models.build(name, seed=None)
        figures = 4 if any(isinstance(one, nn.BatchNorm2d) for _, one in network.modules()) else 2
        works[name] = Work(images, fixed, each, gradients(network, models.entry(name).shape), figures=figures)
        size = sum(size for _, size in works[name].gradients) / 1e6
        lines.append(f"| {name} | {images:,} | {1e3 * fixed:g} | {1e3 * each:g} | {size:.2f} |")
    columns = ("latency, us", "bandwidth, GB/s", "message, us", "copying, GB/s", "adding, GB/s")
    lines += ["", f"| link | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
    for name, one in LINKS.items():
        cells = (one.latency * 1e6, one.bandwidth / 1e9, one.message * 1e6, one.copying / 1e9, one.adding / 1e9)
        shown = ("not limited" if math.isinf(cell) else f"{cell:g}" for cell in cells)
        lines.append(f"| {name} | {' | '.join(shown)} |")
    lines += ["", f"| network | link | sum | {' | '.join(f'{n:,}' for n in RANKS)} |", "|---|---|---|" + "---:|" * 10]
    for network, work in works.items():
        for link, one in LINKS.items():
            for way in WAYS:
                cells = []
                for ranks in RANKS:
                    sizes = (bucket(ranks),) if way == "direct" else BUCKETS
                    cells.append(max(efficiency(work, one, ranks, size, way) for size in sizes))
                name = "xcnn" if way == "direct" else way
                lines.append(f"| {network} | {link} | {name} | {' | '.join(f'{cell:.1%}' for cell in cells)} |")
    return lines


def test_the_tables_in_the_docs_are_what_the_model_says():
    page = Path(__file__).parents[1] / "docs" / "parallel.md"
    if not page.exists():
        pytest.skip("there is no docs/parallel.md here")
    text = page.read_text("utf-8")
    for line in tables():
        assert line in text


def test_one_process_only_computes():
    work = Work(10, 1.0, 2.0, [(1.0, 1000)])
    alone = step(work, LINK, 1, 1)
    assert (alone.seconds, alone.serving, alone.waiting) == (21.0, 0.0, 0.0)
    assert efficiency(work, LINK, 1, 1) == 1.0


@pytest.mark.parametrize(("way", "latencies"), [("direct", 1), ("halving", 3), ("ring", 7)])
def test_an_exchange_that_nothing_hides(way, latencies):
    # A bucket that is ready at the end: 7/8 of 8 MB go over the link at 1 MB/s, twice.
    found = step(Work(8, 0.5, 1.0, [(1.0, 8_000_000)]), LINK, 8, 1, way)
    assert found.computing == 1.5
    assert found.waiting == pytest.approx(2 * (7.0 + latencies * 1e-3))
    assert found.seconds == pytest.approx(found.computing + found.waiting)


def test_an_exchange_that_the_backward_pass_hides():
    # Ready after half of the backward pass, which takes 2/3 of 30 s: 1 s each way fits into the 10 s that are left.
    found = step(Work(60, 0.0, 1.0, [(0.5, 2_000_000)]), LINK, 2, 1)
    assert found.waiting == pytest.approx(LINK.latency)  # of the figures
    late = step(Work(60, 0.0, 1.0, [(0.5, 2_000_000), (1.0, 0)]), LINK, 2, 10**9)  # one bucket, complete at the end
    assert late.waiting == pytest.approx(2 * (1.0 + LINK.latency))


def test_a_link_carries_one_exchange_after_the_other():
    # Two buckets ready at the end: the link is used for 4 s, and only the last latency is waited for at the end.
    found = step(Work(2, 0.0, 1.0, [(1.0, 2_000_000), (1.0, 2_000_000)]), LINK, 2, 1)
    assert found.waiting == pytest.approx(4.0 + LINK.latency)


def test_the_processor_serves_messages_and_bytes():
    link = Link(0.0, math.inf, 1e-3, 1e6, 2e6)
    found = step(Work(4, 0.0, 1.0, [(1.0, 4_000_000)]), link, 4, 1)
    messages, copied, added = 1e-3 * 2 * 3 * 2, 4 * 3.0, (4.0 + 3.0 + 4.0) / 2  # packed, added and divided
    figures = 2 * 2 * 3 * 1e-3
    assert found.serving == pytest.approx(messages + copied + added + figures)
    assert found.waiting == pytest.approx(0.0, abs=1e-9)
    few = step(Work(4, 0.0, 1.0, [(1.0, 4_000_000)]), link, 4, 1, "halving")
    assert found.serving - few.serving == pytest.approx(1e-3 * 2 * 4 * (3 - 2))  # 3 messages each way for 2 steps


def test_all_ways_are_alike_for_two_processes_and_differ_most_in_many():
    work = Work(4096, 1e-3, 1e-3, [(k / 10, 100_000) for k in range(1, 11)])
    link = Link(30e-6, 1e9, 5e-6, 3e9, 1e10)
    assert len({step(work, link, 2, 1 << 17, way).seconds for way in WAYS}) == 1
    direct, halving, ring = (step(work, link, 1024, 1 << 20, way).seconds for way in WAYS)
    assert halving < direct < ring
    assert 0 < efficiency(work, link, 1024, 1 << 20) < efficiency(work, link, 16, 1 << 20) < 1
    slower = replace(link, bandwidth=1e8)
    assert efficiency(work, slower, 16, 1 << 20) < efficiency(work, link, 16, 1 << 20)


def test_gradients_come_from_the_last_layer_to_the_first():
    network = models.build("lenet5", seed=None)
    found = gradients(network, (1, 28, 28))
    assert sum(size for _, size in found) == 4 * sum(p.data.size for p in network.parameters())
    shares = [share for share, _ in found]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert found[0][1] == 4 * sum(p.data.size for p in list(network.parameters())[-2:])


def test_a_link_is_measured_between_processes():
    found = run(3, lambda processes: measure(processes, 1 << 12, 2, 4))
    assert found[0] == found[1] == found[2]
    assert found[0].latency >= 0
    assert found[0].message >= 0
    assert min(found[0].bandwidth, found[0].copying, found[0].adding) > 0


if __name__ == "__main__":
    print("\n".join(tables()))
