"""Bytes of the stages that one process runs: SCORE, PAIRS, BASES, MERGE, PROOF, EXPORT. One model in memory at most."""

from finetune.config import Recipe
from finetune.config.evaluation import CONTEXT_ANSWER
from finetune.config.model import Architecture
from finetune.memory.counts import DTYPE_BYTES, linear_shapes, lora_parameters, parameters, weight_bytes
from finetune.memory.device import TOKENIZER
from finetune.memory.disk import ANSWER_TOKENS, compared_prompts, quantised_bytes, tested_rows

_MIB = 2**20
_FP32, _FP64 = 4, 8
# Measured on 2026-11-22 by benchmarks/memory/run.py (2 CPU cores, glibc, torch 2.13): what a child has imported, and
# what loading bf16 weights as float32 leaves behind in the threads' heaps.
_LIBRARIES = {
    "score": 540 * _MIB,
    "pairs": 480 * _MIB,
    "merge": 460 * _MIB,
    "bases": 470 * _MIB,
    "proof": 470 * _MIB,
    "export": 410 * _MIB,
    "rounding": 500 * _MIB,
}
_CONVERTED = 0.12  # of the weights
_PAIRS_TOKENS = 4096  # pairs.py
_SHORT = 64  # half of a batch's rows may be as short: count one answer for so many prompt tokens
_GENERAL_TOKENS, _GENERAL_ROWS = 1024, 256  # score/general.py
_LOGITS = 512  # parity.py
_LARGEST_HEAP_BLOCK = 32 * _MIB  # DEFAULT_MMAP_THRESHOLD_MAX of glibc
_WIDENED_ROWS = 8192  # exact.py
_BASES_PROMPTS, _BASES_TOKENS = 24, 16384  # bases.py
_MERGE_BLOCKS = (5 + 1 + 3) * 8 * _MIB  # stream.py: begun by four threads, being written, being hashed


def children_bytes(recipe: Recipe, *, length: int) -> dict[str, int]:
    """Stage -> peak bytes of its process, in the order of the run: of the host for MERGE, of the device for all others.
    PAIRS, BASES and EXPORT are there where the recipe has them. `length`: tokens of the longest prompt."""
    pairs = recipe.dpo.pairs
    found = {"score": _score(recipe, length)}
    if "dpo" in recipe.stages and pairs is not None:
        sampled = (pairs.prompts + pairs.eval_prompts) * pairs.samples
        tokens = min(_PAIRS_TOKENS, sampled * length)
        rows = min(_rows(tokens, length), sampled)
        drawn = rows * recipe.model.architecture.vocab_size * 2 * _FP64
        found["pairs"] = _held(recipe, "pairs") + _generation(recipe, tokens, rows, length) + drawn
    if recipe.method.bnb is not None:
        found["bases"] = _bases(recipe, length)
    found |= {"merge": _merge(recipe), "proof": _proof(recipe, length)}
    return found | ({"export": _export(recipe, length)} if recipe.export else {})


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


def _merged(recipe: Recipe, stage: str) -> int:
    """The merged model, never in 4 bit, and no adapter."""
    a, model = recipe.model.architecture, recipe.model
    whole = weight_bytes(a, model.dtype, None)
    if recipe.machine.device == "cuda":
        return whole
    return whole + _LIBRARIES[stage] + TOKENIZER * a.vocab_size + _converted(recipe)


def _converted(recipe: Recipe) -> int:
    whole = weight_bytes(recipe.model.architecture, recipe.model.dtype, recipe.method.bnb)
    return round(_CONVERTED * whole) if DTYPE_BYTES[recipe.model.dtype] == _FP32 else 0


