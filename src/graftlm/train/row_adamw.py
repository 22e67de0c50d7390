"""AdamW that moves of a table only the rows a batch has read (lazy Adam), and everything else as ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graftlm.nn.token_table import BY_ROW


class RowAdamW(torch.optim.AdamW):
    """AdamW; a parameter marked `BY_ROW` is moved row by row, where its gradient is not zero.

    A row counts its own steps, so that one which is rarely read is not held back by the bias correction of all others;
    moments and weight decay of a row that is not read stay as they are.

    Shapes:
        state of a marked parameter (R, W): step (R,) float32; exp_avg, exp_avg_sq (R, W)
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. A closure is refused: gradients of tables are set aside while the others are moved."""
        assert closure is None
        aside: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if getattr(parameter, BY_ROW, False) and parameter.grad is not None:
                    self._move_rows(parameter, parameter.grad, group)
                    aside.append((parameter, parameter.grad))
                    parameter.grad = None
        super().step()
        for parameter, grad in aside:
            parameter.grad = grad
        return None

    def _move_rows(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        rows = grad.any(dim=1).nonzero()[:, 0]  # (T,)
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(len(parameter), dtype=torch.float32, device=parameter.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        if not len(rows):
            return
        first, second = group["betas"]
        read = grad[rows]  # (T, W)
        state["step"][rows] += 1
        count = state["step"][rows, None]  # (T, 1)
        mean = state["exp_avg"][rows].lerp_(read, 1 - first)
        square = state["exp_avg_sq"][rows].mul_(second).addcmul_(read, read, value=1 - second)
        state["exp_avg"][rows], state["exp_avg_sq"][rows] = mean, square
        spread = (square / (1 - second**count)).sqrt_().add_(group["eps"])
        moved = parameter[rows] * (1 - group["lr"] * group["weight_decay"])
        parameter[rows] = moved - group["lr"] * (mean / (1 - first**count)) / spread
