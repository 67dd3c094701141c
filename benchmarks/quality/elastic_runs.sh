#!/usr/bin/env bash
# What elastic depth costs and gives: one student tuned for a second depth too beside the same student tuned as ever.
#
#   benchmarks/quality/elastic_runs.sh STUDENT ELASTIC DATA OUTPUT
#
# STUDENT  a student of three iterations (benchmarks/quality/main_job.sh), the start of all pairs: tuned for its last iteration alone,
#          and for the second too (tuning.elastic)
# ELASTIC  the same recipe with distill.elastic=true, for early exit on SST-2: tuned at every depth
# DATA     a folder with glue/CoLA … and ner/NCBI-disease …
#
# Pairs of runs have one seed. WEIGHT (0.25) is that of either loss at the second depth. JOBS runs at a time (2), one thread
# each. Finished runs are left as they are; of the elastic SST-2 runs the models are kept, for early exit.
set -euo pipefail
student=$1 elastic=$2 data=$3 output=$4
export MINIALBERT=${MINIALBERT:-minialbert} OMP_NUM_THREADS=1
weight=${WEIGHT:-0.25}

one_run() {
  local folder=$1 model=$2 task=$3 data=$4 seed=$5
  shift 5
  [ -f "$folder/result.json" ] && return
  local options=()
  local settings
  for settings in "tuning.seed=$seed" tuning.epochs=3 tuning.learning_rate=1e-4 "$@"; do options+=(--set "$settings"); done
  mkdir -p "$(dirname "$folder")"
  $MINIALBERT finetune --model "$model" --task "$task" --data "$data" --output "$folder" --resume "${options[@]}" \
    >"$folder.log" 2>&1 || echo "failed: $folder" >&2
  rm -rf "$folder/checkpoints"
  [ "$task" = sst2 ] || rm -rf "$folder/model"
}
export -f one_run

second="tuning.elastic=true tuning.elastic_depths=[2] tuning.elastic_task_weight=$weight tuning.elastic_logit_weight=$weight"

pair() { # TASK SEED: lines of arguments for one_run
  local name=$1 kind=$1 folder=$data/glue
  [ "$name" = ncbi-disease ] && kind=ner folder=$data/ner/NCBI-disease
  echo "$output/elastic/$name-$2 $student $kind $folder $2 $second"
  echo "$output/fixed/$name-$2 $student $kind $folder $2"
}

exits() { # SEED
  echo "$output/exits/sst2-$1 $elastic sst2 $data/glue $1 tuning.elastic=true task.max_train_rows=20000"
}

{ # a first pair of each, a first model for early exit, then the other seeds, the quick tasks first
  for name in ncbi-disease cola stsb; do pair $name 1; done
  exits 1
  for seed in 2 3; do for name in ncbi-disease cola stsb; do pair $name $seed; done; done
  for name in cola stsb ncbi-disease; do for seed in 4 5; do pair $name $seed; done; done
  for seed in 2 3 4 5; do exits $seed; done
} | xargs -P "${JOBS:-2}" -L 1 bash -c 'one_run "$@"' one_run
