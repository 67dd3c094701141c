#!/usr/bin/env bash
# Three distillations on 2 M tokens each, tuned from the teachers of nine_tasks.sh. About three hours of one core.
#
#     benchmarks/quality/two_million_tokens.sh DATA TEACHER WORK
#
# Arguments are those of nine_tasks.sh. Beside the table: the first distillation with AdamW in place of Muon, and the first
# student tuned for STS-B from labels, and from the teacher on the same rows. What is there is not made again.
set -euo pipefail
data=$1 teacher=$2 work=$3
test -d "$work/windows" || minialbert prepare --recipe miniature/hidden-only-20m --max-windows-per-document 0 \
  --corpus "$data/corpus/general/*.txt" --tokenizer "$teacher" --output "$work/windows"
distil() {
  local output=$1
  shift
  test -f "$output/result.json" || minialbert distill --recipe miniature/hidden-only --teacher "$teacher" \
    --data "$work/windows" --set student.embedding_size=84 "$@" --output "$output" --resume
}
distil "$work/two-million-adamw-1" --seed 1
for seed in 1 2 3; do
  distil "$work/two-million-$seed" --seed "$seed" --lr 2e-3 --set training.optimizer=muon
  benchmarks/quality/nine_tasks.sh "$data" "$teacher" "$work" "$seed" "$work/two-million-$seed/model" two-million \
    cola ncbi-disease stsb
done
for way in labels rows; do
  from=()
  [ "$way" = labels ] || from=(--teacher "$work/teacher-stsb/model")
  output=$work/two-million-stsb-$way
  test -f "$output/result.json" || minialbert finetune --model "$work/two-million-1/model" --task stsb \
    --data "$data/glue/STS-B" --precision bf16 --seed 1 --set task.decoding=alone --lr 3e-4 "${from[@]}" \
    --output "$output" --resume
done
