"""Hosts on this machine: network namespaces with a link each to a switch, of a given rate and delay. Needs root.

`python tests/hosts.py` trains networks on four hosts, one process on each, and prints the measured time of a step
beside the predicted one, and with `--against torch` that of PyTorch's `DistributedDataParallel`. The weights must have
the bits of a single process, and the links must carry at least the bytes of the gradients: none may go through memory.

The kernel's own `netem` may be missing, so a program in user space, `delayed_switch.c`, forwards the frames. The hosts
share the cores of this machine, which is why the time that they compute is measured on all of them at once.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from xcnn import optim
from xcnn.compare import Case, Contestant
from xcnn.compare.contestants import Group
from xcnn.compare.worker import THREADS
from xcnn.parallel import launch_command, prediction, processes
from xcnn.parallel.launch import mpiexec
from xcnn.threads import set_num_threads
from xcnn.training import Trainer
from xcnn.training import step as training_step

SWITCH = Path(__file__).with_name("delayed_switch.c")

DEVICE = "link0"
"""The name of the device in each namespace."""

MTU = 9000
"""Bytes of the largest packet. Fewer and larger ones take less time of the processor, which the hosts share."""


def missing() -> str:
    """Return why there can be no hosts on this machine, or ""."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    for program, path in (("ip", shutil.which("ip")), ("cc", shutil.which("cc")), ("mpiexec", mpiexec())):
        if path is None:
            return f"{program} is missing"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    done = subprocess.run(["ip", "netns", "exec", "xcnn-none", "true"], capture_output=True, text=True)
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    return "" if tried.returncode == 0 and "No such file" in done.stderr else "network namespaces are not allowed here"


