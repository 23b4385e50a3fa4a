#!/usr/bin/env bash
# From a clone to a trained prompt: installs into .venv, trains a soft prompt and, for comparison,
# the whole model on the bundled backbone, and ends with a table and a learning curve.
#   scripts/demo.sh [folder for the results, runs/demo by default]
# TASK chooses another of gin/tasks/demo_*.gin.
set -euo pipefail
case "${1:-}" in
  '') out=runs/demo ;;
  /*) out=$1 ;;
  *) out=$PWD/$1 ;;  # as the caller means it, wherever that is
esac
cd "$(dirname "$0")/.."

# Earlier results are replaced; a folder with anything else in it is not this script's.
if [[ -d "$out" && -n "$(ls -A "$out")" && ! -f "$out/seconds" ]]; then
  echo "$out is not empty and holds no results of this script: give another folder." >&2
  exit 2
fi

scripts/setup_venv.sh demo
python="${VENV:-.venv}/bin/python"
task=${TASK:-demo_sentiment}
base=(--gin_file=models/demo.gin "--gin_file=tasks/$task.gin")
rm -rf "$out/zero_shot" "$out/prompt" "$out/model" "$out/seconds"
mkdir -p "$out"
touch "$out/seconds"  # tells a later start that the folder is this script's

# Runs a verb of the command line and keeps how long it took under the name of its row.
timed() {
  local row=$1 start=$SECONDS
  shift
  echo "+ prompt-tuning $*"
  "$python" -m prompt_tuning "$@"
  echo "$row $((SECONDS - start))" >> "$out/seconds"
}

timed zero_shot eval "${base[@]}" --gin_file=runs/eval.gin --gin.CHECKPOINT_PATH=demo \
  --gin.EVAL_SPLIT=test --gin.RANK_LABELS=True --gin.EVAL_OUTPUT_DIR="$out/zero_shot" \
  --gin.EVAL_BATCH_SIZE=200

timed prompt train "${base[@]}" --gin_file=peft/prompt.gin --gin_file=runs/demo.gin \
  --gin.MODEL_DIR="$out/prompt"
timed prompt eval --gin.MODEL_DIR="$out/prompt" --gin.EVAL_SPLIT=test

timed model train "${base[@]}" --gin_file=peft/model_tuning.gin --gin_file=runs/demo_finetune.gin \
  --gin.MODEL_DIR="$out/model"
timed model eval --gin.MODEL_DIR="$out/model" --gin.EVAL_SPLIT=test

"$python" scripts/demo_report.py "$out"
