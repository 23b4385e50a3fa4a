#!/usr/bin/env bash
# Runs `prompt-tuning` on every worker of a TPU pod slice. The workers find each other by
# themselves. What follows -- goes to the command as it is:
#
#   TPU=my-v4-32 ZONE=us-central2-b scripts/tpu_pod.sh -- train \
#     --gin_file=models/t5_1_1_lm100k_xxl.gin --gin_file=peft/prompt.gin \
#     --gin_file=tasks/sst2.gin --gin_file=runs/train.gin \
#     --gin.INITIAL_CHECKPOINT_PATH=/mnt/shared/t5_1_1_lm100k_xxl --gin.DATA_DIR=/mnt/shared/glue \
#     --gin.MODEL_DIR=/mnt/shared/runs/sst2 --gin.NUM_PARTITIONS=8
#
# TPU      name of the slice; ZONE, PROJECT: where it is (gcloud's own defaults without them)
# FOLDER   a checkout on every worker, ~/prompt_tuning by default, whose .venv has jax[tpu];
#          SOURCE=https://... scripts/tpu_pod.sh --install makes it
# MODEL_DIR has to be one folder that all workers see (NFS, Filestore). The same command again goes
# on from the last checkpoint; exit code 75 says that the slice was asked to stop and has saved.
set -euo pipefail

: "${TPU:?give the name of the slice, as in TPU=my-v4-32}"
FOLDER=${FOLDER:-prompt_tuning}
SOURCE=${SOURCE:-}  # where --install clones from

on_all_workers() {
  gcloud compute tpus tpu-vm ssh "$TPU" --worker=all \
    ${ZONE:+--zone="$ZONE"} ${PROJECT:+--project="$PROJECT"} --command="$1"
}

case "${1:-}" in
  --install)
    : "${SOURCE:?give the address of the repository, as in SOURCE=https://...}"
    on_all_workers "set -e
      test -d '$FOLDER' || git clone '$SOURCE' '$FOLDER'
      cd '$FOLDER' && python3 -m venv .venv && .venv/bin/python -m pip install -e . 'jax[tpu]'"
    ;;
  --)
    shift
    # Quoted here, because every worker's shell reads the words once more.
    words=$(printf ' %q' "$@")
    on_all_workers "cd '$FOLDER' && PYTHONUNBUFFERED=1 .venv/bin/python -m prompt_tuning$words"
    ;;
  *)
    sed -n '2,/^set /{/^set /!s/^# \{0,1\}//p}' "$0" >&2
    exit 2
    ;;
esac
