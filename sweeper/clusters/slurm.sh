#!/bin/bash
# One sweep on one Slurm allocation, of one node or several:
#
#   sbatch --nodes=2 --gpus-per-node=8 --time=24:00:00 sweeper/clusters/slurm.sh FILE NAME RESULTS
#
# FILE is the search-space file, NAME the name in it, RESULTS a folder that every node sees (NFS, Lustre). `sweeper` and
# `ray` are taken from PATH: activate their environment before `sbatch`. Five minutes before the time limit, and when it is
# told to end (`scancel --signal=TERM --batch JOB`), running stages save their state and the job is queued again.
# The job has its nodes for itself: `ray symmetric-run` refuses beside another Ray, and ends with `ray stop`, which would
# end every Ray of yours on the node.
#SBATCH --job-name=sweep
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@300
set -euo pipefail
file=${1:?the search-space file} name=${2:?the name in it} results=${3:?a folder that every node sees}

address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 10000))
# Names of sockets are cut at 107 characters, which a job's own TMPDIR may fill alone.
export RAY_TMPDIR=/tmp/ray-$SLURM_JOB_ID
# Whoever reaches Ray runs code. The token stands in the environment of this job's processes and nowhere else.
RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

again=
stop() {
  again=yes
  sweeper stop "$name" --results "$results" || true
}
trap stop TERM

srun --cpus-per-task="$SLURM_CPUS_ON_NODE" \
  ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
  --num-cpus="$SLURM_CPUS_ON_NODE" --object-store-memory=200000000 -- \
  sh -c 'touch "$RAY_TMPDIR/begun"; exec "$@"' sh sweeper run "$file" --results "$results" --address "$address" &
step=$!
# A signal ends `wait`, not what it waits for.
while kill -0 "$step" 2>/dev/null; do
  wait "$step" || true
done
code=0
wait "$step" || code=$?
if [[ $code -eq 0 && ! -e $RAY_TMPDIR/begun ]]; then # symmetric-run ends with 0 where its Ray does not start
  echo "Ray did not start: see above" >&2
  code=1
fi
rm -rf "$RAY_TMPDIR"

# 3: stopped before its end. By a spent budget or somebody's `sweeper stop` it is over; by Slurm it goes on.
if [[ $code -eq 3 && -n $again ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
