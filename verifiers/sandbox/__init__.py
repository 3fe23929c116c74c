"""Run untrusted programs shut in, in the strongest way the machine gives, and say which way that was.

    tier = choose()                              # or choose("namespaces"): that or stronger, or an error
    with launch_python(SOURCE, tier=tier, limits=Limits(cpu_s=5)) as program:
        program.write(b"41\\n", deadline=time.monotonic() + 1)
        answer = program.read(1000, deadline=time.monotonic() + 1)

`launch` starts any argv. `launch_python(source, args)` is `python -I -S -c source args` in a sandbox without
the 9 ms that starting an interpreter takes. Everything the program started ends with the `with` block, and
with this process, whatever ends it. What each tier stops and does not stop: docs/sandbox.md.
"""

from verifiers.sandbox.launching import confine, launch, launch_python
from verifiers.sandbox.probing import Probe, choose, probe
from verifiers.sandbox.process import Process
from verifiers.sandbox.tiers import Ending, Limits, SandboxUnavailable, Tier

__all__ = [
    "Ending",
    "Limits",
    "Probe",
    "Process",
    "SandboxUnavailable",
    "Tier",
    "choose",
    "confine",
    "launch",
    "launch_python",
    "probe",
]
