"""Which tiers this machine gives, found out by launching a program in each, and which one to use."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from verifiers.sandbox import landlock, seccomp
from verifiers.sandbox.launching import launch_python
from verifiers.sandbox.tiers import Limits, SandboxUnavailable, Tier

CURES = {
    Tier.BUBBLEWRAP: "install the package bubblewrap, and let users make user namespaces",
    Tier.NAMESPACES: (
        "let users make user namespaces: sysctl user.max_user_namespaces above 0, "
        "kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); "
        "in a container, run it with --security-opt seccomp=unconfined or with CAP_SYS_ADMIN"
    ),
    Tier.LANDLOCK: "a Linux kernel from 5.13 on with Landlock switched on (lsm=landlock,... at boot)",
    Tier.LIMITS: "an operating system with fork()",
}


@dataclass(frozen=True, slots=True)
class Probe:
    """Why each tier is not available ("" where it is)."""

    why_not: Mapping[Tier, str]

    @property
    def available(self) -> list[Tier]:
        """Strongest first."""
        return [tier for tier in sorted(Tier, reverse=True) if not self.why_not[tier]]

    @property
    def strongest(self) -> Tier | None:
        return next(iter(self.available), None)


def probe() -> Probe:
    """Every tier tried, once per process."""
    return Probe({tier: why_not(tier) for tier in Tier})


def why_not(tier: Tier) -> str:
    """Why the tier is not available here, "" if it is; tried once per process."""
    return _try(tier, os.getpid())


@cache
def _try(tier: Tier, _pid: int) -> str:
    if not hasattr(os, "fork"):
        return f"{sys.platform} cannot fork"
    if tier > Tier.LIMITS and not seccomp.supported():
        return f"no seccomp filter for {sys.platform} on {os.uname().machine}"
    if tier is Tier.LANDLOCK and not landlock.abi():
        return "this kernel has no Landlock"
    try:
        deadline = time.monotonic() + 20
        with launch_python("print(6 * 7)", tier=tier, limits=Limits(cpu_s=5, memory_mb=256)) as program:
            said = program.communicate(b"", 100, deadline)
            if said == b"42\n":
                return ""
            return f"a first program {program.wait(deadline)}: {program.stderr_tail()[-200:]}"
    except SandboxUnavailable as fault:
        return f"{fault.what}: {fault.why}"
    except (OSError, TimeoutError) as fault:
        return f"a first program did not run: {fault}"


def choose(demand: Tier | str | None = None, allow_weak: bool = False) -> Tier:
    """The strongest tier of this machine, if it is as strong as demanded.

    The limits tier shuts nothing in, so it is taken only with `allow_weak` or when it is demanded by name.
    Raises SandboxUnavailable.
    """
    least = _tier(demand) or (Tier.LIMITS if allow_weak else Tier.LANDLOCK)
    reasons = []
    for tier in sorted(Tier, reverse=True):
        if tier < least:
            break
        reason = why_not(tier)
        if not reason:
            return tier
        reasons.append((tier, reason))
    consent = "; or run untrusted code with resource limits only (allow_weak)" if demand is None else ""
    raise SandboxUnavailable(
        f"this machine gives no sandbox of tier {least} or stronger",
        "; ".join(f"{tier}: {reason}" for tier, reason in reasons),
        "; or ".join(CURES[tier] for tier, _ in reasons) + consent,
    )


def _tier(demand: Tier | str | None) -> Tier | None:
    if demand is None or isinstance(demand, Tier):
        return demand
    try:
        return Tier[demand.upper()]
    except (KeyError, AttributeError):
        known = ", ".join(str(tier) for tier in sorted(Tier, reverse=True))
        raise SandboxUnavailable(f"sandbox: no tier {demand!r}", f"the tiers are {known}") from None
