#!/usr/bin/env bash
# What pairs give an embedding student: two distillations of the same windows, steps and seed, one in pairs and one single.
#
#     benchmarks/quality/embedding_pairs.sh DATA TEACHER WORK
#
# DATA is as in boxed_texts.py; no text that is scored is among the pairs. SETS are the sets that both are scored on
# ("stsb python qnli medical"; results/embedding-pairs has the first three). More arguments are settings of both
# distillations (--steps 3). The same command goes on where it was stopped.
set -euo pipefail
data=$1 teacher=$2 work=$3
shift 3
here=$(dirname "$0")
mkdir -p "$work"
[ -f "$work/sets/books/test.jsonl" ] || python "$here/embeddings.py" sets --glue "$data/glue" \
  --medical "$data/corpus/biomedical/medical-abstracts-tc.txt" --books "$data/corpus/general" --output "$work/sets"
python "$here/boxed_texts.py" pairs "$data" "$work/sets" "$work"
for kind in pairs single; do
  paired=()
  [ $kind = single ] || paired=(--pair-column pair)
  minialbert prepare --recipe embeddings --corpus "$work/$kind.jsonl" --truncate --held-out-fraction 0 \
    --tokenizer "$teacher" --output "$work/$kind-windows" "${paired[@]}"
done
cmp "$work/pairs-windows/train.tokens.bin" "$work/single-windows/train.tokens.bin"
cmp "$work/pairs-windows/train.windows.bin" "$work/single-windows/train.windows.bin"
for kind in pairs single; do
  [ -f "$work/$kind/result.json" ] || minialbert distill --recipe embeddings --teacher "$teacher" --epochs 1 "$@" \
    --data "$work/$kind-windows" --output "$work/$kind" --resume
done
for kind in pairs single; do
  for set in ${SETS:-stsb python qnli medical}; do
    task=$([ "$set" = stsb ] && echo sts || echo retrieval)
    minialbert evaluate --model "$work/$kind/model" --task "$task" --data "$work/sets/$set" --overwrite \
      --output "$work/scores/$kind/$set"
  done
done
