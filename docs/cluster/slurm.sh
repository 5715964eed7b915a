#!/bin/bash
# Trains on four machines with eight GPUs each: sbatch slurm.sh
# data_dir and work_dir must be on storage that all machines share.
#SBATCH --job-name=refinedet
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120

# One worker on each machine, which uses all its GPUs; the first one is the chief.
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
workers=$(sed 's/.*/"&:12355"/' <<<"$hosts" | paste -sd,)
export workers

# If a worker dies, all of them end, and the next attempt goes on from the last checkpoint.
for attempt in 1 2 3; do
    srun --kill-on-bad-exit=1 bash -c '
        export TF_CONFIG="{\"cluster\": {\"worker\": [$workers]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
        exec refinedet train --config=refinedet320_vgg16_coco --data_dir=/shared/coco --work_dir=/shared/runs/coco' && exit
    sleep 30
done
exit 1
