#!/usr/bin/env bash
# Fine-tuning and adapter-tuning of one student beside its teacher, on GLUE and biomedical NER.
#
#   benchmarks/quality/task_runs.sh TEACHER DISTILLED NO_ADAPTERS DATA OUTPUT
#
# TEACHER       a full-size encoder: fully tuned, the upper row
# DISTILLED     a student with adapters (benchmarks/quality/main_job.sh): fully tuned, and its adapters alone
# NO_ADAPTERS   the same student distilled without adapters: fresh ones, random as published and identity
# DATA          a folder with glue/CoLA … and ner/NCBI-disease …
#
# JOBS runs at a time (2), one thread each. Finished runs are left as they are.
set -euo pipefail
teacher=$1 distilled=$2 no_adapters=$3 data=$4 output=$5
export MINIALBERT=${MINIALBERT:-minialbert} OMP_NUM_THREADS=1
full="tuning.epochs=3 tuning.learning_rate=1e-4"
adapters="tuning.epochs=5 tuning.learning_rate=1e-3"

one_run() {
  local folder=$1 model=$2 task=$3 data=$4 mode=$5 seed=$6
  shift 6
  [ -f "$folder/result.json" ] && return
  local options=()
  [ "$mode" = adapters ] && options+=(--adapters)
  local settings
  for settings in "tuning.seed=$seed" "$@"; do options+=(--set "$settings"); done
  mkdir -p "$(dirname "$folder")"
  $MINIALBERT finetune --model "$model" --task "$task" --data "$data" --output "$folder" --resume "${options[@]}" \
    >"$folder.log" 2>&1 || echo "failed: $folder" >&2
  rm -rf "$folder/model" "$folder/checkpoints"
}
export -f one_run

rows() { # NAME SEED ROW…: lines of arguments for one_run
  local name=$1 seed=$2 kind=$1 folder=$data/glue extra="" row
  shift 2
  case $name in
    ncbi-disease) kind=ner folder=$data/ner/NCBI-disease ;;
    bc5cdr-chem) kind=ner folder=$data/ner/BC5CDR-chem ;;
    sst2) extra=" task.max_train_rows=20000" ;;
  esac
  for row in "$@"; do
    case $row in
      student)
        echo "$output/distilled-adapters/$name-$seed $distilled $kind $folder adapters $seed $adapters$extra"
        echo "$output/distilled-full/$name-$seed $distilled $kind $folder full $seed $full$extra"
        ;;
      teacher) echo "$output/teacher-full/$name-$seed $teacher $kind $folder full $seed $full$extra" ;;
      fresh)
        for init in identity as-published; do
          echo "$output/no-adapters-$init/$name-$seed $no_adapters $kind $folder adapters $seed $adapters model.adapter_init=$init"
        done
        ;;
    esac
  done
}

{ # the most informative first
  for name in mrpc rte cola stsb; do rows $name 1 student teacher; done
  for name in ncbi-disease bc5cdr-chem; do rows $name 1 student teacher; done
  for name in ncbi-disease stsb; do rows $name 1 fresh; done
  for seed in 2 3; do for name in mrpc rte cola stsb; do rows $name $seed student; done; done
  rows sst2 1 student teacher
  for seed in 2 3; do for name in mrpc rte cola stsb; do rows $name $seed teacher; done; done
} | xargs -P "${JOBS:-2}" -L 1 bash -c 'one_run "$@"' one_run
