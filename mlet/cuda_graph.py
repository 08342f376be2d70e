"""Forward and backward of a training step as one CUDA graph.

A CTR model's step is a hundred small kernels: at batch 2048 the GPU waits for the processor to launch them. A graph
holds them once and is launched whole. What changes from step to step in Python (rates, an optimizer's step count) is no
part of it: the optimizer steps as ever, on gradients that each replay writes anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WARM_UP_STEPS = 3  # libraries choose their kernels and workspaces in the first ones, which a capture must not see


class CapturedBackward:
    """Calls a function that computes a loss and its gradients; from the fourth call on, by a CUDA graph.

    The function's tensors must have one shape, must not be read by the processor in it, and may not depend on
    Python values that change between calls. The first calls run it as it is; they are ordinary training steps.

    Args:
        loss_and_backward: tensors on the device -> loss, after gradients were left in the parameters' `grad`.
        parameters: whose `grad` it fills. It must be None when it is called, as after `zero_grad()`.

    Raises:
        ValueError: the function cannot be captured.
    """

    def __init__(self, loss_and_backward: Callable[..., Tensor], parameters: Iterable[nn.Parameter]) -> None:
        self.loss_and_backward, self.parameters = loss_and_backward, list(parameters)
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The loss of the inputs, all on the device; it holds until the next call."""
        self.calls += 1
        if self.calls <= WARM_UP_STEPS:
            return self.loss_and_backward(*inputs)
        if self.graph is None:
            self._capture(inputs)
        else:
            torch._foreach_copy_(self._inputs, list(inputs))
        self.graph.replay()
        for parameter, grad in self._grads:
            parameter.grad = grad
        return self._loss

    def _capture(self, inputs: tuple[Tensor, ...]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]  # they stay where the graph reads them
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._loss = self.loss_and_backward(*self._inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise ValueError(f"the step cannot be captured in a CUDA graph ({reason}): --cuda-graph=off") from error
        self.graph = graph
        self._grads = [(p, p.grad) for p in self.parameters if p.grad is not None]
