#!/usr/bin/env bash
# Makes the bundled backbone again: text, vocabulary, span corruption, LM adaptation, export.
# Takes up to 90 minutes on 2 cores; started again, it goes on where it was stopped.
#
#   scripts/pretrain_demo.sh [WORK_DIR] [OUTPUT_DIR]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-runs/pretrain_demo}
output=${2:-$work/backbone}
python=${PYTHON:-python}

train() { # PHASE CHECKPOINT TASK STEPS [FLAG...]
  "$python" -m prompt_tuning train \
    --gin_file=models/demo.gin --gin_file=peft/model_tuning.gin \
    --gin_file=tasks/demo_corpus.gin --gin_file=runs/pretrain.gin \
    --gin.DATA_DIR="$work/corpus" --gin.VOCABULARY="$work/corpus/spiece.model" \
    --gin.MODEL_DIR="$work/$1" --gin.INITIAL_CHECKPOINT_PATH="$2" \
    --gin.MIXTURE_OR_TASK_NAME="$3" --gin.TRAIN_STEPS_RELATIVE="$4" "${@:5}"
}

export_model() { # PHASE FOLDER
  [ -e "$2/config.json" ] || # written last
    "$python" -m prompt_tuning export --gin.MODEL_DIR="$work/$1" --to=hf --output="$2"
}

[ -e "$work/corpus/spiece.model" ] ||
  "$python" -m prompt_tuning.demo.corpus "$work/corpus" --passages=400000

train spans random demo_corpus_spans 1800 --gin.FINAL_LEARNING_RATE=0.004
export_model spans "$work/spans_hf"
train lm "$work/spans_hf" demo_corpus_lm 4500 \
  --gin.TASK_FEATURE_LENGTHS="{'inputs': 64, 'targets': 16}"
export_model lm "$output"
ls -l "$output"
