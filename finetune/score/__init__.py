"""Scoring: metrics, baselines, paired statistics, general perplexity, and the stage SCORE that joins them."""