@dataclass
class Hosts:
    """Hosts, until the `with` block ends.

    Attributes
    ----------
    count : how many.
    rate : bits per second of each link, in each direction.
    delay : seconds from one host to another.
    """

    count: int = 4
    rate: float = 100e6
    delay: float = 1e-3

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            switch, self.launcher = folder / "switch", folder / "launcher"
            subprocess.run(["cc", "-O2", "-o", switch, SWITCH], check=True)
            self.names = [f"xcnn-{os.getpid()}-{k}" for k in range(self.count)]
            self.addresses = [f"10.77.0.{k + 1}" for k in range(self.count)]
            devices = [f"x{os.getpid()}-{k}" for k in range(self.count)]
            running = stack.enter_context(
                subprocess.Popen(
                    [switch, str(self.rate), str(self.delay), *devices], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            assert running.stdout.readline() == b"ready\n"
            with contextlib.suppress(PermissionError):  # the hosts leave it little time of the cores otherwise
                os.sched_setscheduler(running.pid, os.SCHED_FIFO, os.sched_param(1))
            for name, device, address in zip(self.names, devices, self.addresses, strict=True):
                _ip("netns", "add", name)
                stack.callback(_ip, "netns", "delete", name)
                _ip("link", "set", device, "netns", name, "name", DEVICE)
                inside = ("-n", name)
                _ip(*inside, "link", "set", DEVICE, "mtu", str(MTU), "up")
                _ip(*inside, "link", "set", "lo", "up")
                _ip(*inside, "address", "add", f"{address}/24", "dev", DEVICE)
            stack.callback(running.kill)  # before its devices go with the namespaces
            # mpiexec calls it as it would call ssh: options, the host, and the words of a command for a shell.
            cases = "".join(f"{a}) name={n} ;; " for a, n in zip(self.addresses, self.names, strict=True))
            self.launcher.write_text(
                "#!/bin/sh\n"
                'while [ "${1#-}" != "$1" ]; do shift; done\n'
                f'case $1 in {cases} *) echo "unknown host $1" >&2; exit 1 ;; esac\n'
                'shift\nexec ip netns exec "$name" sh -c "$*"\n'
            )
            self.launcher.chmod(0o755)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def inside(self, host: int, *command: object) -> list[str]:
        """Return the command that runs another on a host."""
        return ["ip", "netns", "exec", self.names[host], *map(str, command)]

    def mpiexec(self, *command: object) -> list[str]:
        """Return the command that runs another on all hosts, one process on each, with the first as `mpiexec`'s."""
        start = (mpiexec(), "-hosts", ",".join(self.addresses), "-ppn", 1, "-localhost", self.addresses[0])
        return self.inside(0, *start, "-launcher", "ssh", "-launcher-exec", self.launcher, "-n", self.count, *command)

    def environment(self) -> dict[str, str]:
        """Return the environment with which MPICH and gloo use the links, and not the memory that the hosts share."""
        tcp = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": DEVICE}
        return os.environ | tcp | dict.fromkeys(THREADS, "1") | {"GLOO_SOCKET_IFNAME": DEVICE}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def measure(network: str, batch: int, steps: int, against: str, folder: str) -> None:
    """Measure on all hosts at once, of which this process is one. The first one prints a line of JSON."""
    together = processes()
    set_num_threads(1)
    case, bucket = Case(network, batch, "train", 1, lr=0.05), training_step.bucket(together.size)
    part = replace(case, batch=batch // together.size)
    run, trainer = _trainer(case, together)
    sent = _sent()
    measured = _timed(together, run, steps)
    sent = (_sent() - sent) // (steps + _WARM)
    bits = _bits(trainer)
    alone, _ = _trainer(part)
    computing = _timed(together, alone, steps)
    facts = {"network": network, "batch": batch, "step": measured, "computing": computing, "sent": sent, "bits": bits}
    if together.rank == 0:
        one, reference = _trainer(case, accumulate=together.size)
        for _ in range(steps + _WARM):
            one()
        facts["same"] = _bits(reference) == bits
    together.gather(np.zeros(1))
    if against == "torch":
        contestant = Contestant("torch", "torch:cpu", "channels_last", together.size)
        with contestant.opened(case, Group(together.rank, together.size, folder)) as step:
            facts["torch"] = _timed(together, step, steps)
    gradients = prediction.gradients(case.network(), case.shape)
    sizes = [size for _, size in prediction.buckets(gradients, bucket)]
    usual = sum(size * size for size in sizes) // sum(sizes)  # the bucket of a byte, on average
    link = prediction.measure(together, usual // together.size, len(sizes), 20)
    figures = 4 if list(trainer.model.named_buffers()) else 2
    work = prediction.Work(batch, 0.0, computing / part.batch, gradients, figures=figures)
    facts |= {"nbytes": sum(sizes), "link": asdict(link)}
    for way in prediction.WAYS:
        facts[way] = prediction.step(work, link, together.size, bucket, way).seconds
    if together.rank == 0:
        print(json.dumps(facts), flush=True)


_WARM = 3
"""Steps before the measured ones."""


def _trainer(case: Case, together: Any = None, accumulate: int | None = None) -> tuple[Callable[[], object], Trainer]:
    network = case.network()
    optimizer = optim.SGD(network.parameters(), lr=case.lr, momentum=0.9)
    trainer = Trainer(network, optimizer, parallel=together, accumulate=accumulate)
    x, y = case.arrays()
    return lambda: trainer.step(x, y), trainer


def _timed(together: Any, step: Callable[[], object], steps: int) -> float:
    """Return the median time of a step, of the slowest process; they all begin together."""
    for _ in range(_WARM):
        step()
    together.gather(np.zeros(1))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return max(float(one[0]) for one in together.gather(np.asarray([statistics.median(times)])))


def _bits(trainer: Trainer) -> str:
    digest = hashlib.sha256()
    for _, array in sorted(trainer.model.state_dict().items()):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _sent() -> int:
    counter = Path(f"/sys/class/net/{DEVICE}/statistics/tx_bytes")
    return int(counter.read_text()) if counter.exists() else 0


def _shown(facts: dict[str, Any], count: int) -> bool:
    """Print what was measured; return whether the bits are those of one process, and the links carried what they must.

    `count` is the number of hosts.
    """
    link, need = facts["link"], 2 * (count - 1) * facts["nbytes"] // count
    print(
        f"{facts['network']}, batch {facts['batch']}, {facts['nbytes'] / 1e6:.2f} MB of gradients: "
        f"step {1e3 * facts['step']:.1f} ms, predicted {1e3 * facts['direct']:.1f} ms "
        f"({facts['direct'] / facts['step'] - 1:+.0%}), of which {1e3 * facts['computing']:.1f} ms compute"
    )
    print(
        f"  link: {1e3 * link['latency']:.2f} ms, {8e-6 * link['bandwidth']:.1f} Mbit/s, "
        f"{1e6 * link['message']:.1f} us per message, copying {1e-9 * link['copying']:.2f} and adding "
        f"{1e-9 * link['adding']:.1f} GB/s"
    )
    others = ", ".join(f"{way} {1e3 * facts[way]:.1f} ms" for way in prediction.WAYS[1:])
    print(f"  predicted for other ways: {others}")
    if "torch" in facts:
        print(f"  PyTorch: {1e3 * facts['torch']:.1f} ms, ratio {facts['torch'] / facts['step']:.2f}")
    same, carried = facts["same"], facts["sent"] >= need
    print(f"  bits of one process: {'the same' if same else 'OTHERS'} ({facts['bits'][:16]})")
    doubt = "" if carried else ": NOT ALL"
    if count > 1:
        print(f"  sent per step and host: {facts['sent']:,} bytes, at least {need:,} are needed{doubt}")
    return bool(same and carried)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", default="lenet5,resnet20", help="separated by commas")
    parser.add_argument("--batch", type=int, default=128, help="images of the whole batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--here", action="store_true", help="start the processes on this host, without links")
    parser.add_argument("--rate", type=float, default=100e6, help="bits per second of each link")
    parser.add_argument("--delay", type=float, default=1e-3, help="seconds from host to host")
    parser.add_argument("--bucket", type=int, default=0, help="bytes of a bucket of gradients")
    parser.add_argument("--against", default="", help="torch to measure PyTorch too")
    parser.add_argument("--member", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bucket:
        training_step.BUCKET, training_step.SLICE = given.bucket, 0
    if given.member:
        measure(given.networks, given.batch, given.steps, given.against, given.member)
        return 0
    if not given.here and (reason := missing()):
        print(f"skipped: {reason}")
        return 0
    fine = True
    with contextlib.ExitStack() as stack:
        hosts = None if given.here else stack.enter_context(Hosts(given.hosts, given.rate, given.delay))
        links = f", links of {given.rate / 1e6:g} Mbit/s and {1e3 * given.delay:g} ms" if hosts else " here"
        print(f"{given.hosts} processes{links}, buckets of {training_step.bucket(given.hosts):,} bytes")
        for network in given.networks.split(","):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            command = [sys.executable, __file__, *sys.argv[1:], "--networks", network, "--member", folder]
            start = launch_command(given.hosts, *command) if hosts is None else hosts.mpiexec(*command)
            environment = hosts.environment() if hosts else os.environ | dict.fromkeys(THREADS, "1")
            done = subprocess.run(start, env=environment, stdout=subprocess.PIPE, text=True)
            fine &= done.returncode == 0 and _shown(json.loads(done.stdout), given.hosts if hosts else 1)
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
