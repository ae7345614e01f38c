#!/usr/bin/env bash
# Train with several processes on this computer, and start them again if one is killed, until the run is complete:
#
#     bash examples/until_done.sh 4 runs/long --dataset mnist --model lenet5 --epochs 20
#
# The first argument is the number of processes, which may be another one when a run goes on. XCNN_MPIEXEC may name
# another command than mpiexec, such as "mpiexec --oversubscribe".
set -euo pipefail

most=20 # starts
processes=$1 out=$2
shift 2
read -r -a mpiexec <<<"${XCNN_MPIEXEC:-mpiexec}"

for ((start = 1; start <= most; start++)); do
    if [[ -e $out/config.json ]]; then
        arguments=(--resume "$out")
    else
        arguments=(--out "$out" "$@")
    fi
    code=0
    "${mpiexec[@]}" -n "$processes" xcnn train "${arguments[@]}" || code=$?
    case $code in
        0 | 1 | 2 | 3 | 130 | 143) exit "$code" ;; # complete, an error of xcnn that would come again, or stopped
    esac
    echo "a process was lost (exit code $code); going on from the last checkpoint" >&2
    sleep 1
done
exit "$code"
