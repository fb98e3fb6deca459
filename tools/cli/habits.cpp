#include "tools/cli/habits.h"

#include <array>

namespace foretoken {

namespace {

struct Habit {
  std::string_view flags;  // separated by blanks
  std::string_view answer;
  std::string_view command = {};  // empty: of every command
};

constexpr std::string_view kSampling = "sampling has --temp, --top-k, --top-p, --min-p and --seed; leave it out";
constexpr std::string_view kDownload = "models are not downloaded; fetch the .gguf file and name it with -m";
constexpr std::string_view kDraft =
    "drafts come from the model's own MTP layer: --mtp K makes up to K of them, --mtp alone lets the controller choose";
constexpr std::string_view kChat =
    "there is no dialogue in this command; --chat wraps one prompt in the model's chat template";
constexpr std::string_view kPositions = "positions are rotated as the file's metadata says; leave it out";
constexpr std::string_view kCores =
    "threads are pinned and laid over the nodes of memory by themselves; -t N sets their number, FORETOKEN_NUMA=off "
    "lays them over one node";
constexpr std::string_view kServer = "this command serves no requests; leave it out";

// The names are those of llama.cpp's common/arg.cpp and llama-bench. A flag that the command declares itself never
// comes here.
constexpr std::array kHabits = {
    Habit{"-ngl --n-gpu-layers --gpu-layers",
          "layers are not moved one by one: --device cuda runs everything on the GPU, --device split what fits there"},
    Habit{"-sm --split-mode -ts --tensor-split -mg --main-gpu -dev --list-devices",
          "one GPU is used, the first one; --device cpu|cuda|split says what runs on it, foretoken --version names it"},
    Habit{"-ot --override-tensor -cmoe --cpu-moe -ncmoe --n-cpu-moe -nkvo --no-kv-offload --no-op-offload --fit -fit",
          "--device split places experts by itself; --gpu-experts, --gpu-layers, --gpu-cache and --gpu-fetch change "
          "that"},
    Habit{"-ctk --cache-type-k -ctv --cache-type-v", "--kv-type f16|f32 sets the type of keys and values together"},
    Habit{"-fa --flash-attn --no-flash-attn",
          "attention is computed without its matrix of scores always; leave it out"},
    Habit{"-tb --threads-batch -td --threads-draft -tbd", "prompt and generation run on the same threads: -t N"},
    Habit{"-b --batch-size -ub --ubatch-size", "--prompt-chunk N sets how many prompt tokens go through one pass"},
    Habit{"-np --parallel -ns --sequences -cb --cont-batching -nocb --no-cont-batching -kvu --kv-unified --slots",
          "this command runs one sequence at a time; leave it out"},
    Habit{
        "-mlock --mlock",
        "weights are copied into memory when they are loaded, only --no-repack leaves them in the file; leave it out"},
    Habit{"-mmp --mmap --no-mmap -dio --direct-io",
          "weights are copied into memory when they are loaded; --no-repack computes from the mapped file"},
    Habit{"-nr", "--no-repack has no short form"},
    Habit{"--numa -C --cpu-mask -Cr --cpu-range --cpu-strict --prio --poll -Cb --cpu-mask-batch", kCores},
    Habit{"-s", "--seed N has no short form"},
    Habit{"-temp -temperature --temperature", "--temp X sets the temperature; 0 is greedy"},
    Habit{"-topk -topp -minp --topk --topp --minp", "write --top-k N, --top-p X, --min-p X"},
    Habit{"--top-nsigma --top-n-sigma --typical --typical-p --xtc-probability --xtc-threshold --repeat-last-n "
          "--repeat-penalty --presence-penalty --frequency-penalty --dry-multiplier --dry-base --dry-allowed-length "
          "--dry-penalty-last-n --dry-sequence-breaker --dynatemp-range --dynatemp-exp --mirostat --mirostat-lr "
          "--mirostat-ent --samplers --sampling-seq --sampler-seq -l --logit-bias -bs --backend-sampling "
          "--adaptive-target --adaptive-decay",
          kSampling},
    Habit{"--grammar --grammar-file -j --json-schema -jf --json-schema-file",
          "decode alone binds its text to a grammar: --grammar GBNF, --grammar-file FILE, --json-schema JSON"},
    Habit{"-e --escape --no-escape",
          "a prompt is taken as it is typed; a shell writes a line end as $'first\\nsecond', or use -f FILE"},
    Habit{"-r --rounds", "--rounds N sets how often each arm runs", "bench"},
    Habit{
        "-r --reverse-prompt",
        "a generation ends at the model's end tokens, after -n tokens or where the context is full; stop texts are not "
        "known"},
    Habit{"-cnv --conversation -no-cnv --no-conversation -i --interactive -if --interactive-first -mli "
          "--multiline-input -st --single-turn --in-prefix --in-suffix --in-prefix-bos -sys --system-prompt -sysf "
          "--system-prompt-file -ins --instruct -cml --chatml",
          kChat},
    Habit{"--jinja --no-jinja --chat-template --chat-template-file --chat-template-kwargs --reasoning-format "
          "--reasoning-budget -rea --reasoning --prefill-assistant --no-prefill-assistant --skip-chat-parsing",
          "--chat uses the template that the file holds"},
    Habit{"-hf -hfr --hf-repo -hff --hf-file -hfv -hfrv --hf-repo-v -hffv --hf-file-v -hft --hf-token -hfd -hfrd "
          "--hf-repo-draft -mu --model-url -dr --docker-repo --offline",
          kDownload},
    Habit{"-md --model-draft",
          "a file with the MTP layer is named by --model-draft FILE, in commands that run a model; other models do not "
          "draft"},
    Habit{"--draft --draft-n --draft-max --draft-min --draft-n-min --draft-p-min --draft-p-split -cd "
          "--ctx-size-draft -ngld --gpu-layers-draft --n-gpu-layers-draft -devd --device-draft -ctkd "
          "--cache-type-k-draft "
          "-ctvd --cache-type-v-draft --spec-type --spec-draft-n-max --spec-draft-n-min --spec-default "
          "-lcs --lookup-cache-static -lcd --lookup-cache-dynamic --spec-replace --lookahead",
          kDraft},
    Habit{"--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --yarn-orig-ctx --yarn-ext-factor "
          "--yarn-attn-factor --yarn-beta-slow --yarn-beta-fast -gan --grp-attn-n -gaw --grp-attn-w",
          kPositions},
    Habit{"--keep --context-shift --no-context-shift --swa-full -dt --defrag-thold",
          "nothing is dropped from a full context: the generation ends there; -c N sets its size"},
    Habit{"--special -sp",
          "special tokens are left out of the text; --print-ids shows them, and --parse-special reads "
          "them from a prompt"},
    Habit{"--plain --no-parse-special", "text is plain unless --parse-special is given; leave it out"},
    Habit{"--display-prompt --no-display-prompt", "the prompt is never printed; leave it out"},
    Habit{"--predict -predict --n_predict", "-n N, or --n-predict N, sets how many tokens are made at most"},
    Habit{"-ctx --ctx_size --context-size --n-ctx", "-c N, or --ctx-size N, sets the context"},
    Habit{"--warmup --no-warmup --check-tensors --no-perf --perf --simple-io -co --color --show-timings "
          "--no-show-timings -ptc --print-token-count",
          "it has nothing to change here; leave it out"},
    Habit{"-v --verbose --log-verbose -lv --verbosity --log-verbosity --log-disable --log-file --log-colors "
          "--log-prefix --log-timestamps --verbose-prompt",
          "statistics and messages go to standard error (2>FILE keeps them), --json FILE holds all figures"},
    Habit{"-pc --prompt-cache --prompt-cache-all --prompt-cache-ro --slot-save-path",
          "prompts are not kept between runs; leave it out"},
    Habit{"--lora --lora-scaled --lora-init-without-apply --control-vector --control-vector-scaled "
          "--control-vector-layer-range -mm --mmproj -mmu --mmproj-url --image --audio --rpc --override-kv",
          "the model is used as its file has it; leave it out"},
    Habit{"-bf --binary-file", "-f FILE reads a prompt of UTF-8 text, --ids FILE one of token ids"},
    Habit{"-o --output --output-file -of", "--json FILE writes the result; standard output can be redirected"},
    Habit{"--host --port -to --timeout --api-key --threads-http -a --alias", kServer},
};

bool lists(std::string_view names, std::string_view name) {
  for (size_t at = names.find(name); at != std::string_view::npos; at = names.find(name, at + 1)) {
    const size_t end = at + name.size();
    if ((at == 0 || names[at - 1] == ' ') && (end == names.size() || names[end] == ' ')) return true;
  }
  return false;
}

}  // namespace

std::string_view answer_to_habit(std::string_view flag, std::string_view command) {
  flag = flag.substr(0, flag.find('='));
  std::string_view stem = flag;  // -ngl99
  while (!stem.empty() && stem.back() >= '0' && stem.back() <= '9') stem.remove_suffix(1);
  for (const std::string_view name : {flag, stem}) {
    if (name.size() < 2) continue;
    for (const Habit& habit : kHabits) {
      if ((habit.command.empty() || habit.command == command) && lists(habit.flags, name)) return habit.answer;
    }
  }
  return {};
}

}  // namespace foretoken
