#!/usr/bin/env bash
# The life of a model: data, training, evaluation, tuning, comparison, generation, serving and export.
#
#     examples/life_of_a_model.sh [--quick] [OUT]          OUT is runs/life if not given
#
# About a quarter of an hour on two CPU cores; with --quick about two minutes (the models then learn little).
# Every command continues where it stopped if you run the script again. First: make install; source .venv/bin/activate
set -euo pipefail
cd "$(dirname "$0")/.."

TOKENS=3000000 PRESET=1m STUDY_TOKENS=100000 ROWS=200 TUNE_MINUTES=2 TIMED_CALLS=12
if [ "${1:-}" = "--quick" ]; then
  shift
  TOKENS=${LIFE_TOKENS:-200000} PRESET=toy STUDY_TOKENS=${LIFE_STUDY_TOKENS:-10000} ROWS=${LIFE_ROWS:-40} TUNE_MINUTES=0.1 TIMED_CALLS=3
fi
OUT=${1:-runs/life}
mkdir -p "$OUT"

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

step "1. The data: English sentences and their German translations, one JSON object a line"
# A data set is a file (JSONL, CSV, Parquet, text), a folder, or a common prefix NAME for NAME.train, NAME.validation
# and NAME.test. --input and --target name the columns. Plain text needs only --text.
SAMPLE=${LIFE_DATA:-examples/data/tatoeba.en-de}
DATA=(--data "$SAMPLE" --input english --target german)
gzip -dc "$SAMPLE.train.jsonl.gz" | sed -n 1,3p

step "2. Train two small models that differ only in their family"
# Same data, tokenizer settings, network and budget. The autoregressive model predicts the next token. The masked model
# predicts masked tokens, in any order. The log ends with the validation: an exact likelihood, or an upper bound (<=).
for family in autoregressive masked; do
  redraft train "${DATA[@]}" --family "$family" --preset "$PRESET" --tokens "$TOKENS" --lr 3e-3 --seed 0 \
    --set tokenizer.vocab_size=1000 --set data.length=160 --set train.batch_tokens=2048 --out "$OUT/small-$family"
done

step "3. Evaluate both on test rows: likelihood and task metrics, with confidence intervals"
for family in autoregressive masked; do
  redraft evaluate --model "$OUT/small-$family" "${DATA[@]}" --rows "$ROWS" --max-new-tokens 24
done

step "4. Tune the masked model: the fastest decoding settings that lose at most 0.5 BLEU"
# The search uses validation rows only. The choice is stored in the model's generation_config.json.
redraft tune --model "$OUT/small-masked" "${DATA[@]}" --within 0.5 --rows "$ROWS" --max-new-tokens 24 --calls 3 \
  --samplers confidence,factor --caches exact --minutes "$TUNE_MINUTES" --out "$OUT/tuning"

step "5. Compare: the same training for both, a grid of settings, statistical tests, a verdict"
# The study continues the training of both models, on the same rows in the same order. With --from scratch it would
# train new ones. One seed makes the verdict preliminary; --seeds 3 measures how much training runs differ.
redraft compare "${DATA[@]}" --families autoregressive,masked --from "$OUT/small" --budget-tokens "$STUDY_TOKENS" \
  --steps 2,8 --candidates 1,4 --test-rows "$ROWS" --max-new-tokens 24 --timed-calls "$TIMED_CALLS" --out "$OUT/verdict"
echo "Open $OUT/verdict/report.html in a browser."

step "6. Generate"
# In a terminal you see the canvas being filled. The original model of this size is in the zoo: it saw 8M tokens.
redraft generate --model "$OUT/small-masked" --prompt "I am tired."
redraft generate --model translate-en-de-masked --prompt "The weather is fine today." --steps 4
redraft infill --model translate-en-de-masked --prompt "My brother bought a new car." --text "Mein Bruder hat [[?]] gekauft."
redraft trace --model translate-en-de-masked --prompt "The weather is fine today." --beside translate-en-de-autoregressive --out "$OUT/trace.html"

step "7. Serve the model, and ask it with an OpenAI request"
PORT=${LIFE_PORT:-8123}
redraft serve --model small="$OUT/small-masked" --port "$PORT" 2> "$OUT/serve.log" &
SERVER=$!
trap 'kill $SERVER 2> /dev/null || true' EXIT
python3 - "http://127.0.0.1:$PORT" <<'PYTHON'
import json, sys, time, urllib.request

url = sys.argv[1]
for _ in range(240):  # until the model is loaded
    try:
        urllib.request.urlopen(f"{url}/healthz")
        break
    except OSError:
        time.sleep(0.5)
body = {"model": "small", "messages": [{"role": "user", "content": "I am tired."}], "max_tokens": 24}
request = urllib.request.Request(
    f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
answer = json.load(urllib.request.urlopen(request))
print(answer["choices"][0]["message"]["content"])
print(json.dumps(answer["redraft"]))  # the settings that were used, the seed included: they reproduce this answer
PYTHON
kill "$SERVER"
wait "$SERVER" || true
trap - EXIT

step "8. Export"
# A model folder has the Hugging Face layout: after `import redraft.interop.transformers`, AutoModel reads it. int8
# weights take a quarter of the space. Plain-text autoregressive models can also be exported as Llama, for other engines.
redraft convert "$OUT/small-masked" "$OUT/small-masked-int8" --storage int8
redraft convert base-autoregressive "$OUT/llama" --to llama
ls -l "$OUT/small-masked-int8" "$OUT/llama"

step "Done. Everything is in $OUT"