def _rows(tokens: int, length: int) -> int:
    return max(1, tokens // min(_SHORT, length))


def _generation(recipe: Recipe, tokens: int, rows: int, length: int, *, opening: int = 0, answer: int = 0) -> int:
    """A batch of `tokens` prompt tokens that is read: keys and values with room for answers, one layer, and the scores
    of attention, in the model's type, joined, widened and as weights (generate.py)."""
    a, size = recipe.model.architecture, DTYPE_BYTES[recipe.model.dtype]
    answers = rows * (answer or max(task.max_new_tokens for task in recipe.tasks.values()))
    cache = 2 * a.num_hidden_layers * a.num_key_value_heads * a.head_dim * size
    layer = tokens * size * (3 * a.intermediate_size + 4 * a.hidden_size)
    scores = tokens * (length + opening) * a.num_attention_heads * 3 * _FP32
    logits = rows * a.vocab_size * size
    return (tokens + answers + opening) * cache + max(layer, scores) + logits


def _score(recipe: Recipe, length: int) -> int:
    """Base and tuned model answer and read general text. The merged one is compared with the tuned one's sum, or where
    that cannot be held (4 bit, float32) loaded and reads the tuned one's answers."""
    a, size, tested = recipe.model.architecture, DTYPE_BYTES[recipe.model.dtype], tested_rows(recipe)
    tokens = min(recipe.score.batch_tokens, tested * length)
    rows = min(_rows(tokens, length), tested)
    asked = _generation(recipe, tokens, rows, length, opening=recipe.score.shots * length)
    if recipe.score.context is not None:
        longest = max(recipe.score.context.lengths)
        together = max(1, recipe.score.batch_tokens // longest)
        asked = max(asked, _generation(recipe, together * longest, together, longest, answer=CONTEXT_ANSWER))
    widened = _FP32 if size < _FP32 else 0
    read = min(_GENERAL_TOKENS, recipe.score.general_tokens) * size + _GENERAL_ROWS * (_FP32 + widened)
    held = _held(recipe, "score")
    needs = held + _together(recipe, asked, read * a.vocab_size)
    if recipe.method.bnb is None and widened:
        mapped = weight_bytes(a, recipe.model.dtype, None) if recipe.machine.device == "cpu" else 0
        return max(needs, held + _together(recipe, asked, mapped))
    answers = min(_LOGITS, rows * max(task.max_new_tokens for task in recipe.tasks.values()))
    confirmed = answers * a.vocab_size * (2 * _FP32 + (size if widened else 0)) + _converted(recipe)
    return max(needs, _merged(recipe, "score") + _together(recipe, asked, confirmed))


def _merge(recipe: Recipe) -> int:
    """Blocks of rows in all threads; of a matrix that was 4 bit its codes and scales, these twice."""
    rounded = _largest(recipe.model.architecture) * (1 / 2 + 2 * _FP32 / 64) if recipe.method.bnb else 0
    return _LIBRARIES["merge"] + _MERGE_BLOCKS + round(rounded)


def _proof(recipe: Recipe, length: int) -> int:
    """The adapter answers, then it and the merged model, which is whole whatever the base was, read the answers: in the
    model's type one by one, in float32 together."""
    a, size, prompts = recipe.model.architecture, DTYPE_BYTES[recipe.model.dtype], compared_prompts(recipe)
    tokens = min(recipe.score.batch_tokens, prompts * length)
    together = min(max(1, recipe.score.batch_tokens // (length + ANSWER_TOKENS)), prompts)
    # The attention that serves is held against another kernel, one of which has scores.
    scores = a.num_attention_heads * (length + ANSWER_TOKENS) ** 2 * (3 * size + _FP32)
    asked = _generation(recipe, tokens, min(_rows(tokens, length), prompts), length, answer=ANSWER_TOKENS)
    compared = max(_compared(recipe, 1) + scores, _in_float32(recipe, together, length))
    # The checkpoint's own template and tokenizer are read beside the base's.
    second = TOKENIZER * a.vocab_size if recipe.machine.device == "cpu" else 0
    own = _held(recipe, "proof") + _together(recipe, asked, compared)
    return second + max(own, _merged(recipe, "proof") + compared)


def _bases(recipe: Recipe, length: int) -> int:
    """The adapter on its 4-bit base answers all prompts in one batch, and each candidate reads the answers in one; the
    matrix that is used comes from the disk, goes through 4 bit and is merged."""
    a, size = recipe.model.architecture, DTYPE_BYTES[recipe.model.dtype]
    prompts = max(1, min(_BASES_PROMPTS, tested_rows(recipe), _BASES_TOKENS // (length + ANSWER_TOKENS)))
    asked = _generation(recipe, prompts * length, prompts, length, answer=ANSWER_TOKENS)
    compared = _in_float32(recipe, prompts, length)
    if recipe.machine.device == "cuda":
        return _held(recipe, "bases") + max(asked, compared)
    # One model stays for the whole stage, and glibc gives back nothing of what it leaves in the heap.
    left = asked + min(_float32_layer(recipe, prompts, length), compared)
    return _held(recipe, "bases") + left + compared + max(a.vocab_size * a.hidden_size, 3 * _largest(a)) * size


def _export(recipe: Recipe, length: int) -> int:
    """The merged and each quantised model from their files, unpacked: they read the answers one by one, and the latter
    answer all prompts."""
    tested = tested_rows(recipe)
    tokens = min(recipe.score.batch_tokens, tested * length)
    asked = _generation(recipe, tokens, min(_rows(tokens, length), tested), length)
    needs = _together(recipe, asked, _compared(recipe, 1))
    if recipe.machine.device == "cuda":
        return needs + weight_bytes(recipe.model.architecture, recipe.model.dtype, None)
    return max(_unpacked(recipe) + needs, quantising_bytes(recipe, length=length))


def quantising_bytes(recipe: Recipe, *, length: int) -> int:
    """Host memory of llm-compressor's environment, without what a device is asked; 0 without EXPORT.

    While it rounds: the merged model, what every calibration row of at most `length` tokens is before and behind a
    layer, and for GPTQ float32 sums of products of all inputs of each matrix of a layer, thrice for the one that is
    rounded. While a quantised model is read: that model and what it is unpacked from.
    """
    if not recipe.export:
        return 0
    a, how = recipe.model.architecture, recipe.quantise
    size = DTYPE_BYTES[recipe.model.dtype]
    calibrated = how.rounding == "gptq" or ("w8a8" in recipe.export and how.smoothing > 0)
    inputs = [i for i, _ in linear_shapes(a).values()]
    sums = _FP32 * (sum(i * i for i in inputs) + 2 * max(inputs) ** 2) if how.rounding == "gptq" else 0
    rows = 2 * how.rows * min(how.max_length, length) * a.hidden_size * size if calibrated else 0
    started = _LIBRARIES["rounding"] + TOKENIZER * a.vocab_size
    return max(started + weight_bytes(a, recipe.model.dtype, None) + sums + rows, _unpacked(recipe))


def _unpacked(recipe: Recipe) -> int:
    packed = max(quantised_bytes(recipe, scheme) for scheme in recipe.export)
    return _LIBRARIES["export"] + weight_bytes(recipe.model.architecture, recipe.model.dtype, None) + packed


def _in_float32(recipe: Recipe, together: int, length: int) -> int:
    """`together` answers behind their prompts through float32 layers, then logits; each matrix is widened by rows."""
    a, tokens = recipe.model.architecture, together * (length + ANSWER_TOKENS)
    compared = _compared(recipe, together) + tokens * a.hidden_size * _FP32
    widened = min(_WIDENED_ROWS, a.vocab_size) * a.hidden_size * _FP32 if _widens(recipe) else 0
    return max(_float32_layer(recipe, together, length), compared) + widened


def _float32_layer(recipe: Recipe, together: int, length: int) -> int:
    """The branch's product and its sum beside gate, up and the stream."""
    a = recipe.model.architecture
    return together * (length + ANSWER_TOKENS) * _FP32 * (4 * a.intermediate_size + 2 * a.hidden_size)


def _widens(recipe: Recipe) -> bool:
    return DTYPE_BYTES[recipe.model.dtype] < _FP32


def _compared(recipe: Recipe, together: int) -> int:
    """Logits of parity.py. At most 512 positions are made at once: those before, the whole, and where the head is
    widened by rows, or read from the disk, its parts. Then, answer by answer, the other model's are read, and of both
    there is float64 five times, twice of the last."""
    words = recipe.model.architecture.vocab_size
    made, answer = min(_LOGITS, together * ANSWER_TOKENS) * words * _FP32, ANSWER_TOKENS * words
    made *= 3 if _widens(recipe) or recipe.method.bnb is not None else 2
    if recipe.machine.device == "cpu" and answer * _FP64 < _LARGEST_HEAP_BLOCK:
        return made + answer * (_FP32 + 5 * _FP64)
    return max(made + answer * (_FP32 + 2 * _FP64), made // 2 + answer * (_FP32 + 5 * _FP64))


def _together(recipe: Recipe, first: int, second: int) -> int:
    """Of two things that follow each other the larger, on a CPU and half of the other: many of its blocks are below
    glibc's largest threshold and stay in the heap, where the larger one does not find them in one piece."""
    return max(first, second) + (min(first, second) // 2 if recipe.machine.device == "cpu" else 0)


def _largest(a: Architecture) -> int:
    """Weights of the largest matrix of a layer."""
    return max(i * o for i, o in linear_shapes(a).values())
