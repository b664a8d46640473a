"""A first recipe for a folder of documents: what is in it, and the YAML that `finetune init` writes."""
