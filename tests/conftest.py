"""What the tests of several rooms share."""

import os
import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def torchrun():
    """`torchrun(script, processes, *arguments)`: runs a script in that many gloo processes; returns what they said."""

    def run(script, processes: int, *arguments) -> str:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        done = subprocess.run(
            [*launcher, str(script), *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        return done.stdout

    return run
