#!/usr/bin/env bash
# Checks and measures Foretoken on a machine with an NVIDIA GPU, in one command, and writes one report (Markdown). A step that fails is
# recorded and the rest goes on.
#   scripts/gpu-check.sh [flags]
#     --out FILE     the report (default gpu-check-HOST-DATE.md in the folder this is called from)
#     --data DIR     where model files go, some 25 GB with all of them (default build/gpu-check); files that are there are used again
#     --build DIR    build folder (default build/gpu); FORETOKEN_PROGRAM is not read: the tree is what is checked
#     --layers N     layers of the large model, 1 to 40 (default: as many as disk, memory and GPU allow)
#     --skip PARTS   comma-separated, of: tests, sanitizer, selfcheck, bench
#     --only PARTS   the same, the others are skipped; the build is always made
#     --keep         leave the large models where they are
# Exit: 0 all went well, 1 a step failed, 2 wrong flags, 77 there is no GPU here.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail_usage() {
  echo "gpu-check.sh: $1; see the head of $0" >&2
  exit 2
}

all_parts="tests sanitizer selfcheck bench"
out=""
data=$root/build/gpu-check
build=$root/build/gpu
layers=""
keep=""
parts=$all_parts

check_parts() {
  local part
  for part in ${1//,/ }; do
    [[ " $all_parts " == *" $part "* ]] || fail_usage "there is no part $part; there are $all_parts"
  done
}

while [ $# -gt 0 ]; do
  case "$1" in
    --keep)
      keep=yes
      shift
      continue
      ;;
    --out | --data | --build | --layers | --skip | --only) [ $# -ge 2 ] || fail_usage "$1 needs a value" ;;
    -h | --help)
      sed -n '2,/^set /p' "$0" | sed -e '$d' -e 's/^# \{0,1\}//'
      exit 0
      ;;
    *) fail_usage "unknown flag $1" ;;
  esac
  case "$1" in
    --out) out=$2 ;;
    --data) data=$2 ;;
    --build) build=$2 ;;
    --layers)
      [[ $2 =~ ^([1-9]|[1-3][0-9]|40)$ ]] || fail_usage "--layers $2: 1 to 40"
      layers=$2
      ;;
    --skip)
      check_parts "$2"
      for part in ${2//,/ }; do parts=$(printf ' %s ' "$parts" | sed "s/ $part / /"); done
      ;;
    --only)
      check_parts "$2"
      parts=${2//,/ }
      ;;
  esac
  shift 2
done

wants() { [[ " $parts " == *" $1 "* ]]; }

if ! gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader -i 0 2>/dev/null) || [ -z "$gpu" ]; then
  echo "gpu-check.sh: no NVIDIA GPU here (nvidia-smi finds none): nothing was run" >&2
  exit 77
fi

host=$(uname -n)
[ -n "$out" ] || out=$PWD/gpu-check-$host-$(date +%Y-%m-%d-%H%M).md
mkdir -p "$data" "$build" || exit 1
logs=$data/logs-$$
mkdir -p "$logs" || exit 1
: >"$out" || {
  echo "gpu-check.sh: --out $out cannot be written" >&2
  exit 1
}

say() { printf '%s\n' "$*" >>"$out"; }

failures=0
summary=$logs/summary
: >"$summary"
step_idx=0

# step TITLE LIMIT COMMAND...: runs the command with a limit in seconds, puts its output into the report, counts it if it fails. The last lines
# count most: tables and errors stand there.
step() {
  local title=$1 limit=$2 begin status log seconds verdict
  shift 2
  step_idx=$((step_idx + 1))
  log=$logs/$(printf '%02d' "$step_idx").log
  echo "== $title" >&2
  begin=$(date +%s)
  if [ "$(type -t "$1")" = function ]; then
    "$1" timeout "$limit" "${@:2}" >"$log" 2>&1
  else
    timeout "$limit" "$@" >"$log" 2>&1
  fi
  status=$?
  seconds=$(($(date +%s) - begin))
  verdict=ok
  if [ "$status" -eq 124 ]; then
    verdict="FAILED: not done after $limit s"
  elif [ "$status" -ne 0 ]; then
    verdict="FAILED: exit $status"
  fi
  [ "$verdict" = ok ] || failures=$((failures + 1))
  printf '| %s | %s | %d s |\n' "$title" "$verdict" "$seconds" >>"$summary"
  echo "   $verdict, $seconds s" >&2
  {
    printf '\n### %s\n\n    %s\n\n%s, %d s\n\n~~~\n' "$title" "$*" "$verdict" "$seconds"
    tail -n 60 "$log" | cut -c1-400 | tr -d '\r'
    printf '~~~\n'
  } >>"$logs/steps.md"
  return "$status"
}

