#!/usr/bin/env bash
# The tagger in models/: from texts and tags to its records. About an hour on two cores.
#
#     benchmarks/quality/boxed_tagger.sh DATA TEACHER WORK
#
# DATA is as in boxed_texts.py. A tagger of the teacher's size learns BC5CDR, and finds the chemicals that NCBI-disease does not
# tag; another learns both sets, and teaches the student, which sees 10,000 more sentences. What is there is not made again.
set -euo pipefail
data=$1 teacher=$2 work=$3
here=benchmarks/quality results=results/boxed/biomedical-ner-2mb
mkdir -p "$work" "$results"
distilled() { minialbert distill --recipe miniature/muon --teacher "$teacher" --data "$work/biomedical-windows" "$@"; }
tuned() {
  local name=$1 model=$2
  shift 2
  test -f "$work/$name/result.json" || minialbert finetune --model "$model" --task ner --precision bf16 "$@" \
    --output "$work/$name" --resume
}
test -d "$work/biomedical-windows" || minialbert prepare --recipe miniature/muon --max-windows-per-document 0 \
  --corpus "$data/corpus/biomedical/*.txt" --tokenizer "$teacher" --output "$work/biomedical-windows"
test -f "$work/biomedical/result.json" || distilled --steps 1500 --output "$work/biomedical" --resume

test -d "$work/bc5cdr" || python $here/boxed_texts.py tags "$data" "$work/bc5cdr"
tuned teacher-bc5cdr "$teacher" --data "$work/bc5cdr" --lr 3e-4 --epochs 3 --seed 1
test -d "$work/lines" || python $here/boxed_texts.py lines "$data" "$work/lines"
mkdir -p "$work/found"
for split in train devel; do
  minialbert predict --model "$work/teacher-bc5cdr/model" --input "$work/lines/$split.txt" --overwrite \
    --output "$work/found/$split.jsonl"
done
python $here/boxed_texts.py both "$data" "$work/found" "$work/both"
tuned teacher-both "$teacher" --data "$work/both" --lr 3e-4 --epochs 3 --seed 1
test -d "$work/texts" || python $here/task_texts.py "$data" "$work/texts"
tuned tagger "$work/biomedical/model" --teacher "$work/teacher-both/model" --data "$work/both" --lr 5e-4 --epochs 4 --seed 1 \
  --unlabelled "$work/texts/diseases and chemicals.txt"

minialbert export --model "$work/tagger/model" --quantize int8 --opset 22 --output "$work/tagger-int8" --overwrite
minialbert trim --model "$work/tagger-int8" --corpus "$data/corpus/*/*.txt" --min-count 11 --output "$work/tagger-trimmed" --json \
  --overwrite >"$work/tagger-trim.json"
minialbert export --model "$work/tagger-trimmed" --quantize int4 --opset 22 --tolerance 1 --output "$work/biomedical-ner-2mb" \
  --overwrite

cp "$work/tagger/result.json" $results/
cp "$work/tagger-trim.json" $results/trim.json
cp "$work/biomedical/result.json" $results/distillation.json
cp "$work/teacher-both/result.json" $results/teacher.json
scored() {
  local name=$1 model=$2 data=$3
  shift 3
  minialbert evaluate --model "$work/$model" --data "$data" --split test --json "$@" >"$results/$name.json"
}
scored int8 tagger-int8 "$work/bc5cdr"
scored int4 biomedical-ner-2mb "$work/bc5cdr"
scored alone biomedical-ner-2mb "$work/bc5cdr" --set task.decoding=alone
scored ncbi-disease biomedical-ner-2mb "$data/ner/NCBI-disease"
