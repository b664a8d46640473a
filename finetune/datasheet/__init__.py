"""The datasheet page of a prepared corpus: one self-contained file, in the look of the report."""
