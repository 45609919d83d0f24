"""What all tests share."""

import os

# Before torch is imported: several processes share few cores, and OpenMP's busy waiting would have them fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
