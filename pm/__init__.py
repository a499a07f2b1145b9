"""A multilingual preference model: which of two responses to a prompt is better, and how surely."""

from pm.predict import PreferenceModel

__all__ = ["PreferenceModel"]
