#!/usr/bin/env bash
# Train with several processes under Slurm, through time limits, preemption and lost nodes, until the run is complete:
#
#     sbatch examples/slurm_train.sh runs/large --dataset cifar10 --data-dir data --model resnet20 --epochs 200
#
# As an array it trains one run for each seed, here 0 to 9, at most four at a time, in runs/seeds/seed-0 and so on:
#
#     sbatch --array=0-9%4 --ntasks=1 examples/slurm_train.sh runs/seeds --dataset mnist --data-dir data --model lenet5
#
# Two minutes before the time limit, Slurm sends SIGTERM to all processes. They finish the step and write a checkpoint,
# and the job is queued again. It may then get another number of processes: the results are the same, bit for bit.
#SBATCH --job-name=xcnn
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

most=20 # times that the job is queued again
out=$1
shift
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then
    out=$out/seed-$SLURM_ARRAY_TASK_ID
    set -- "$@" --seed "$SLURM_ARRAY_TASK_ID"
fi

if [[ -e $out/config.json ]]; then
    arguments=(--resume "$out")
else
    arguments=(--out "$out" "$@")
fi
code=0
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" xcnn train "${arguments[@]}" || code=$?

# 143: stopped by SIGTERM; others above 128: a process was killed. Errors of xcnn, 1 and 2, would come again.
if ((code > 128 && code != 130 && ${SLURM_RESTART_COUNT:-0} < most)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
