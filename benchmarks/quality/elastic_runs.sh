#!/usr/bin/env bash
# What elastic depth costs and gives: the students of two_million_tokens.sh, tuned for their second iteration too. About two
# hours of one core.
#
#     benchmarks/quality/elastic_runs.sh DATA TEACHER WORK
#     python benchmarks/pages/elastic_table.py WORK/elastic-runs results/elastic \
#       --fixed results/task-distillation/two-million-tokens
#
# Arguments are those of two_million_tokens.sh, which comes first: its students, tuned for the last iteration alone, are the other
# half of each pair. What is there is not made again.
set -euo pipefail
data=$1 teacher=$2 work=$3
export MORE="--set tuning.elastic=true --set tuning.elastic_depths=[2]"
for seed in 1 2 3; do
  benchmarks/quality/nine_tasks.sh "$data" "$teacher" "$work" "$seed" "$work/two-million-$seed/model" elastic \
    cola ncbi-disease stsb
  for task in cola ncbi-disease stsb; do
    mkdir -p "$work/elastic-runs/elastic/$task-$seed"
    cp "$work/elastic-$task-$seed/result.json" "$work/elastic-runs/elastic/$task-$seed"
  done
done
