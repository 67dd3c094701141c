#!/usr/bin/env bash
# The main job on real text: one teacher, one corpus, three students for the same number of steps.
#
#   benchmarks/quality/main_job.sh TEACHER CORPUS OUTPUT
#
# distilled      started from the teacher, all loss terms
# masked-lm      the same start, masked-LM alone
# random-start   random weights, all loss terms
# Finished runs are left as they are; a killed one goes on from its last checkpoint.
set -euo pipefail
teacher=$1 corpus=$2 output=$3
minialbert=(${MINIALBERT:-minialbert})

"${minialbert[@]}" prepare --recipe small --corpus "$corpus" --tokenizer "$teacher" --output "$output/windows"

distill() {
  local name=$1
  shift
  [ -f "$output/$name/result.json" ] && return
  "${minialbert[@]}" distill --recipe small --teacher "$teacher" --data "$output/windows" \
    --output "$output/$name" --resume --set "name=$name" "$@"
}

distill distilled
distill masked-lm --set distill.attention_weight=0 --set distill.hidden_weight=0 --set distill.output_weight=0
distill random-start --set student.init=random
