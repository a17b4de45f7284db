"""`hfsae train RECIPE ...` as a script, for launchers that start several processes.

GPUs:  accelerate launch --num_processes 8 scripts/train.py RECIPE
CPUs:  ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 \
           torchrun --standalone --nproc_per_node 2 scripts/train.py RECIPE
"""

import sys

from hfsae.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