skip() { # TITLE WHY
  printf '| %s | not run: %s | |\n' "$1" "$2" >>"$summary"
}

# The report, whatever ends the run.
report() {
  say "# Foretoken on $host, $(date '+%Y-%m-%d %H:%M %Z')"
  say ""
  say "- GPU: $gpu; $(nvidia-smi --query-gpu=clocks.max.sm,clocks.max.mem,power.limit --format=csv,noheader -i 0 2>/dev/null)"
  say "- Processor: $(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo), $(nproc) cores; memory $(awk '/^MemTotal:/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)"
  say "- System: $(uname -sr); $("$build/foretoken" --version 2>/dev/null | tr '\n' ';')"
  say "- Commit: $(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null || echo unknown)$([ -z "$(git -C "$root" status --porcelain 2>/dev/null)" ] || echo ', with changes')"
  say "- Parts: $parts"
  say ""
  if [ "$failures" -eq 0 ]; then say "No step failed."; else say "**$failures steps failed.**"; fi
  say ""
  say "| step | result | time |"
  say "|---|---|---|"
  cat "$summary" >>"$out"
  say ""
  say "## What the steps printed"
  cat "$logs/steps.md" >>"$out" 2>/dev/null
  if [ -s "$logs/bench-cuda.csv" ]; then
    say ""
    say "### bench, --device cuda, every round"
    say ""
    say "~~~"
    cat "$logs/bench-cuda.csv" >>"$out"
    say "~~~"
  fi
  rm -rf "$logs"
  echo "gpu-check.sh: report in $out; $failures failed" >&2
}
trap report EXIT
trap 'skip "the rest" "interrupted"; failures=$((failures + 1)); exit 130' INT TERM

# --- Build ---------------------------------------------------------------------------------------------------------------------------------
jobs=$(nproc)
configure=(cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DFORETOKEN_CUDA=ON)
command -v ccache >/dev/null && configure+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
program=$build/foretoken
built=
if step "configure" 300 "${configure[@]}"; then
  if step "build" 3600 cmake --build "$build" -j "$jobs" --target foretoken; then built=yes; fi
  if wants tests || wants sanitizer; then
    step "build test_cuda" 3600 cmake --build "$build" -j "$jobs" --target test_cuda test_cuda_session
  fi
fi
test_cuda=$build/tests/test_cuda
test_cuda_session=$build/tests/test_cuda_session

# --- Tests ---------------------------------------------------------------------------------------------------------------------------------
if wants tests; then
  for test in "$test_cuda" "$test_cuda_session"; do
    if [ -x "$test" ]; then step "$(basename "$test")" 1800 "$test"; else skip "$(basename "$test")" "it was not built"; fi
  done
fi

if wants sanitizer; then
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  if [ -z "$sanitizer" ]; then
    skip "compute-sanitizer" "it is not installed (package cuda-sanitizer)"
  elif [ ! -x "$test_cuda" ]; then
    skip "compute-sanitizer" "test_cuda was not built"
  else
    # Every kernel at least once; the long sweeps over all types are left out, each tool slows a kernel down some hundred times.
    for tool in memcheck racecheck initcheck synccheck; do
      for filter in "attention*" "choice*" "delta net*" "router*,buckets*,experts*" "norm of rows*,gated norm*" \
        "matmul: a draft head*,matmul: rows beyond*" "fetch*" "cublas: a graph*"; do
        step "$tool: $filter" 1200 "$sanitizer" --tool "$tool" --error-exitcode 9 "$test_cuda" "$filter"
      done
      # A tool may let launches block: then nothing may be recorded that waits for the host.
      [ -x "$test_cuda_session" ] && step "$tool: sessions" 1800 env CUDA_LAUNCH_BLOCKING=1 "$sanitizer" --tool "$tool" --error-exitcode 9 \
        "$test_cuda_session" \
        "split: fused*,device session: cycles*"
    done
  fi
fi

# --- Models --------------------------------------------------------------------------------------------------------------------------------
# model NAME FLAGS...: makes $data/NAME unless it is there.
model() {
  local path=$data/$1
  shift
  [ -s "$path" ] || step "synth $(basename "$path")" 3600 "$program" synth "$path" "$@"
}

