"""From a folder of domain documents to a checkpoint that a serving team can trust."""

__version__ = "0.1.0"
