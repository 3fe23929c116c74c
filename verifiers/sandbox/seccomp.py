"""The system calls a sandboxed program may make: a list of allowed ones, as a BPF program for the kernel.

Everything that CPython and numpy need to compute, and nothing that reaches another process, the network, a
namespace, a device or the kernel's rarer corners. What is not on the list fails with EPERM; what is newer
than the list fails with ENOSYS, so that the C library takes its older way.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from functools import cache
from typing import Final

from verifiers.sandbox import linux

# name:x86_64:others, from the kernel's unistd headers.
_ALLOWED: Final = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 close:3:57 close_range:436:436 open:2:- openat:257:56 openat2:437:437
creat:85:- stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48
faccessat2:439:439 lseek:8:62 mmap:9:222 mprotect:10:226 munmap:11:215 mremap:25:216 madvise:28:233 brk:12:214
mincore:27:232 msync:26:227 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
rt_sigpending:127:136 rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sigaltstack:131:132
restart_syscall:219:128 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 flock:73:32
fsync:74:82 fdatasync:75:83 ftruncate:77:46 truncate:76:45 fallocate:285:47 fadvise64:221:223 getdents:78:-
getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 rename:82:- renameat:264:38 renameat2:316:276
mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35 link:86:- linkat:265:37 symlink:88:-
symlinkat:266:36 readlink:89:- readlinkat:267:78 chmod:90:- fchmod:91:52 fchmodat:268:53 umask:95:166
utimensat:280:88 utime:132:- utimes:235:- futimesat:261:- statfs:137:43 fstatfs:138:44 poll:7:- ppoll:271:73
select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21 epoll_wait:232:-
epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 timerfd_create:283:85
timerfd_settime:286:86 timerfd_gettime:287:87 signalfd:282:- signalfd4:289:74 timer_create:222:107
timer_settime:223:110 timer_gettime:224:108 timer_getoverrun:225:109 timer_delete:226:111 alarm:37:-
getitimer:36:102 setitimer:38:103 pause:34:- nanosleep:35:101 clock_nanosleep:230:115 clock_gettime:228:113
clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153 futex:202:98 futex_waitv:449:449
set_robust_list:273:99 rseq:334:293 membarrier:324:283 set_tid_address:218:96 gettid:186:178 getpid:39:172
getppid:110:173 getuid:102:174 getgid:104:176 geteuid:107:175 getegid:108:177 getresuid:118:148
getresgid:120:150 getgroups:115:158 getpgid:121:155 getpgrp:111:- getsid:124:156 getrlimit:97:163
setrlimit:160:164 getrusage:98:165 sysinfo:99:179 uname:63:160 getcpu:309:168 getrandom:318:278
getpriority:140:141 sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121
sched_getscheduler:145:120 sched_get_priority_max:146:125 sched_get_priority_min:147:126
sched_rr_get_interval:148:127 execve:59:221 wait4:61:260 waitid:247:95 exit:60:93 exit_group:231:94
arch_prctl:158:- capget:125:90 sendmsg:46:211 recvfrom:45:207 recvmsg:47:212 sendmmsg:307:269 recvmmsg:299:243
shutdown:48:210 getsockname:51:204 getpeername:52:205 getsockopt:55:209 setsockopt:54:208 sendfile:40:71
copy_file_range:326:285 splice:275:76 tee:276:77
"""
_NEWEST: Final = 451  # of the table's time: calls above it get ENOSYS

# Calls whose arguments are looked at: (x86_64, others).
_CLONE: Final = (56, 220)
_CLONE3: Final = (
    435,
    435,
)  # its flags are in memory, out of a filter's sight; the C library falls back to clone
_FORK: Final = (57, None)
_VFORK: Final = (58, None)
_PRCTL: Final = (157, 167)
_IOCTL: Final = (16, 29)
_FCNTL: Final = (72, 25)
_SOCKETPAIR: Final = (53, 199)
_SENDTO: Final = (44, 206)
_PRLIMIT: Final = (302, 261)
_SETAFFINITY: Final = (203, 122)
_KILL: Final = (62, 129)
_TKILL: Final = (200, 130)
_TGKILL: Final = (234, 131)

_CLONE_THREAD: Final = 0x00010000
_CLONE_FORBIDDEN: Final = (
    0x00008000  # CLONE_PARENT: a child that is nobody's here
    | 0x00000080  # CLONE_NEWTIME
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWCGROUP
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUSER
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
)
_PRCTL_ALLOWED: Final = (3, 15, 16, 38, 39)  # dumpable?, set and get a thread's name, no_new_privs
_IOCTL_ALLOWED: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)  # tty?, its size, bytes left, flags
_FCNTL_FORBIDDEN: Final = (8, 10, 15, 1026)  # signals to others: F_SETOWN, F_SETSIG, F_SETOWN_EX, F_NOTIFY
_SOCK_DGRAM: Final = 2

