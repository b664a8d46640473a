"""Bytes that SCORE, PAIRS, MERGE and PROOF need: each is one process, the first three models on one device at most."""

from finetune.config import Recipe
from finetune.config.model import Architecture
from finetune.memory.counts import DTYPE_BYTES, linear_shapes, lora_parameters, parameters, weight_bytes
from finetune.memory.device import TOKENIZER

_MIB = 2**20
_FP32, _FP64 = 4, 8
# Measured on 2026-11-22 by benchmarks/memory/run.py (2 CPU cores, glibc, torch 2.13): what a child has imported, and
# what loading bf16 weights as float32 leaves behind in the threads' heaps.
_LIBRARIES = {"score": 540 * _MIB, "pairs": 480 * _MIB, "merge": 480 * _MIB, "proof": 480 * _MIB}
_CONVERTED = 0.12  # of the weights
_PAIRS_TOKENS = 4096  # pairs.py
_SHORT = 64  # half of a batch's rows may be as short: count one answer for so many prompt tokens
_GENERAL_TOKENS, _GENERAL_ROWS = 1024, 256  # score/general.py
_PROOF_ANSWER = 64  # asked.py
_LARGEST_HEAP_BLOCK = 32 * _MIB  # DEFAULT_MMAP_THRESHOLD_MAX of glibc
_MERGE_BLOCKS = 4 * 8 * _MIB  # stream.py: threads x bytes


def children_bytes(recipe: Recipe, *, length: int) -> dict[str, int]:
    """Stage -> peak bytes of its process: of the device for SCORE, PAIRS and PROOF, of the host for MERGE.

    `length`: tokens of the longest prompt.
    """
    tasks, score, pairs = recipe.tasks.values(), recipe.score, recipe.dpo.pairs
    tested = sum(task.test_rows for task in tasks)
    found = {"score": _score(recipe, min(score.batch_tokens, tested * length), tested, length)}
    if "dpo" in recipe.stages and pairs is not None:
        sampled = (pairs.prompts + pairs.eval_prompts) * pairs.samples
        tokens = min(_PAIRS_TOKENS, sampled * length)
        rows = min(_rows(tokens, length), sampled)
        drawn = rows * recipe.model.architecture.vocab_size * 2 * _FP64
        found["pairs"] = _held(recipe, "pairs") + _generation(recipe, tokens, rows, length) + drawn
    return found | {"merge": _merge(recipe), "proof": _proof(recipe, length)}


def _held(recipe: Recipe, stage: str) -> int:
    """Base and adapter; on a CPU the interpreter and its imports, and what 4 bit leaves mapped."""
    model, method = recipe.model, recipe.method
    a, size = model.architecture, DTYPE_BYTES[model.dtype]
    held = weight_bytes(a, model.dtype, method.bnb) + lora_parameters(a, method.lora) * _FP32
    if recipe.machine.device == "cuda":
        return held
    rounded = size == DTYPE_BYTES["bfloat16"]
    held += parameters(a).linear * size if method.bnb and rounded else 0
    return held + _LIBRARIES[stage] + TOKENIZER * a.vocab_size + _converted(recipe)


def _converted(recipe: Recipe) -> int:
    whole = weight_bytes(recipe.model.architecture, recipe.model.dtype, recipe.method.bnb)
    return round(_CONVERTED * whole) if DTYPE_BYTES[recipe.model.dtype] == _FP32 else 0


def _rows(tokens: int, length: int) -> int:
    return max(1, tokens // min(_SHORT, length))


def _generation(recipe: Recipe, tokens: int, rows: int, length: int, opening: int = 0) -> int:
    """A batch of `tokens` prompt tokens that is read: keys and values with room for answers, one layer, and the scores
    of attention, in the model's type, joined, widened and as weights (generate.py)."""
    a, size = recipe.model.architecture, DTYPE_BYTES[recipe.model.dtype]
    answers = rows * max(task.max_new_tokens for task in recipe.tasks.values())
    cache = 2 * a.num_hidden_layers * a.num_key_value_heads * a.head_dim * size
    layer = tokens * size * (3 * a.intermediate_size + 4 * a.hidden_size)
    scores = tokens * (length + opening) * a.num_attention_heads * 3 * _FP32
    logits = rows * a.vocab_size * size
    return (tokens + answers + opening) * cache + max(layer, scores) + logits


def _score(recipe: Recipe, tokens: int, tested: int, length: int) -> int:
    rows = min(_rows(tokens, length), tested)
    asked = _generation(recipe, tokens, rows, length, opening=recipe.score.shots * length)
    a, size = recipe.model.architecture, DTYPE_BYTES[recipe.model.dtype]
    read = min(_GENERAL_TOKENS, recipe.score.general_tokens) * a.vocab_size * size
    return _held(recipe, "score") + max(asked, read + _GENERAL_ROWS * a.vocab_size * (_FP32 + size))


def _merge(recipe: Recipe) -> int:
    """Blocks of rows, the base's and the merged ones in float32; what was 4 bit is rounded a whole matrix at a time."""
    a, size = recipe.model.architecture, DTYPE_BYTES["bfloat16"]
    largest = max(i * o for i, o in linear_shapes(a).values())
    rounded = largest * (size + 2 * _FP32) if recipe.method.bnb else 0
    return _LIBRARIES["merge"] + 3 * _MERGE_BLOCKS + rounded


def _proof(recipe: Recipe, length: int) -> int:
    """The same answers again, and the logits of one answer: two models' in float32, five times over in float64."""
    a, rows = recipe.model.architecture, recipe.score.parity_prompts
    tokens = min(recipe.score.batch_tokens, rows * length)
    compared = _PROOF_ANSWER * a.vocab_size * (2 * _FP32 + 5 * _FP64)
    asked = _generation(recipe, tokens, rows, length)
    if recipe.machine.device == "cpu":
        # Blocks up to glibc's largest threshold stay in the heap, free, when the second model comes; it is loaded anew.
        compared *= 2 if _PROOF_ANSWER * a.vocab_size * _FP64 < _LARGEST_HEAP_BLOCK else 1
        compared += 2 * _converted(recipe)
    return _held(recipe, "proof") + max(asked, compared + _float32_layer(a, tokens))


def _float32_layer(a: Architecture, tokens: int) -> int:
    return tokens * _FP32 * (3 * a.intermediate_size + 4 * a.hidden_size)
