"""Each rule fails once, with the path, the value, the rule and the fix that the user reads."""

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from tests.checks.composed import CPU, LARGE, SMALL, only, problems


@pytest.mark.parametrize("words", [SMALL, LARGE, (*LARGE, "method=qlora"), ("model=tiny_qwen3", "machine=cpu_zero3x2")])
def test_a_good_recipe_has_no_problem(words):
    assert problems({}, words) == []


READY = {"source": "work_orders", "prompt": "{text}", "chosen": "{place}", "rejected": "{text}"}
CASES = {
    # stages
    "no stage": ({"stages": []}, "stages", [], "at least one", "stages=[sft]"),
    "stages out of order": ({"stages": ["dpo", "sft"]}, "stages", ["dpo", "sft"], "in the order", "stages=[sft,dpo]"),
    "a stage twice": ({"stages": ["sft", "sft"]}, "stages", ["sft", "sft"], "runs once", "stages=[sft]"),
    "dpo without sft": ({"stages": ["dpo"]}, "stages", ["dpo"], "starts from what sft", "stages=[sft,dpo]"),
    "cpt without text": ({"stages": ["cpt", "sft"], "text": []}, "text", [], "running text", "add text"),
    "nothing to train on": (
        {"tasks.fields.train_rows": 0, "tasks.place.train_rows": 0}, "tasks", None, "train_rows above 0", "train_rows",
    ),
    # sources
    "no path, hub or wheel": (
        {"sources.work_orders.path": None}, "sources.work_orders", None, "path, a hub or a wheel", "path, sources.",
    ),
    "missing file": (
        {"sources.work_orders.path": "work_order.csv"}, "sources.work_orders.path", "work_order.csv",
        "nothing of this name", "did you mean work_orders.csv?",
    ),
    "glob without a match": (
        {"sources.work_orders.path": "notes/*.html"}, "sources.work_orders.path", "notes/*.html",
        "nothing of this name", "put it into",
    ),
    "cut table": ({"sources.work_orders.cut": {"by": "page"}}, "sources.work_orders.cut.by", "page", "is rows", "drop"),
    "pattern without by": (
        {"sources.handbook.cut": {"by": "page", "pattern": "(?P<a>.)"}}, "sources.handbook.cut.pattern", "(?P<a>.)",
        "goes with by: pattern", "both or neither",
    ),
    "broken pattern": (
        {"sources.handbook.cut": {"by": "pattern", "pattern": "(?P<a>."}}, "sources.handbook.cut.pattern", "(?P<a>.",
        "no regular expression", "mend it",
    ),
    "pattern without names": (
        {"sources.handbook.cut": {"by": "pattern", "pattern": "(.*)"}}, "sources.handbook.cut.pattern", "(.*)",
        "no named group", "(?P<title>",
    ),
    "broken where": (
        {"tasks.fields.where": {"labels": "["}}, "tasks.fields.where.labels", "[", "no regular expression", "mend it",
    ),
    "unknown encoding": (
        {"sources.work_orders.encoding": "utf-9"}, "sources.work_orders.encoding", "utf-9", "no encoding", "utf-8",
    ),
    # tasks
    "no main task": ({"tasks.fields.main": False}, "tasks", None, "exactly one task", "tasks.fields.main"),
    "two main tasks": ({"tasks.place.main": True}, "tasks", ["fields", "place"], "exactly one task", "tasks.fields"),
    "a task called replay": (
        {"tasks.replay": {"title": "R", "source": "work_orders", "prompt": "{text}", "answer": "{place}",
                          "metric": "exact_match"}},
        "tasks.replay", None, "general text is trained on", "another name",
    ),
    "unknown source": (
        {"tasks.fields.source": "work_order"}, "tasks.fields.source", "work_order", "not one of the sources",
        "did you mean work_orders?",
    ),
    "answer twice": ({"tasks.fields.answer": "{action}"}, "tasks.fields", None, "one of the two", "answer_json"),
    "no answer": ({"tasks.place.answer": None}, "tasks.place", None, "one of the two", "keep tasks.place.answer"),
    "json metric on text": (
        {"tasks.place.metric": "json_exact"}, "tasks.place.metric", "json_exact", "looks at answer_json",
        "give tasks.place.answer_json",
    ),
    "single brace": (
        {"tasks.place.prompt": "Order {text"}, "tasks.place.prompt", "Order {text", "single brace", "double a brace",
    ),
    "prompt without column": (
        {"tasks.place.prompt": "Where?"}, "tasks.place.prompt", "Where?", "ask the same", "name columns",
    ),
    "reasoning without think mode": (
        {"tasks.place.reasoning": "{text}"}, "tasks.place.reasoning", "{text}", "does not have", "model=qwen3_32b",
    ),
    "prompt and messages": (
        {"tasks.place.messages": "text", "tasks.place.answer": None}, "tasks.place", None, "a prompt or messages",
        "keep tasks.place.prompt",
    ),
    "tools without messages": (
        {"tasks.place.tools": "text"}, "tasks.place.tools", "text", "goes with messages", "drop tasks.place.tools",
    ),
    "a mix of one mode": (
        {"prepare.think_share": 0.75}, "prepare.think_share", 0.75, "mixes two modes", "prepare.think_share=null",
    ),
    "answer longer than a row": (
        {"tasks.place.max_new_tokens": 256}, "tasks.place.max_new_tokens", 256, "no room for a prompt", "lower",
    ),
    # running text, split
    "general text that is trained on": (
        {"general.speeches.source": "replay"}, "general.speeches.source", "replay", "trained on as well",
        "nothing else",
    ),
    "no general text": ({"general": {}}, "general", None, "needs general text", "perplexity_rise_max=null"),
    "long replay": ({"replay.tokens": 300}, "replay.tokens", 300, "sft.max_length=256", "replay.tokens=256"),
    "nothing left to train": (
        {"prepare.split": {"valid": 0.5, "test": 0.5}}, "prepare.split.valid", 0.5, "nothing is left", "below 1",
    ),
    "no test rows": ({"prepare.split": {"test": 0.0}}, "prepare.split.test", 0.0, "above 0", "0.1"),
    "filters that drop all": (
        {"prepare.filters": {"min_chars": 9, "max_chars": 5}}, "prepare.filters.min_chars", 9, "every row", "lower",
    ),
    # model and method
    "hub model without a commit": (
        {"model.origin": "hub"}, "model.revision", None, "pinned to a commit", "model.revision=",
    ),
    "folder that is no model": ({"model.path": "/"}, "model.path", "/", "no config.json", "holds config.json"),
    "mode the model lacks": (
        {"model.default_mode": "think"}, "model.default_mode", "think", "not one of model.modes", "use plain",
    ),
    "flash attention on a CPU": (
        {"model.attn_implementation": "flash_attention_2"}, "model.attn_implementation", "flash_attention_2",
        "needs a GPU", "sdpa",
    ),
    "row longer than the model": (
        {"sft.max_length": 9000}, "sft.max_length", 9000, "more than the 8192 positions", "sft.max_length=8192",
    ),
    "qlora without bnb": ({"method.name": "qlora"}, "method.bnb", None, "4-bit base", "method=lora"),
    "lora with bnb": (
        {"method.bnb": {"load_in_4bit": True}}, "method.bnb", {"load_in_4bit": True}, "unquantised base",
        "method=qlora",
    ),
    "PiSSA": (
        {"method.lora.init_lora_weights": "pissa_niter_4"}, "method.lora.init_lora_weights", "pissa_niter_4",
        "changes the base", "init_lora_weights=true",
    ),
    "start from gradients that nobody computes": (
        {"method.lora.init_lora_weights": "lora_ga"}, "method.lora.init_lora_weights", "lora_ga",
        "plain LoRA in silence", "init_lora_weights=true",
    ),
    "start from activations that nobody computes": (
        {"method.lora.init_lora_weights": "eva"}, "method.lora.init_lora_weights", "eva", "a random start",
        "init_lora_weights=true",
    ),
    "biases": ({"method.lora.bias": "all"}, "method.lora.bias", "all", "do not have", "method.lora.bias=none"),
    "adapter on the head": (
        {"method.lora.target_modules": ["q_proj", "lm_head"]}, "method.lora.target_modules", ["q_proj", "lm_head"],
        "never be trained", "take lm_head out",
    ),
    "norms trained whole": (
        {"method.lora.modules_to_save": ["norm"]}, "method.lora.modules_to_save", ["norm"], "self-check",
        "modules_to_save=null",
    ),
    "Liger": (
        {"sft.trl.use_liger_kernel": True}, "sft.trl.use_liger_kernel", True, "set by the toolkit", "TRL's own fused",
    ),
    "a LoRA that MERGE does not know": (
        {"method.lora.use_bdlora": {}}, "method.lora.use_bdlora", {}, "set by the toolkit", "not B x A",
    ),
    "tied head trained apart": (
        {"method.lora.modules_to_save": ["lm_head"]}, "method.lora.modules_to_save", ["lm_head"],
        "transformers#45127", "modules_to_save=null",
    ),
    "adapter on nothing": (
        {"method.lora.target_modules": ["query"]}, "method.lora.target_modules", ["query"], "names no layer", "q_proj",
    ),
    # keys that are handed on
    "typo in a TRL key": (
        {"sft.trl.learnin_rate": 1e-3}, "sft.trl.learnin_rate", 1e-3, "not a key of trl.SFTConfig",
        "did you mean learning_rate?",
    ),
    "former TRL key": (
        {"sft.trl.warmup_ratio": 0.1}, "sft.trl.warmup_ratio", 0.1, "not a key", "use warmup_steps",
    ),
    "key that the toolkit sets": (
        {"dpo.trl.max_length": 128}, "dpo.trl.max_length", 128, "set by the toolkit", "set dpo.max_length",
    ),
    "best model at the end": (
        {"sft.trl.load_best_model_at_end": True}, "sft.trl.load_best_model_at_end", True, "set by the toolkit",
        "transformers#29338",
    ),
    "packing that leaks": (
        {"sft.trl.packing_strategy": "wrapped"}, "sft.trl.packing_strategy", "wrapped", "set by the toolkit",
        "never attend to each other",
    ),
    "second DeepSpeed": ({"sft.trl.deepspeed": "ds.json"}, "sft.trl.deepspeed", "ds.json", "set by", "one owner"),
    "wrong type of a TRL value": (
        {"sft.trl.learning_rate": "fast"}, "sft.trl.learning_rate", "fast", "must be float", "learning_rate=...",
    ),
    "learning rate of 5": ({"sft.trl.learning_rate": 5.0}, "sft.trl.learning_rate", 5.0, "between 0 and 1", "change"),
    "typo in a loss": (
        {"dpo.trl.loss_type": ["sigmod"]}, "dpo.trl.loss_type", "sigmod", "not a name", "did you mean sigmoid?",
    ),
    "typo in a schedule": (
        {"sft.trl.lr_scheduler_type": "cosin"}, "sft.trl.lr_scheduler_type", "cosin", "not a name", "cosine",
    ),
    "another name for r": ({"method.lora.rank": 8}, "method.lora.rank", 8, "not a key of peft.LoraConfig", "use r"),
    "rank that is true": ({"method.lora.r": True}, "method.lora.r", True, "must be int", "method.lora.r="),
    "literal that is none": (
        {"method.lora.bias": "some"}, "method.lora.bias", "some", "must be none or all or lora_only", "bias=...",
    ),
    "dropout of 1": ({"method.lora.lora_dropout": 1.0}, "method.lora.lora_dropout", 1.0, "below 1", "0.05"),
    "steps and epochs": (
        {"sft.trl.num_train_epochs": 2}, "sft.trl.num_train_epochs", 2, "max_steps=60 is set as well",
        "sft.max_steps=null, or take it out with ~sft.trl.num_train_epochs",
    ),
    "packing by TRL": ({"sft.trl.packing": True}, "sft.trl.packing", True, "set by the toolkit", "set sft.packing or"),
    "a cache in training": ({"sft.trl.use_cache": True}, "sft.trl.use_cache", True, "set by", "see each other"),
    "padding that does nothing": (
        {"sft.trl.pad_to_multiple_of": 8}, "sft.trl.pad_to_multiple_of", 8, "set by", "rows are padded to the longest",
    ),
    "a second reference": (
        {"dpo.trl.precompute_ref_log_probs": True}, "dpo.trl.precompute_ref_log_probs", True, "set by", "computed once",
    ),
    "smoothing that exo_pair needs": (
        {"dpo.trl.loss_type": ["exo_pair"]}, "dpo.trl.label_smoothing", 0.0, "above 0", "label_smoothing=1e-3",
    ),
    "smoothing that robust cannot have": (
        {"dpo.trl.loss_type": ["robust"], "dpo.trl.label_smoothing": 0.5}, "dpo.trl.label_smoothing", 0.5, "below 0.5",
        "label_smoothing=0.1",
    ),
    "a weight too many": (
        {"dpo.trl.loss_type": ["sigmoid"], "dpo.trl.loss_weights": [1.0, 0.2]}, "dpo.trl.loss_weights", [1.0, 0.2],
        "has not one number", "as many",
    ),
    "weights for a loss that sorts": (
        {"dpo.trl.loss_type": ["aot"], "dpo.trl.use_weighting": True}, "dpo.trl.use_weighting", True, "sorting",
        "false",
    ),
    "divergence of a loss that has none": (
        {"dpo.trl.loss_type": ["apo_zero"], "dpo.trl.f_divergence_type": "js_divergence"}, "dpo.trl.f_divergence_type",
        "js_divergence", "does not go with loss_type apo_zero", "reverse_kl",
    ),
    "typo in a divergence": (
        {"dpo.trl.f_divergence_type": "js"}, "dpo.trl.f_divergence_type", "js", "not a name", "js_divergence",
    ),
    "ld_alpha above 1": ({"dpo.trl.ld_alpha": 2.0}, "dpo.trl.ld_alpha", 2.0, "0 to 1", "0.5"),
    "dpo without preferences": ({"dpo.pairs": None}, "dpo.pairs", None, "brings none along", "add preferences"),
    # ready-made preferences
    "preferences from nowhere": (
        {"preferences.ours": {**READY, "source": "order"}}, "preferences.ours.source", "order",
        "not one of the sources", "did you mean",
    ),
    "a preference without a prompt": (
        {"preferences.ours": {**READY, "prompt": None}}, "preferences.ours.prompt", None, "or messages is", "add",
    ),
    "one answer with reasoning": (
        {"preferences.ours": {**READY, "chosen_reasoning": "{text}"}}, "preferences.ours.rejected_reasoning", None,
        "one prompt in one mode", "both or neither",
    ),
    "a better answer twice": (
        {"preferences.ours": {**READY, "prompt": None, "messages": "text"}}, "preferences.ours.chosen", "{place}",
        "comes from the conversations", "drop",
    ),
    "a worse answer that is always the same": (
        {"preferences.ours": {**READY, "rejected": "No."}}, "preferences.ours.rejected", "No.", "every row would say",
        "{text}",
    ),
    # release and folders
    "accepted by nobody": (
        {"handoff.accepted_by": " ", "handoff.reason": "a pilot"}, "handoff.accepted_by", " ", "is empty", "='...'",
    ),
    "accepted without a reason": ({"handoff.accepted_by": "Ann"}, "handoff.reason", None, "given together", "reason="),
    "personal data online": (
        {"privacy.samples": "full", "tracking.wandb": "online"}, "privacy.samples", "full", "personal data",
        "tracking=offline",
    ),
    "work inside the documents": (
        {"work": "data/maintenance/out"}, "work", "data/maintenance/out", "read as documents", "work=work/maintenance",
    ),
    "work that is a file": ({"work": "pyproject.toml"}, "work", "pyproject.toml", "is a file", "work=work/"),
}  # fmt: skip


