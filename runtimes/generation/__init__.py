"""Text from a language model, token by token: greedy, sampled or by beam search, in numpy around an engine's steps."""

from edgeattn.runtimes.generation.loop import generate, generates
from edgeattn.runtimes.generation.options import GenerateOptions

__all__ = ["GenerateOptions", "generate", "generates", "writers"]
