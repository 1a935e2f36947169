"""Leave-one-out statistics: at index 0 that of all prompts, then those without each prompt.

Functions of such statistics have jackknife intervals (`stats.jackknife`) without another run.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def versions_of_mean(values: Float[Tensor, " prompt *shape"]) -> Float[Tensor, " n *shape"]:
    """The mean over prompts, of all and without each."""
    values = values.double()
    n, total = len(values), values.sum(0, keepdim=True)
    return torch.cat([total / n, (total - values) / (n - 1)])


def versions_of_products(products: Float[Tensor, " prompt *shape"]) -> Float[Tensor, " n *shape"]:
    """The mean over pairs of different prompts, of all prompts and without each.

    Args:
        products: For each prompt p the product <x_p, sum of x_q over all q != p>.
    """
    products = products.double()
    n, total = len(products), products.sum(0, keepdim=True)
    return torch.cat([total / (n * (n - 1)), (total - 2 * products) / ((n - 1) * (n - 2))])