TALK = {"tasks.place.prompt": None, "tasks.place.answer": None, "tasks.place.messages": "text"}
THINKING = ("model=tiny_qwen3", "machine=cpu")


def test_a_task_of_whole_conversations_takes_everything_from_them():
    assert problems(TALK) == []
    problem = only({**TALK, "tasks.place.answer": "{text}"})
    assert problem.path == "tasks.place.answer"
    assert problem.rule == "comes from the conversations of tasks.place.messages"


def test_a_mix_needs_tasks_of_both_modes():
    share = {"prepare.think_share": 0.75}
    assert problems({**share, "tasks.place.reasoning": "{text}"}, THINKING) == []
    assert problems({**share, **TALK}, THINKING) == []
    assert "needs trained tasks of both modes" in only(share, THINKING).rule


def test_a_model_that_always_thinks_is_not_trained_on_plain_answers():
    always = {"model.modes": ["think"], "model.default_mode": "think"}
    found = problems(always, THINKING)
    assert [problem.path for problem in found] == ["tasks.fields.reasoning", "tasks.place.reasoning"]
    reasoned = {"tasks.fields.reasoning": "{text}", "tasks.place.reasoning": "{text}"}
    assert problems({**always, **reasoned}, THINKING) == []


@pytest.mark.parametrize("case", CASES)
def test_a_broken_rule_is_named_with_path_value_rule_and_fix(case, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    changes, path, value, rule, fix = CASES[case]
    problem = only(changes)
    assert (problem.path, problem.value) == (path, value)
    assert rule in problem.rule
    assert fix in problem.fix


def test_an_absolute_glob_finds_what_it_names(tmp_path):
    (tmp_path / "orders.csv").write_text("text\nx\n")
    assert problems({"sources.work_orders.path": f"{tmp_path}/*.csv"}) == []
    assert only({"sources.work_orders.path": f"{tmp_path}/*.tsv"}).path == "sources.work_orders.path"


def test_a_batch_that_does_not_divide_names_the_two_nearest_that_do():
    problem = only({"sft.batch_size": 60, "machine.per_device_batch_size": 2}, LARGE)
    assert str(problem) == (
        "sft.batch_size=60: does not divide over 8 GPUs x per_device 2 (=16): "
        "use 48 or 64, or change machine.per_device_batch_size"
    )


def test_a_stage_that_does_not_run_is_not_checked():
    assert problems({"stages": ["sft"], "dpo.batch_size": 7, "dpo.trl.no_such_key": 1}) == []


def test_wandb_mode_of_the_environment_counts_for_privacy():
    assert only({"privacy.samples": "full"}, environment={"WANDB_MODE": "online"}).path == "privacy.samples"


def test_missing_and_empty_document_folders_are_told_apart(tmp_path):
    assert "is not there" in only({"data_root": str(tmp_path / "no")}).rule
    found = problems({"data_root": str(tmp_path)})
    assert "is empty" in {problem.path: problem for problem in found}["data_root"].rule


def test_a_work_folder_that_cannot_be_written_is_refused():
    problem = only({"work": "/proc/finetune"}, here=CPU)
    assert problem.path == "work"
    assert "cannot be written" in problem.rule


def test_checking_leaves_nothing_behind(tmp_path):
    assert problems({"work": str(tmp_path / "work")}, here=CPU) == []
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_a_config_come_at_once():
    found = problems(
        {
            "stages": ["dpo", "sft"],
            "tasks.fields.source": "work_order",
            "sft.trl.learnin_rate": 1.0,
            "method.lora.rank": 8,
            "dpo.batch_size": 7,
            "machine.per_device_batch_size": 2,
            "handoff.reason": "because",
        }
    )
    paths = [problem.path for problem in found]
    assert paths == [
        "stages",
        "tasks.fields.source",
        "sft.trl.learnin_rate",
        "method.lora.rank",
        "dpo.batch_size",
        "handoff.accepted_by",
    ]
    message = RecipeError(found).render()
    assert message.startswith("6 problems:\n")
    assert "did you mean learning_rate?" in message
