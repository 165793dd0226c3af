"""Walls around a process that reads a file of unknown origin: no network, no other program, no writing, bounded memory.

Each wall stands where the kernel has it, and none is needed for the others; docs/security.md lists them. All are the
kernel's own and need no privilege: seccomp (Linux 3.5), Landlock (5.13), resource limits, a network namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 64 * 2**20  # that it may write where it may: into memory
SPARE_ADDRESSES = 8 * 2**30  # of shared and mapped memory, beside what it allocates

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
CLONE_NEWNET, CLONE_NEWUSER = 0x40000000, 0x10000000

# Calls that reach the network, other processes or other programs, by machine.
DENIED: dict[str, dict[str, int]] = {
    "x86_64": {
        "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "bind": 49, "listen": 50, "execve": 59, "kill": 62,
        "ptrace": 101, "mount": 165, "tkill": 200, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "execveat": 322, "userfaultfd": 323,
        "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438,
    },
    "aarch64": {
        "mount": 40, "unshare": 97, "ptrace": 117, "kill": 129, "tkill": 130, "socket": 198, "bind": 200, "listen": 201,
        "accept": 202, "connect": 203, "sendto": 206, "keyctl": 219, "execve": 221, "perf_event_open": 241,
        "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "bpf": 280, "execveat": 281,
        "userfaultfd": 282, "pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438,
    },
}  # fmt: skip
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
OTHER_ABI = 0x40000000  # x32: the same calls under other numbers

LANDLOCK_CREATE, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT = 444, 445, 446
WRITE_FILE, TRUNCATE = 1 << 1, 1 << 14
WRITES = sum(1 << bit for bit in (1, *range(4, 13)))  # write, remove, make: those of its first version


def build_walls(memory_bytes: int, seconds: int) -> tuple[str, ...]:
    """Enclose this process for good. It must have one thread.

    Args:
        memory_bytes: that it may allocate beside what it has.
        seconds: of processor time.

    Returns:
        the walls that stand.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    walls: dict[str, Callable[[], None]] = {
        "ends with its parent": lambda: _prctl(libc, PR_SET_PDEATHSIG, signal.SIGKILL),
        "limits": lambda: _limit(memory_bytes, seconds),
        "network namespace": lambda: _leave_network(libc),
        "no new privileges": lambda: _prctl(libc, PR_SET_NO_NEW_PRIVS, 1),
        "landlock": lambda: _deny_writing(libc),
        "seccomp": lambda: _filter_calls(libc),
    }
    standing = []
    for name, build in walls.items():
        with contextlib.suppress(OSError, ValueError, AttributeError, KeyError):  # a kernel or a container without it
            build()
            standing.append(name)
    if "seccomp" not in standing:
        sys.addaudithook(_audit)
        standing.append("audit hook")
    return tuple(standing)


def _prctl(libc: Any, option: int, value: int) -> None:
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _limit(memory_bytes: int, seconds: int) -> None:
    held = {}
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        for line in status:
            name, _, value = line.partition(":")
            if name in ("VmSize", "VmData"):
                held[name] = 1024 * int(value.split()[0])
    bounds = {
        resource.RLIMIT_DATA: held["VmData"] + memory_bytes,
        resource.RLIMIT_AS: held["VmSize"] + memory_bytes + SPARE_ADDRESSES,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        wanted = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(kind, (wanted, wanted))


def _leave_network(libc: Any) -> None:
    """A namespace without interfaces. Root keeps its own user: in a new one it could not read the files of others."""
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def _deny_writing(libc: Any) -> None:
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    if version < 1:
        raise OSError(ctypes.get_errno(), "landlock")
    handled = WRITES | (TRUNCATE if version >= 3 else 0)
    rules = struct.pack("=Q", handled)
    ruleset = libc.syscall(LANDLOCK_CREATE, rules, len(rules), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock")
    try:
        null = os.open(os.devnull, os.O_PATH)
        try:
            allowed = struct.pack("=Qi", handled & (WRITE_FILE | TRUNCATE), null)
            libc.syscall(LANDLOCK_ADD_RULE, ruleset, 1, allowed, 0)
        finally:
            os.close(null)
        if libc.syscall(LANDLOCK_RESTRICT, ruleset, 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock")
    finally:
        os.close(ruleset)


def _filter_calls(libc: Any) -> None:
    machine = platform.machine()
    filters = _program(ARCHITECTURE[machine], sorted(DENIED[machine].values()))
    buffer = ctypes.create_string_buffer(b"".join(filters))
    program = struct.pack("HxxxxxxP", len(filters), ctypes.addressof(buffer))  # struct sock_fprog
    if libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def _program(architecture: int, denied: list[int]) -> list[bytes]:
    """Classic BPF over struct seccomp_data: the number of the call at 0, the architecture at 4."""
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO, EPERM
    count = len(denied)
    steps = [(load, 0, 0, 4), (equal, 0, count + 3, architecture), (load, 0, 0, 0), (at_least, count + 1, 0, OTHER_ABI)]
    steps += [(equal, count - index, 0, number) for index, number in enumerate(denied)]
    steps += [(answer, 0, 0, allow), (answer, 0, 0, refuse)]
    return [struct.pack("HBBI", *step) for step in steps]


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """The weakest wall, of Python alone, where the kernel takes no filter."""
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.posix_spawn", "os.system", "os.kill", "urllib.")):
        raise PermissionError(f"{event} is not for a reader of files")
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        raise PermissionError("a reader of files writes none")