# same_ids COMMAND...: runs it with kernels launched in order, then as dependent ones. The ids that it prints have to be the same.
same_ids() {
  local value
  for value in off on; do
    echo "FORETOKEN_CUDA_DEPENDENT_LAUNCH=$value"
    FORETOKEN_CUDA_DEPENDENT_LAUNCH=$value "$@" >"$logs/ids-$value" || return
  done
  if ! [ -s "$logs/ids-off" ]; then
    echo "no ids were printed"
    return 1
  fi
  cmp "$logs/ids-off" "$logs/ids-on" && echo "$(wc -l <"$logs/ids-on") ids, the same"
}

if wants selfcheck && [ -n "$built" ]; then
  demo=$root/models/foretoken-demo.gguf
  step "selfcheck: the demonstration model" 1800 "$program" selfcheck -m "$demo"
  step "selfcheck: the demonstration model, launches in order" 1800 env FORETOKEN_CUDA_DEPENDENT_LAUNCH=off "$program" selfcheck -m "$demo"
  for drafts in 0 3; do
    step "same ids with dependent launches, --mtp $drafts" 600 same_ids "$program" decode -m "$demo" --device cuda --mtp "$drafts" \
      -p "int main" -n 400 --ignore-eos --print-ids
  done
  types=q4_k,q6_k,q8_0,q5_k,iq4_xs,f16,q4_0,mxfp4
  model random-qwen35moe.gguf --text random --arch qwen35moe --type "$types" --seed 11 &&
    step "selfcheck: random qwen35moe" 1800 "$program" selfcheck -m "$data/random-qwen35moe.gguf"
  model random-qwen3moe.gguf --text random --arch qwen3moe --type "$types" --seed 12 &&
    step "selfcheck: random qwen3moe" 1800 "$program" selfcheck -m "$data/random-qwen3moe.gguf"
  model random-qwen35.gguf --text random --arch qwen35 --type "$types" --seed 13 &&
    step "selfcheck: random dense qwen35" 1800 "$program" selfcheck -m "$data/random-qwen35.gguf"
  for shape in qwen3.6-35b-a3b qwen3-coder-30b-a3b; do
    model "$shape-2.gguf" --shape "$shape" --layers 2 --type q4_k_m --text random &&
      step "selfcheck: $shape, 2 layers" 3600 "$program" selfcheck -m "$data/$shape-2.gguf" -n 8
  done
elif wants selfcheck; then
  skip "selfcheck" "the program was not built"
fi

# --- Figures -------------------------------------------------------------------------------------------------------------------------------
# The large model in MiB: 1,700 for embedding, heads and MTP layer, 500 a layer (four layers of the 35B at Q4_K_M are 3.3 GB, rounded up).
large_mib() { echo $((1700 + 500 * $1)); }

# Layers that fit on the disk, twice into memory (the file's pages and the weights), and on the GPU.
fitting_layers() {
  local disk memory vram n
  disk=$(df -Pm "$data" | awk 'NR == 2 { print $4 - 1024 }')
  memory=$(awk '/^MemAvailable:/ { print int($2 / 1024 - 4096) }' /proc/meminfo)
  vram=$(nvidia-smi --query-gpu=memory.free --format=csv,noheader,nounits -i 0 | awk '{ print int($1 * 0.95 - 2048) }')
  for ((n = 40; n >= 1; n--)); do
    local need
    need=$(large_mib "$n")
    if ((need <= disk && 2 * need <= memory && need <= vram)); then break; fi
  done
  echo "$n"
}

# busy_while COMMAND...: then prints in what share of the samples kernels ran, from the first busy one to the last. The driver samples ten
# times a second; the prompt and the end of loading are in it too.
busy_while() {
  local samples=$logs/busy status
  nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits -i 0 -lms 100 >"$samples" 2>/dev/null &
  local sampler=$!
  "$@"
  status=$?
  kill "$sampler" 2>/dev/null
  wait "$sampler" 2>/dev/null
  awk '{ v[NR] = $1 } $1 > 50 { if (!first) first = NR; last = NR }
       END { for (i = first; i && i <= last; i++) { sum += v[i]; n++ }
             if (n) printf "GPU busy: %.1f%% of the time over %d samples\n", sum / n, n; else print "GPU busy: no busy sample" }' "$samples"
  return "$status"
}

