"""The loop: a prompt, then a token after the other, until the text ends."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeattn.errors import InputError, UnsupportedError
from edgeattn.runtimes.generation.beams import search
from edgeattn.runtimes.generation.options import GenerateOptions
from edgeattn.runtimes.generation.plan import Plan, plan_of
from edgeattn.runtimes.generation.rules import Rules, probabilities
from edgeattn.runtimes.generation.writers import Model, Opening, Prompt, kind_of, opening
from edgeattn.spec import ModelSpec


def generates(spec: ModelSpec) -> bool:
    """Whether a model writes texts: it has the graphs that this takes."""
    return kind_of(spec) is not None


def generate(model: Model, prompt: Prompt, options: GenerateOptions | None = None) -> Iterator[int]:
    """Write a text; the tokens come one by one, from a beam search all at its end.

    Args:
        model: a session, or the float32 source; it may write any number of texts at once.
        prompt: token ids, or the inputs by name: of a causal model ``input_ids``, of an encoder-decoder what its
            encoder takes.
        options: how; None is all as the model's config says.

    Returns:
        the new tokens, without the one that ended the text. What is wrong with the prompt is told here, what is wrong
        while it is read with the first token.

    Raises:
        InputError: for a model that writes no text, a prompt that is not one of its, and a text that is longer than a
            cache (unless it may slide) or than the model has positions.
        UnsupportedError: while writing, if the engine fails, its logits hold NaN, or every token is forbidden.
    """
    plan = plan_of(options or GenerateOptions(), model.assets)
    opened = opening(model, prompt, plan)
    length = _length(opened, plan)
    return _searched(opened, plan, length) if plan.beams > 1 else _written(opened, plan, length)


def _length(opened: Opening, plan: Plan) -> int:
    """Tokens in all, the given ones included.

    Raises:
        InputError: as :func:`generate`.
    """
    given = len(opened.tokens)
    sliding = plan.slide or (plan.window is not None and plan.window <= opened.exact)  # the model's own window
    room = plan.positions if sliding else opened.exact
    room = min(room, plan.positions) if room is not None and plan.positions is not None else room
    most = None if room is None else room + 1  # the last token is written and never read
    if most is not None and given >= most:
        raise InputError(f"{given} tokens are given, and there is room for {room}: {_way_out(room, plan)}")
    if plan.max_new_tokens is None and plan.max_length is None:
        if most is None:
            raise InputError("the text has no end: give max_new_tokens")
        return most
    own = plan.max_length if plan.max_new_tokens is None else given + plan.max_new_tokens
    assert own is not None
    if own <= given:
        raise InputError(f"{given} tokens are given, and the model's max_length is {own}; give max_new_tokens")
    if most is not None and own > most:
        if plan.asked:
            raise InputError(
                f"{given} tokens are given and max_new_tokens is {plan.max_new_tokens}, and there is room for {room}: "
                f"take {most - given} at most, or {_way_out(room, plan)}"
            )
        return most
    return own


def _way_out(room: int | None, plan: Plan) -> str:
    if plan.positions == room:
        return "the model has positions for no more"
    return "let the oldest tokens fall out of the cache with slide=True"


def _written(opened: Opening, plan: Plan, length: int) -> Iterator[int]:
    """The best token each time, or one that is drawn."""
    rules, tokens = Rules(plan, len(opened.tokens), length), list(opened.tokens)
    drawing = np.random.default_rng(plan.seed)
    first = opened.open()
    writer, logits = first.writer, first.logits
    while True:
        scores = rules.apply(tokens, logits)
        best = int(scores.argmax())
        if scores[best] == -np.inf:
            raise UnsupportedError(f"after {len(tokens)} tokens every token is forbidden; suppress fewer")
        token = int(drawing.choice(len(scores), p=probabilities(plan, scores))) if plan.sample else best
        if token in plan.stop:
            return
        yield token
        tokens.append(token)
        if len(tokens) >= length:
            return
        logits = writer.read(token)


def _searched(opened: Opening, plan: Plan, length: int) -> Iterator[int]:
    rules, given = Rules(plan, len(opened.tokens), length), opened.tokens
    text = search(opened.open(), given, length, rules.apply, plan)[len(given) :]
    yield from text[:-1] if text[-1] in plan.stop else text
