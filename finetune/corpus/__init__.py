"""Documents to prepared, tokenised records. Nothing here imports torch."""
