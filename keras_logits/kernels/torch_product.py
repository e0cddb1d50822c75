"""torch: the product of features and kernel, in float32 at least."""

from typing import Any

import torch

from keras_logits._typing import Tensor


def matmul(features: Tensor, kernel: Tensor) -> Tensor:
    """A product that is accumulated, and returned, in at least float32."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        return torch.matmul(features.to(dtype), kernel.to(dtype))


def product(features: Tensor, kernel: Tensor) -> Tensor:
    """`matmul`, whose derivative by the kernel reads NaN and infinite features as 0."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        features, kernel = features.to(dtype), kernel.to(dtype)
        if not torch.compiler.is_compiling():  # which takes no rule for forward mode
            by_rule: Tensor = _Product.apply(features, kernel)
            return by_rule
        known = _finite(features)
        rest = (features - known).sum(-1, keepdim=True)
        return known @ kernel + rest.detach()


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, kernel: Tensor) -> Tensor:
        return torch.matmul(features, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None]:
        features, kernel = ctx.saved_tensors
        by_features = by_kernel = None
        if ctx.needs_input_grad[0]:
            by_features = upstream @ kernel.T
        if ctx.needs_input_grad[1]:
            known = _finite(features).reshape(-1, kernel.shape[0])
            by_kernel = known.T @ upstream.reshape(-1, kernel.shape[1])
        return by_features, by_kernel

    @staticmethod
    def jvp(ctx: Any, d_features: Tensor | None, d_kernel: Tensor | None) -> Tensor:
        features, kernel = ctx.saved_tensors
        terms = [] if d_features is None else [d_features @ kernel]
        if d_kernel is not None:
            terms.append(_finite(features) @ d_kernel)
        return sum(terms[1:], terms[0])


def _finite(features: Tensor) -> Tensor:
    return torch.nan_to_num(features, 0.0, 0.0, 0.0)
