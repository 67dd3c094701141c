#!/usr/bin/env bash
# `english-4mb` tuned from a teacher that was tuned for each task. About two hours on two cores.
#
#     benchmarks/quality/nine_tasks.sh DATA TEACHER WORK SEED
#
# DATA is as in task_texts.py, TEACHER the encoder that english-4mb was distilled from. The teachers are tuned once, with
# seed 1, as the suite `miniature` tunes them. STS-B is tuned by boxed_models.sh, MRPC as results/optimiser says. What is
# there is not made again.
set -euo pipefail
data=$1 teacher=$2 work=$3 seed=$4
tune() {
  local output=$1 model=$2 task=$3 folder=$4
  shift 4
  test -f "$work/$output/result.json" || minialbert finetune --model "$model" --task "$task" --data "$data/$folder" \
    --precision bf16 --set task.decoding=alone "$@" --output "$work/$output" --resume
}
taught() {
  local name=$1 task=$2 folder=$3 rate=$4
  shift 4
  tune "teacher-$name" "$teacher" "$task" "$folder" --seed 1 --lr "$rate" ${rows:-}
  tune "student-$name-$seed" english-4mb "$task" "$folder" --seed "$seed" --teacher "$work/teacher-$name/model" \
    ${rows:-} "$@"
}
texts() { echo "--unlabelled $work/texts/$1.txt"; }

test -d "$work/texts" || python benchmarks/quality/task_texts.py "$data" "$work/texts"
rows="--set task.max_train_rows=20000" taught sst2 sst2 glue/SST-2 1e-4 $(texts SST-2) --epochs 2 --lr 3e-4
taught cola cola glue/CoLA 1e-4 --set teacher.altered=4 --epochs 4 --lr 3e-4
taught ncbi-disease ner ner/NCBI-disease 3e-4 $(texts NCBI-disease) --epochs 4 --lr 5e-4
taught bc5cdr-chem ner ner/BC5CDR-chem 3e-4 $(texts BC5CDR-chem) --epochs 3 --lr 5e-4
taught bc5cdr-disease ner ner/BC5CDR-disease 3e-4 $(texts BC5CDR-disease) --epochs 3 --lr 5e-4
taught bc2gm ner ner/BC2GM 3e-4 $(texts BC2GM) --epochs 3 --lr 5e-4
tune "student-rte-$seed" english-4mb rte glue/RTE --seed "$seed" --lr 3e-4
