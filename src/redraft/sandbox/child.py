"""A process of ``redraft.sandbox``: gives up its rights, and then runs the program, or the tests of one.

It is started as a script and imports nothing but the standard library.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import os
import signal
import sys
import types
from typing import Any

# System calls that are allowed as they are, for x86-64 and 64-bit ARM; None: the machine doesn't have it.
_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None),
    "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "readv": (19, 65), "writev": (20, 66), "access": (21, None), "select": (23, None), "sched_yield": (24, 124),
    "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None),
    "gettimeofday": (96, 169), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
_OPENAT, _CLONE, _FCNTL = (257, 56), (56, 220), (72, 25)
# Copies and flags of a file descriptor. Other commands make the kernel signal any process of the user, or lease files.
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030, 1032)  # DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC, GETPIPE_SZ
_CLONE3 = 435  # of both; its arguments are out of a filter's sight, so libraries are told to use the older call
_OPEN = 2  # of x86-64 alone
_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREAD = 0x10000  # CLONE_THREAD: part of this process

# Berkeley packet filters (linux/filter.h), whose input is struct seccomp_data (linux/seccomp.h).
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _ABSENT = 0x00050001, 0x00050026  # the call returns EPERM, ENOSYS
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER, _PARENT_DEATH, _DUMPABLE = 38, 22, 2, 1, 4  # linux/prctl.h
_CAPABILITIES_VERSION = 0x20080522  # linux/capability.h
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # landlock, of both machines
_ALL_ACCESS, _READ_FILE, _READ_FOLDER, _BENEATH = (1 << 13) - 1, 1 << 2, 1 << 3, 1  # linux/landlock.h, version 1
_READABLE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo")
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom")


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint))


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("first", ctypes.POINTER(_Instruction)))


def rules(machine: str) -> list[tuple[int, int, int, int]]:
    """The filter of a machine as instructions (code, jump if true, jump if false, value)."""
    column = 0 if machine == "x86_64" else 1
    found = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, _ARCHITECTURES[machine]), (_RETURN, 0, 0, _KILL)]
    found.append((_LOAD, 0, 0, _NUMBER_AT))
    opens = [(_OPENAT[column], 2)] + ([(_OPEN, 1)] if machine == "x86_64" else [])
    for call, argument in opens:  # reading only
        found += _if_argument(call, argument, _WRITING, _REFUSE, _ALLOW)
    found += _if_argument(_CLONE[column], 0, _THREAD, _ALLOW, _REFUSE)
    found += _if_equal(_FCNTL[column], 1, _FCNTL_COMMANDS)
    found += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ABSENT)]
    for numbers in _ALLOWED.values():
        if (allowed := numbers[column]) is not None:
            found += [(_EQUAL, 0, 1, allowed), (_RETURN, 0, 0, _ALLOW)]
    return [*found, (_RETURN, 0, 0, _REFUSE)]


def _if_argument(call: int, argument: int, bits: int, then: int, otherwise: int) -> list[tuple[int, int, int, int]]:
    """Decide a call by the bits of one of its arguments: ``then`` if any of them is set."""
    low = _ARGUMENTS_AT + 8 * argument  # the lower half, on machines that store it first
    return [
        (_EQUAL, 0, 4, call),
        (_LOAD, 0, 0, low),
        (_ANY_BIT, 0, 1, bits),
        (_RETURN, 0, 0, then),
        (_RETURN, 0, 0, otherwise),
    ]


def _if_equal(call: int, argument: int, values: tuple[int, ...]) -> list[tuple[int, int, int, int]]:
    """Allow a call if one of its arguments has one of some values, and refuse it otherwise."""
    tests = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    load = (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument)
    return [(_EQUAL, 0, len(values) + 3, call), load, *tests, (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]


class _Ruleset(ctypes.Structure):
    _fields_ = (("handled", ctypes.c_uint64),)


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def read_only_library(system: Any) -> bool:
    """Let this process read the standard library, shared libraries and its own folder, and nothing else (landlock).

    False: the kernel has no landlock, and files are as readable as to the user.
    """
    wanted = _Ruleset(_ALL_ACCESS)
    ruleset = system.syscall(_CREATE_RULESET, ctypes.byref(wanted), ctypes.sizeof(wanted), 0)
    if ruleset < 0:
        return False
    for path in {*_READABLE, *_FILES, *sys.path, os.path.join(sys.base_prefix, "lib"), os.getcwd()}:
        if os.path.exists(path):
            folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = _READ_FILE | (_READ_FOLDER if os.path.isdir(path) else 0)
            system.syscall(_ADD_RULE, ruleset, _BENEATH, ctypes.byref(_Beneath(allowed, folder)), 0)
            os.close(folder)
    found = system.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return bool(found)


def confine(machine: str) -> None:
    """Give up all rights for the rest of this process: capabilities, files, system calls.

    Other processes of the same user can't read its memory, nor it theirs.

    Raises:
        OSError: the kernel refused the filter of system calls.
    """
    instructions = [_Instruction(*each) for each in rules(machine)]
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(instructions), array)
    system = ctypes.CDLL(None, use_errno=True)
    system.prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    system.capset((ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0), (ctypes.c_uint32 * 6)())
    system.prctl(_DUMPABLE, 0, 0, 0, 0)
    system.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)  # which landlock needs
    read_only_library(system)
    if system.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or system.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def limit(order: dict[str, Any]) -> None:
    """Set the limits of memory, time, output, files and processes."""
    import resource  # not on every system

    seconds, memory, output = math.ceil(order["seconds"]), order["memory"] << 20, order["output"] << 10
    for what, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(what, (value, value))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing more is an OSError in the program
    signal.setitimer(signal.ITIMER_REAL, order["wall"])  # SIGALRM ends the process


def run(order: dict[str, Any], calls: Any) -> str:
    """Run what the order holds; how it ended, empty if well.

    The tests are confined before the program begins: it waits for their first message.
    """
    line = calls.Line(order["read"], order["write"]) if order["read"] >= 0 else None
    if order["role"] == "program" and line is not None:
        line.receive()
    limit(order)
    confine(order["machine"])
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module  # nothing of this file is in the program's reach by name
    names = vars(module)
    os.write(order["result"], b"started\n")
    try:
        if order["role"] == "tests" and line is not None:
            line.send("begin")
            line.receive()
            names.update(calls.names_for(line, order["source"]))
        exec(compile(order["source"], order["role"], "exec"), names)
        sys.stdout.flush()
        if order["role"] == "program" and line is not None:
            line.send("ready")
            calls.serve(line, names)
            sys.stdout.flush()
    except calls.Gone:
        return "Gone"
    except BaseException as exception:  # whatever a foreign program raises
        return f"{type(exception).__name__}: {str(exception)[:200]}"
    return ""


def main(given: int) -> None:
    """Do what the order in the file descriptor ``given`` says, and tell how it ended."""
    with open(given, encoding="utf-8", closefd=True) as file:
        order = json.load(file)
    spec = importlib.util.spec_from_file_location("calls", os.path.join(os.path.dirname(__file__), "calls.py"))
    assert spec is not None and spec.loader is not None
    calls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(calls)
    sys.argv = ["program"]
    sys.set_int_max_str_digits(0)  # numbers of any size pass from one process to the other
    error = run(order, calls)
    os.write(order["result"], json.dumps({"error": error}).encode())
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
