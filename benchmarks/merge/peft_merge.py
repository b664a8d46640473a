"""What PEFT's own documentation does: load, merge_and_unload, save_pretrained. `peft_merge.py BASE ADAPTER OUT`."""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
