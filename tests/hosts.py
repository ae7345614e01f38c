"""Hosts on this machine: network namespaces with a link each to a switch, of a given rate and delay. Needs root.

The kernel's own `netem` may be missing, so a program of user space, `delayed_switch.c`, forwards the frames.
`python tests/hosts.py -- COMMAND` runs a command with `mpiexec`, one process per host; `--measure` measures the links.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

SWITCH = Path(__file__).with_name("delayed_switch.c")

DEVICE = "link0"
"""The name of the device in each namespace."""

MTU = 9000
"""Bytes of the largest packet. Fewer and larger ones take less time of the processor, which the hosts share."""


def missing() -> str:
    """Return why there can be no hosts on this machine, or ""."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    for program in ("ip", "cc", "mpiexec"):
        if found(program) is None:
            return f"{program} is missing"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    done = subprocess.run(["ip", "netns", "exec", "xcnn-none", "true"], capture_output=True, text=True)
    tried = subprocess.run(["unshare", "-n", "true"], capture_output=True, text=True)
    return "" if tried.returncode == 0 and "No such file" in done.stderr else "network namespaces are not allowed here"


def found(program: str) -> str | None:
    """Return the path of a program, beside this Python or in the PATH."""
    return shutil.which(program, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))


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
            assert running.stdin is not None
            assert running.stdout is not None
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
        start = (found("mpiexec"), "-hosts", ",".join(self.addresses), "-ppn", 1, "-localhost", self.addresses[0])
        return self.inside(0, *start, "-launcher", "ssh", "-launcher-exec", self.launcher, "-n", self.count, *command)

    def environment(self) -> dict[str, str]:
        """Return the environment with which MPICH and gloo use the links, and not the memory that the hosts share."""
        tcp = {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp", "FI_TCP_IFACE": DEVICE}
        return os.environ | tcp | {"GLOO_SOCKET_IFNAME": DEVICE}

    def sent(self) -> list[int]:
        """Return the bytes that each host has sent so far."""
        path = f"/sys/class/net/{DEVICE}/statistics/tx_bytes"
        return [
            int(subprocess.run(self.inside(k, "cat", path), capture_output=True, check=True).stdout)
            for k in range(self.count)
        ]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