if wants bench && [ -n "$built" ]; then
  shape=qwen3.6-35b-a3b
  reused=$(find "$data" -maxdepth 1 -name "$shape-large-*.gguf" -size +1M 2>/dev/null | sort -V | tail -n 1)
  if [ -z "$layers" ] && [ -n "$reused" ]; then
    layers=$(basename "$reused" .gguf)
    layers=${layers##*-}
  fi
  [ -n "$layers" ] || layers=$(fitting_layers)
  if [ "$layers" -lt 1 ]; then
    skip "bench" "not even one layer of $shape at Q4_K_M fits on disk, in memory and on the GPU"
  else
    large=$data/$shape-large-$layers.gguf
    if model "$(basename "$large")" --shape "$shape" --layers "$layers" --type q4_k_m; then
      step "inspect" 600 "$program" inspect "$large"
      # The ids of prompts; any will do: speed does not depend on them, but the experts they choose do.
      for length in 512 4096; do
        seq 1000 7 $((1000 + 7 * (length - 1))) >"$data/prompt-$length.ids"
        step "prompt of $length tokens, --device cuda" 1800 "$program" decode -m "$large" --device cuda --ids "$data/prompt-$length.ids" -c 4352 \
          --prompt-chunk 512 -n 8 --ignore-eos --print-ids
      done
      arms=off,mtp:1:fixed,mtp:2:fixed,mtp:3:fixed,mtp:4:fixed,mtp:5:fixed,mtp:6:fixed,mtp:3:fixed:per-token,auto
      step "bench, --device cuda" 3600 "$program" bench -m "$large" --device cuda --arms "$arms" --rounds 5 -n 128 --ignore-eos \
        --forced-acceptance 0.85 --csv "$logs/bench-cuda.csv"
      step "bench, --device cuda, launches in order" 3600 env FORETOKEN_CUDA_DEPENDENT_LAUNCH=off "$program" bench -m "$large" \
        --device cuda --arms "$arms" --rounds 5 -n 128 --ignore-eos --forced-acceptance 0.85
      for drafts in 0 3; do
        step "same ids with dependent launches, --mtp $drafts" 1800 same_ids "$program" decode -m "$large" --device cuda --mtp "$drafts" \
          --ids "$data/prompt-512.ids" -c 4352 --prompt-chunk 512 -n 500 --ignore-eos --print-ids
      done
      for placed in 64 128 192; do
        step "bench, --device split, $placed of 256 experts" 3600 "$program" bench -m "$large" --device split --gpu-experts "$placed" --gpu-cache 0 \
          --arms off,mtp:3:fixed,auto --rounds 3 -n 64 --ignore-eos --forced-acceptance 0.85
      done
      # Half of them with the hot ones: fetched in the midst of a pass, as many as the measured times suggest, and filled beside passes.
      for fetched in auto 0 8; do
        step "bench, --device split, 96 experts and 32 hot ones, --gpu-fetch $fetched" 3600 "$program" bench -m "$large" --device split \
          --gpu-experts 96 --gpu-cache 32 --gpu-fetch "$fetched" --arms off,mtp:3:fixed,auto --rounds 3 -n 64 --ignore-eos --forced-acceptance 0.85
      done
      step "bench, --device cpu" 3600 "$program" bench -m "$large" --arms off,mtp:3:fixed --rounds 3 -n 64 --ignore-eos \
        --forced-acceptance 0.85
      for drafts in 0 3; do
        step "share of the time the GPU is busy, --mtp $drafts" 900 busy_while "$program" decode -m "$large" --device cuda --mtp "$drafts" \
          --mtp-fixed -p "int main" -n 1500 --ignore-eos --print-ids
      done
      [ -n "$keep" ] || rm -f "$large"
    fi
  fi
  # F16 matrices by cuBLAS and by our own kernel. bench itself fails where an arm's text is not the first one's.
  half=$shape-f16-2.gguf
  if model "$half" --shape "$shape" --layers 2 --type f16 --text random; then
    for flag in "" --cublas; do
      step "bench, F16, --device cuda $flag" 1800 "$program" bench -m "$data/$half" --device cuda $flag \
        --arms off,mtp:1:fixed,mtp:2:fixed,mtp:3:fixed --rounds 3 -n 64 --ignore-eos --forced-acceptance 0.7
      seq 1000 7 4577 >"$data/prompt-512.ids"
      step "F16 prompt of 512 tokens, --device cuda $flag" 600 "$program" decode -m "$data/$half" --device cuda $flag \
        --ids "$data/prompt-512.ids" --prompt-chunk 512 -n 8 --ignore-eos --print-ids
    done
    [ -n "$keep" ] || rm -f "$data/$half"
  fi
elif wants bench; then
  skip "bench" "the program was not built"
fi

[ "$failures" -eq 0 ] || exit 1
