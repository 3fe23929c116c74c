"""One file a stage kind, each a process of its own."""

import os

# Before torch is loaded: threads that wait sleep instead of spinning. On a machine that does anything else besides, two
# spinning threads make a training step ten times slower; on an idle one the difference is small.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
