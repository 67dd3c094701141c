#!/usr/bin/env bash
# Everything behind models/: from texts to cards. About seven hours on two cores.
#
#     benchmarks/quality/boxed_models.sh DATA BIOMEDICAL_TEACHER ENGLISH_TEACHER WORK
#
# DATA is as in boxed_texts.py; the sentence encoder's teacher is the demo's. The baselines need model2vec 0.10 and wordllama 0.4. Docstrings
# come from the packages of results/boxed/minilm-5mb/packages.tsv, which are downloaded.
set -euo pipefail
data=$1 biomedical=$2 english=$3 work=$4
here=benchmarks/quality
mkdir -p "$work"
teacher=$(python -c "from minialbert.experiments.demo.demo import find_teacher; print(find_teacher())")

python $here/boxed_texts.py sentences "$data" "$work/texts.txt"
minialbert prepare --recipe embeddings --corpus "$work/texts.txt" --documents line --held-out-fraction 0.003 \
  --tokenizer "$teacher" --output "$work/windows"
minialbert distill --recipe embeddings --teacher "$teacher" --data "$work/windows" --epochs 1 \
  --set student.embedding_size=112 --set training.save_steps=250 --output "$work/first"

# The second pass: docstrings, which share ten words in a row with no text that is scored, and a fifth of the first texts.
python $here/embeddings.py sets --glue "$data/glue" --medical "$data/corpus/biomedical/medical-abstracts-tc.txt" \
  --books "$data/corpus/general" --output "$work/sets"
tail -n +2 results/boxed/minilm-5mb/packages.tsv | cut -f 1-2 | sed 's/\t/==/' >"$work/packages.txt"
mkdir -p "$work/code"
pip download --no-deps --only-binary :all: --dest "$work/wheels" --requirement "$work/packages.txt"
python $here/boxed_texts.py code "$work/wheels" "$work/sets" "$work/code/texts.txt"
{ head -n 110000 "$work/code/texts.txt"; head -n 70000 "$work/texts.txt"; } >"$work/second.txt"
minialbert prepare --recipe embeddings --corpus "$work/second.txt" --documents line --held-out-fraction 0.003 \
  --window-length 256 --tokenizer "$teacher" --output "$work/second-windows"
minialbert distill --recipe embeddings --teacher "$teacher" --data "$work/second-windows" --epochs 1 --lr 5e-4 \
  --set student.embedding_size=112 --set student.init=checkpoint --set student.init_from="$work/first/model" \
  --set student.init_layer=null --set data.window_length=256 --set training.save_steps=250 --output "$work/second"
python $here/mixed_weights.py "$work/first/model" "$work/second/model" 0.8 "$work/mixed"

# The third pass: the feed-forward block keeps 640 of its 1,536 units. In sessions of at most 38 minutes, resumed.
python $here/narrower.py "$work/mixed" "$work/texts.txt" 640 "$work/narrower"
{ head -n 110000 "$work/code/texts.txt"; tail -n 210000 "$work/texts.txt"; } >"$work/third.txt"
minialbert prepare --recipe embeddings --corpus "$work/third.txt" --documents line --held-out-fraction 0.003 \
  --window-length 256 --tokenizer "$teacher" --output "$work/third-windows"
until [ -f "$work/third/result.json" ]; do
  timeout -s INT 2280 minialbert distill --recipe embeddings --teacher "$teacher" --data "$work/third-windows" --steps 3600 \
    --lr 1.5e-3 --set training.optimizer=muon --set student.embedding_size=112 --set student.intermediate_size=640 \
    --set student.init=checkpoint --set student.init_from="$work/narrower" --set student.init_layer=null \
    --set data.window_length=256 --set training.save_steps=250 --output "$work/third" --resume || [ $? -eq 124 ]
done
minialbert evaluate --model "$work/third/model" --reference "$teacher" --task retrieval --data "$work/sets/python" \
  --output "$work/third-docstrings"
cp "$work/third-docstrings/result.json" results/boxed/minilm-5mb/third-pass-docstrings.json
# The fourth: the docstrings that no pass has read.
{ tail -n 25136 "$work/code/texts.txt"; tail -n 8000 "$work/texts.txt"; } >"$work/fourth.txt"
minialbert prepare --recipe embeddings --corpus "$work/fourth.txt" --documents line --held-out-fraction 0.003 \
  --window-length 256 --tokenizer "$teacher" --output "$work/fourth-windows"
minialbert distill --recipe embeddings --teacher "$teacher" --data "$work/fourth-windows" --epochs 1 --lr 4e-4 \
  --set training.optimizer=muon --set training.warmup_steps=50 --set student.embedding_size=112 \
  --set student.intermediate_size=640 --set student.init=checkpoint --set student.init_from="$work/third/model" \
  --set student.init_layer=null --set data.window_length=256 --set training.save_steps=250 --output "$work/fourth"
