#!/usr/bin/env bash
# What elastic depth costs and gives: one student trained for all depths beside the same student trained for its last.
#
#   benchmarks/elastic_runs.sh FIXED ELASTIC DATA OUTPUT
#
# FIXED    a student (benchmarks/main_job.sh): tuned as ever
# ELASTIC  the same recipe with distill.elastic=true: tuned with tuning.elastic=true, measured at every depth
# DATA     a folder with glue/CoLA … and ner/NCBI-disease …
#
# Pairs of runs have one seed. JOBS runs at a time (2), one thread each. Finished runs are left as they are; of the
# elastic SST-2 runs the models are kept, for early exit.
set -euo pipefail
fixed=$1 elastic=$2 data=$3 output=$4
export MINIALBERT=${MINIALBERT:-minialbert} OMP_NUM_THREADS=1

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

pair() { # TASK SEED: lines of arguments for one_run
  local name=$1 kind=$1 folder=$data/glue extra=""
  case $name in
    ncbi-disease) kind=ner folder=$data/ner/NCBI-disease ;;
    sst2) extra=" task.max_train_rows=20000" ;;
  esac
  echo "$output/elastic/$name-$2 $elastic $kind $folder $2 tuning.elastic=true$extra"
  echo "$output/fixed/$name-$2 $fixed $kind $folder $2$extra"
}

{ # a first pair of each, then SST-2's first model, then the other seeds
  for name in ncbi-disease cola stsb; do pair $name 1; done
  pair sst2 1
  for seed in 2 3 4 5; do for name in ncbi-disease cola stsb; do pair $name $seed; done; done
  for seed in 2 3 4 5; do pair sst2 $seed; done
} | xargs -P "${JOBS:-2}" -L 1 bash -c 'one_run "$@"' one_run
