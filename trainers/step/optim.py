"""AdamW with global-norm clipping, without a host synchronisation and without a second pass over the gradients.

Decides which parameters decay, and the learning rate of every step.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from trainers.contract.spec import Optimizer, Schedule
from trainers.model.ranks import total_norm


def learning_rates(schedule: Schedule) -> np.ndarray:
    """The learning rate of every step, float32 `[total_steps]`: linear warm-up, constant, linear decay towards zero.

    Warm-up reaches the peak at step `warmup_steps - 1`; the decay's first step still has the peak, its last has
    `1/decay_steps` of it. One table, so that every executor and every resumed run multiplies by the same numbers.
    """
    step = np.arange(schedule.total_steps, dtype=np.float64)
    factor = np.ones_like(step)
    if schedule.warmup_steps:
        factor = np.minimum(factor, (step + 1) / schedule.warmup_steps)
    if schedule.decay_steps:
        factor = np.minimum(factor, (schedule.total_steps - step) / schedule.decay_steps)
    return (schedule.learning_rate * factor).astype(np.float32)


def build_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.AdamW:
    """Fused AdamW; matrices and embeddings decay, gains do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    # A rate of zero shows itself if a step ever forgets to set its own.
    return torch.optim.AdamW(groups, lr=0.0, betas=(settings.beta1, settings.beta2), eps=settings.epsilon, fused=True)


def allocate(optimizer: torch.optim.AdamW) -> list[Tensor]:
    """Zero gradients, and moments where there are none yet, in memory that stays in its place: for every parameter that has
    a gradient now. Returns the gradients."""
    gradients = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            # A graph records addresses: what it writes to has to be there before, and to stay.
            parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
            moments = optimizer.state[parameter]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                moments["exp_avg"] = torch.zeros_like(parameter)
                moments["exp_avg_sq"] = torch.zeros_like(parameter)
    return gradients


def clipped_step(optimizer: torch.optim.AdamW, clip_norm: float, learning_rate: float | Tensor) -> Tensor:
    """Clip to `clip_norm` and update; returns the gradient norm before clipping (float32 scalar).

    The clip factor and a skip on a non-finite norm are handed to the fused kernel as its gradient scale, so that weights,
    moments and step counters stay untouched by such a step. The gradients are consumed. A learning rate in a device scalar
    is read when the kernel runs, so that a replay of this update takes the value that is there then.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    # Over all groups at once: clipping decayed and undecayed parameters apart would turn the gradient.
    norm = total_norm(gradients)
    # The kernel divides by this while it updates, so that clipping is no pass over the gradients of its own.
    optimizer.grad_scale = torch.clamp((norm + 1e-6) / clip_norm, min=1.0)  # type: ignore[attr-defined]
    # At 1 the kernel leaves weights, moments and its step counts as they are; the host need not know.
    optimizer.found_inf = (~torch.isfinite(norm)).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.step()
    return norm