python $here/mixed_weights.py "$work/third/model" "$work/fourth/model" 0.7 "$work/minilm"
# What no text has, of those it learnt from and those it is scored on, leaves the vocabulary.
python $here/boxed_texts.py scored "$work/sets" "$work/scored.txt"
cat "$work/texts.txt" "$work/third.txt" "$work/scored.txt" | awk '!seen[$0]++' | sed G >"$work/vocabulary.txt"
minialbert trim --model "$work/minilm" --corpus "$work/vocabulary.txt" --output "$work/minilm-trimmed" --json >"$work/minilm-trim.json"
minialbert export --model "$work/minilm-trimmed" --head features --quantize int8 --opset 22 --output "$work/minilm-5mb"

benchmarks/quality/boxed_tagger.sh "$data" "$biomedical" "$work"

# Two encoders to tune, each from its own texts and teacher.
start() {
  local name=$1 texts=$2 teacher=$3 steps=$4 least=$5 precision=$6
  shift 6
  minialbert prepare --recipe miniature/hidden-only-20m --max-windows-per-document 0 --corpus "$data/corpus/$texts/*.txt" \
    --tokenizer "$teacher" --output "$work/$name-windows"
  minialbert distill --recipe miniature/hidden-only-20m --teacher "$teacher" --data "$work/$name-windows" --steps "$steps" \
    "$@" --output "$work/$name-student"
  minialbert trim --model "$work/$name-student/model" --corpus "$data/corpus/*/*.txt" --min-count "$least" \
    --output "$work/$name-trimmed" --json >"$work/$name-trim.json"
  minialbert export --model "$work/$name-trimmed" --head masked-lm --quantize "$precision" --opset 22 --tolerance 1 \
    --output "$work/$name"
  python $here/masked_words.py "$work/$name-student" "$work/$name-windows" "$work/$name-trimmed" "$work/$name" \
    "$work/$name-masked-words.json"
}
start english-4mb general "$english" 4200 5 int8 --set training.warmup_steps=200 --set training.eval_steps=700 \
  --set training.save_steps=350
start biomedical-2mb biomedical "$biomedical" 2000 30 int4 --set training.warmup_steps=100 --set training.eval_steps=500 \
  --set training.save_steps=250
tune() {
  local name=$1 data_set=$2
  shift 2
  for seed in "$@"; do
    minialbert finetune --model "$work/$name" --task "${data_set%=*}" --data "$data/${data_set#*=}" --lr 3e-4 --precision bf16 \
      --set task.decoding=alone --seed "$seed" --output "$work/$name-tuned/${data_set##*/}-$seed"
  done
}
for task in stsb=glue/STS-B mrpc=glue/MRPC ner=ner/BC5CDR-chem; do tune english-4mb $task 1 2 3; done
tune english-4mb cola=glue/CoLA 1 2
tune english-4mb ner=ner/NCBI-disease 1 2 3 4 5
for task in ner=ner/NCBI-disease ner=ner/BC5CDR-chem; do tune biomedical-2mb $task 1 2 3; done

for name in minilm-5mb english-4mb biomedical-2mb; do mkdir -p results/boxed/$name; done
cp "$work/first/result.json" results/boxed/minilm-5mb/first-pass.json
cp "$work/second/result.json" results/boxed/minilm-5mb/second-pass.json
cp "$work/third/result.json" results/boxed/minilm-5mb/third-pass.json
cp "$work/fourth/result.json" "$work/code/packages.tsv" results/boxed/minilm-5mb/
cp "$work/minilm-trim.json" results/boxed/minilm-5mb/trim.json
for name in english-4mb biomedical-2mb; do
  cp "$work/$name-student/result.json" results/boxed/$name/distillation.json
  cp "$work/$name-trim.json" results/boxed/$name/trim.json
  cp "$work/$name-masked-words.json" results/boxed/$name/masked-words.json
  cp -r "$work/$name-tuned" results/boxed/$name/tuned
  python benchmarks/pages/pack_records.py results/boxed/$name
done
minialbert export --model "$teacher" --head features --quantize int8-dynamic --output "$work/teacher-int8"
minialbert export --model "$teacher" --head features --quantize int8 --output "$work/teacher-by-token"
minialbert export --model "$teacher" --head features --engine openvino --quantize int8 --output "$work/teacher-openvino"
python $here/embeddings.py static --teacher "$teacher" --dim 190 --output "$work/static"
python $here/embeddings.py score --teacher "$teacher" --sets "$work/sets" --model minilm-5mb="$work/minilm-5mb" \
  --model static="$work/static" --model wordllama=wordllama --output results/embeddings
python $here/embeddings.py time --model "minilm-5mb, native=$work/minilm-5mb@native" \
  --model "minilm-5mb, ONNX Runtime=$work/minilm-5mb@onnx" --model "teacher, ONNX Runtime=$work/teacher-int8" \
  --model "teacher, OpenVINO=$work/teacher-openvino" --model "teacher, native=$work/teacher-by-token@native" \
  --model model2vec="$work/static" --output results/embeddings
python benchmarks/pages/boxed_models.py minilm-5mb="$work/minilm-5mb" biomedical-ner-2mb="$work/biomedical-ner-2mb" \
  english-4mb="$work/english-4mb" biomedical-2mb="$work/biomedical-2mb"