_LOAD, _JEQ, _JGT, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x25, 0x35, 0x45, 0x54, 0x06
_RET_ALLOW: Final = 0x7FFF0000
_RET_ERRNO: Final = 0x00050000
_RET_KILL: Final = 0x80000000
_AUDIT: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32: Final = 0x40000000

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


@dataclass(frozen=True, slots=True)
class Rules:
    """What differs between sandboxes."""

    may_fork: bool  # processes; threads are always allowed
    signals_only_to: int | None = (
        None  # where no namespace or Landlock holds signals in: only to this process
    )


def supported() -> bool:
    return linux.ON_LINUX and linux.MACHINE in _AUDIT


@cache
def program(rules: Rules) -> bytes:
    """The filter as the kernel takes it. Raises KeyError on a machine it has no numbers for."""
    column = list(_AUDIT).index(linux.MACHINE)
    code: list[Instruction] = [
        (_LOAD, 0, 0, 4),
        (_JEQ, 1, 0, _AUDIT[linux.MACHINE]),
        (_RET, 0, 0, _RET_KILL),  # the numbers mean other calls there (32-bit mode)
        (_LOAD, 0, 0, 0),
    ]
    if linux.MACHINE == "x86_64":
        code += [(_JGE, 0, 1, _X32), (_RET, 0, 0, _RET_KILL)]
    for numbers, block in _looked_at(rules):
        number = numbers[column]
        if number is not None:
            code += [(_JEQ, 0, len(block), number), *block]
    for low, high in _ranges(column):
        code += [(_JGE, 0, 2, low), (_JGT, 1, 0, high), _allow()]
    code += [(_JGT, 0, 1, _NEWEST), _fail(errno.ENOSYS), _fail(errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _allow() -> Instruction:
    return (_RET, 0, 0, _RET_ALLOW)


def _fail(code: int) -> Instruction:
    return (_RET, 0, 0, _RET_ERRNO | code)


def _argument(index: int, high: bool = False) -> Instruction:
    """Load the low (or high) half of an argument; both machines are little-endian."""
    return (_LOAD, 0, 0, 16 + 8 * index + 4 * high)


def _only(index: int, values: tuple[int, ...], code: int = errno.EPERM) -> list[Instruction]:
    """Allow these values of an argument's low half, the half that the kernel reads of an int."""
    last = len(values) - 1
    tests = [(_JEQ, last - place + 1, 0, value) for place, value in enumerate(values)]
    return [_argument(index), *tests, _fail(code), _allow()]


def _looked_at(rules: Rules) -> list[tuple[tuple[int, int | None], list[Instruction]]]:
    """(numbers of the call, what to do with it); each block ends in a return."""
    clone = [_argument(0), (_JSET, 0, 1, _CLONE_FORBIDDEN), _fail(errno.EPERM)]
    if not rules.may_fork:
        clone += [(_JSET, 1, 0, _CLONE_THREAD), _fail(errno.EAGAIN)]
    forking = [_allow() if rules.may_fork else _fail(errno.EAGAIN)]
    own = rules.signals_only_to
    signalling = [_allow()] if own is None else _only(0, (own,))
    fcntl_tests = [(_JEQ, len(_FCNTL_FORBIDDEN) - place, 0, c) for place, c in enumerate(_FCNTL_FORBIDDEN)]
    return [
        (_CLONE, [*clone, _allow()]),
        (_CLONE3, [_fail(errno.ENOSYS)]),
        (_FORK, forking),
        (_VFORK, forking),
        (_PRCTL, _only(0, _PRCTL_ALLOWED)),
        (_IOCTL, _only(1, _IOCTL_ALLOWED, errno.ENOTTY)),
        (_FCNTL, [_argument(1), *fcntl_tests, _allow(), _fail(errno.EPERM)]),
        # Pairs within the program only. A datagram socket could send to any socket file by its name.
        (
            _SOCKETPAIR,
            [
                _argument(0),
                (_JEQ, 1, 0, 1),
                _fail(errno.EPERM),
                _argument(1),
                (_AND, 0, 0, 0xF),
                (_JEQ, 0, 1, _SOCK_DGRAM),
                _fail(errno.EPERM),
                _allow(),
            ],
        ),
        (
            _SENDTO,
            [
                _argument(4),
                (_JEQ, 1, 0, 0),
                _fail(errno.EPERM),
                _argument(4, high=True),
                (_JEQ, 1, 0, 0),
                _fail(errno.EPERM),
                _allow(),
            ],
        ),
        (_PRLIMIT, _only(0, (0,))),
        (_SETAFFINITY, _only(0, (0,))),
        (_KILL, signalling),
        (_TKILL, [_allow()] if own is None else [_fail(errno.EPERM)]),
        (_TGKILL, signalling),
    ]


def _ranges(column: int) -> list[tuple[int, int]]:
    """The allowed numbers as runs (first, last), so that the filter is short."""
    numbers = sorted(
        int(entry.split(":")[1 + column]) for entry in _ALLOWED.split() if entry.split(":")[1 + column] != "-"
    )
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
