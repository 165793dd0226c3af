"""Torch-Pruning as its examples for transformers prune BERT and ViT: recipe "SETTING:RATIO", one of :data:`SETTINGS`.

Reads a Hugging Face text classifier, writes the tensors that are left as safetensors under their own names. Samples
hold the inputs and ``label``, int64 (1,), for the Taylor importance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch_pruning as tp  # type: ignore[import-not-found,unused-ignore]
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from benchmarks.peer_scripts.job import read_job

BATCH, BATCHES = 64, 10  # of prune_hf_vit.py: --train_batch_size, --taylor_batchs
LABEL = "label"
PARTS = ("query", "key", "value")


@dataclass(frozen=True)
class Setting:
    """One of its documented ways.

    Attributes:
        taylor: importance by gradients of the labels' loss; else by magnitude.
        bottleneck: the width of the residual stream stays, as with ``--bottleneck`` of its examples.
        isomorphic: ranks heads and neurons over all layers among their like (ECCV 2024, arXiv 2407.04616); else every
            layer loses the same share.
    """

    taylor: bool
    bottleneck: bool
    isomorphic: bool = False


SETTINGS: Mapping[str, Setting] = {
    "magnitude-uniform": Setting(False, False),  # prune_hf_bert.py as it stands
    "magnitude-bottleneck": Setting(False, True),
    "taylor-bottleneck": Setting(True, True),
    "taylor-isomorphic": Setting(True, True, True),
}


def attentions(model: torch.nn.Module) -> Iterator[Any]:
    """Blocks with layers for query, key and value of their own."""
    for module in model.modules():
        if all(isinstance(getattr(module, part, None), torch.nn.Linear) for part in PARTS):
            yield module


def trimmed(samples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """One batch, cut to its longest sample."""
    longest = max(int(sample["attention_mask"].sum()) for sample in samples)
    return {
        name: torch.from_numpy(np.concatenate([sample[name][:, :longest] for sample in samples]))
        for name in samples[0]
        if name != LABEL
    }


def accumulate(model: torch.nn.Module, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Gradients of the labels' cross entropy, batch after batch."""
    model.zero_grad()
    for start in range(0, min(len(samples), BATCH * BATCHES), BATCH):
        batch = samples[start : start + BATCH]
        labels = torch.from_numpy(np.concatenate([sample[LABEL] for sample in batch]))
        torch.nn.functional.cross_entropy(model(**trimmed(batch)).logits, labels).backward()  # type: ignore[no-untyped-call]


def pruned(model: Any, setting: Setting, ratio: float, samples: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Prune in place."""
    heads = {getattr(block, part): block.num_attention_heads for block in attentions(model) for part in PARTS}
    ignored = [model.classifier]
    if setting.bottleneck:
        ignored += [layer.attention.output.dense for layer in model.base_model.encoder.layer]
    taylor = tp.importance.GroupTaylorImportance()
    pruner = tp.pruner.BasePruner(
        model,
        trimmed(samples[:1]),
        importance=taylor if setting.taylor else tp.importance.MagnitudeImportance(p=2, group_reduction="mean"),
        global_pruning=setting.isomorphic,
        isomorphic=setting.isomorphic,
        iterative_steps=1,
        pruning_ratio=ratio,
        num_heads=heads,
        prune_head_dims=False,
        prune_num_heads=True,
        head_pruning_ratio=ratio,
        output_transform=lambda out: out.logits.sum(),
        ignored_layers=ignored,
    )
    if setting.taylor:
        accumulate(model, samples)
    for group in pruner.step(interactive=True):
        group.prune()
    for block in attentions(model):
        block.num_attention_heads = pruner.num_heads[block.query]
        block.attention_head_size = block.query.out_features // block.num_attention_heads
        block.all_head_size = block.query.out_features


def main() -> None:
    job = read_job("torch-pruning", "torch", "transformers")
    name, _, ratio = job.recipe.rpartition(":")
    model = AutoModelForSequenceClassification.from_pretrained(job.source).eval()
    pruned(model, SETTINGS[name], float(ratio), job.samples)
    with torch.no_grad():
        model(**trimmed(job.samples[:2]))  # it has to run
    save_file({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}, job.target)


if __name__ == "__main__":
    main()
