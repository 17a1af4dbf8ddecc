#!/usr/bin/env bash
# Train on several machines under SLURM: sbatch examples/slurm.sh runs/paper paper-vit-b-32 --data "coco:/data/coco" ...
# The first word is the run's folder, on a disk that all machines share; the rest is what `diptych train` takes. Ten minutes
# before its time is over, the job saves, queues itself again, and goes on where it stopped.
#SBATCH --job-name=diptych
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

run=${1:?the run\'s folder, then what to train}
shift
what=("$@" --out "$run")
if [ -f "$run/config.yaml" ]; then what=(--resume "$run"); fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
  --rdzv-id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" --rdzv-backend c10d --rdzv-endpoint "$first:29500" \
  -m diptych train "${what[@]}" &
ranks=$!

stopped=
trap 'stopped=1; kill -TERM "$ranks"' TERM
wait "$ranks"
code=$?
if [ -n "$stopped" ]; then
  wait "$ranks"  # The signal interrupted the first one; now they save.
  scontrol requeue "$SLURM_JOB_ID"
  exit
fi
exit "$code"
