"""reaper.py COMMAND…: run it, reap whatever it leaves behind, and end all of that with it.

libvirt waits for the QEMUs that it ends until they are gone, for ever where process 1 reaps nothing, as in many
containers. What it starts becomes a child of this process, which ends those, by their numbers, when it is ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
prctl = ctypes.CDLL(None).prctl
prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

child = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
while True:
    try:
        pid, _ = os.wait()
    except ChildProcessError:
        break
    if pid == child.pid:
        for left in Path("/proc/thread-self/children").read_text().split():
            os.kill(int(left), signal.SIGKILL)
