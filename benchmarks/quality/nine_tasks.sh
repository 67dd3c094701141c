#!/usr/bin/env bash
# `english-4mb` tuned from a teacher that was tuned for each task. About two hours on two cores.
#
#     benchmarks/quality/nine_tasks.sh DATA TEACHER WORK SEED [STUDENT NAME TASK …]
#
# DATA is as in task_texts.py, TEACHER the encoder that english-4mb was distilled from. The teachers are tuned once, with
# seed 1, as the suite `miniature` tunes them. MRPC is tuned as results/optimiser says. What is there is not made again.
# Another STUDENT is tuned for the tasks that are named, into folders that begin with its NAME. MORE may hold further options
# for all students.
set -euo pipefail
data=$1 teacher=$2 work=$3 seed=$4 student=${5:-english-4mb} prefix=${6:-student}
shift $(($# < 6 ? $# : 6))
only=$*
wanted() { [ -z "$only" ] || [[ " $only " == *" $1 "* ]]; }
tune() {
  local output=$1 model=$2 task=$3 folder=$4
  shift 4
  test -f "$work/$output/result.json" || minialbert finetune --model "$model" --task "$task" --data "$data/$folder" \
    --precision bf16 --set task.decoding=alone "$@" --output "$work/$output" --resume
}
taught() {
  local name=$1 task=$2 folder=$3 rate=$4
  shift 4
  wanted "$name" || return 0
  tune "teacher-$name" "$teacher" "$task" "$folder" --seed 1 --lr "$rate" ${rows:-}
  tune "$prefix-$name-$seed" "$student" "$task" "$folder" --seed "$seed" --teacher "$work/teacher-$name/model" \
    ${rows:-} ${MORE:-} "$@"
}
texts() { echo "--unlabelled $work/texts/$1"; }

test -f "$work/texts/STS-B.tsv" || python benchmarks/quality/task_texts.py "$data" "$work/texts"
rows="--set task.max_train_rows=20000" taught sst2 sst2 glue/SST-2 1e-4 $(texts SST-2.txt) --epochs 2 --lr 3e-4
taught cola cola glue/CoLA 1e-4 --set teacher.altered=4 --epochs 4 --lr 3e-4
taught stsb stsb glue/STS-B 1e-4 $(texts STS-B.tsv) --set teacher.altered=1 --lr 3e-4
taught ncbi-disease ner ner/NCBI-disease 3e-4 $(texts NCBI-disease.txt) --epochs 4 --lr 5e-4
taught bc5cdr-chem ner ner/BC5CDR-chem 3e-4 $(texts BC5CDR-chem.txt) --epochs 3 --lr 5e-4
taught bc5cdr-disease ner ner/BC5CDR-disease 3e-4 $(texts BC5CDR-disease.txt) --epochs 3 --lr 5e-4
taught bc2gm ner ner/BC2GM 3e-4 $(texts BC2GM.txt) --epochs 3 --lr 5e-4
! wanted rte || tune "$prefix-rte-$seed" "$student" rte glue/RTE --seed "$seed" --lr 3e-4
