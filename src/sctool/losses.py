"""Loss functions and their building blocks, as pure torch functions.

Each is tested against a literal implementation of the paper's equation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sharpen(p: Tensor, temperature: float = 0.5) -> Tensor:
    """Sharpen pseudo-labels: ``p ** (1 / T)``, renormalised (scNym, section 2, with T = 1/2).

    Parameters
    ----------
    p
        Probabilities, (n_cells, n_types).
    """
    q = p.pow(1 / temperature)
    return q / q.sum(dim=1, keepdim=True)


def mixup(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mix each cell and its label with those of a random partner (scNym, section 2).

    Weights are drawn per cell from Beta(alpha, alpha). The larger weight goes to the cell itself,
    so that row ``i`` of the output still represents cell ``i``.

    Parameters
    ----------
    x
        (n_cells, n_genes).
    y
        Probabilities, (n_cells, n_types).
    """
    a = torch.full((len(x), 1), alpha)
    lam = torch.distributions.Beta(a, a).sample().to(x.device)
    lam = torch.maximum(lam, 1 - lam)
    partner = torch.randperm(len(x), device=x.device)
    return torch.lerp(x[partner], x, lam), torch.lerp(y[partner], y, lam)


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over cells of ``H(target, softmax(logits))``; 0 without cells.

    Both arguments have shape (n_cells, n_types).
    """
    loss = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    return loss.mean() if len(loss) else logits.sum() * 0


def squared_error(logits: Tensor, target: Tensor, n: int | None = None) -> Tensor:
    """Mean over cells of ``||target - softmax(logits)||^2`` (scNym's L_SSL).

    If cells were left out, ``n`` is the number to divide by.
    """
    loss = (target - logits.softmax(dim=1)).pow(2).sum(dim=1)
    return loss.sum() / max(len(loss) if n is None else n, 1)


def sigmoid_ramp(step: float, length: float) -> float:
    """Ramp a weight from about 0 to 1 over ``length``: ``exp(-5 (1 - step / length)^2)``.

    scNym only states "a sigmoid schedule"; this one is common in consistency training.
    """
    if length <= 0:
        return 1.0
    t = min(max(step / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


# -- scDET ---------------------------------------------------------------------------------------


def _contrast(v: Tensor, u: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Weighted cross entropy of ``v_i`` with the softmax over all ``u_j``, ``j != i``; mean over i.

    Anchors without positive weights, such as the only cell of a type, are left out.
    """
    self_pair = torch.eye(len(v), dtype=torch.bool, device=v.device)
    similarity = (v @ u.T / temperature).masked_fill(self_pair, -torch.inf)
    # Self-pairs have no weight; 0 instead of -inf avoids NaN.
    log_share = similarity.log_softmax(dim=1).masked_fill(self_pair, 0.0)
    weight = weight.masked_fill(self_pair, 0.0)
    total = weight.sum(dim=1)
    has_positives = total > 0
    if not has_positives.any():
        return v.sum() * 0
    loss = -(weight * log_share).sum(dim=1)[has_positives] / total[has_positives]
    return loss.mean()


def contrastive(v: Tensor, positive: Tensor, temperature: float) -> Tensor:
    """Contrastive loss with given positive pairs (scDET, eq. 1).

    Parameters
    ----------
    v
        Features of unit length, (n, n_features), with both views of the cells concatenated.
    positive
        Positive pairs, (n, n) bool: the two views of each cell for the unsupervised loss, all views
        of cells of the same type for the supervised loss. The diagonal is ignored.
    temperature
        Divides the inner products.
    """
    return _contrast(v, v, positive.to(v.dtype), temperature)


def soft_contrastive(v: Tensor, v_other: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Contrastive loss with pairs weighted by their probability of the same type (scDET, eq. 9).

    Parameters
    ----------
    v, v_other
        Features of unit length for two views of the same cells, (n_cells, n_features).
    p
        Rectified probabilities, (n_cells, n_types); the weight of a pair is ``p_i . p_j``.
    temperature
        Divides the inner products.
    """
    return _contrast(v, v_other, p @ p.T, temperature)


#: The two readings of scDET's eq. 2.
SIMILARITIES = ("cosine", "inner")


def prototype_similarity(h: Tensor, prototypes: Tensor, similarity: str) -> Tensor:
    """Similarity of hidden features and prototypes, (n_cells, n_types) (scDET, eq. 2).

    Divide by a temperature to obtain logits.

    Parameters
    ----------
    h
        Hidden features, (n_cells, n_features).
    prototypes
        (n_types, n_features).
    similarity
        "cosine", in [-1, 1], as the paper's text says; or "inner", the inner product that its
        equation prints.
    """
    if similarity == "cosine":
        h, prototypes = (torch.nn.functional.normalize(v, dim=1) for v in (h, prototypes))
    return h @ prototypes.T


def two_views_cross_entropy(logits: Tensor, logits_other: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of both views with the same target, averaged (scDET, eq. 3)."""
    return (soft_cross_entropy(logits, target) + soft_cross_entropy(logits_other, target)) / 2


def swapped_cross_entropy(
    similarity: Tensor, similarity_other: Tensor, tau: float, sharp: float
) -> Tensor:
    """Cross entropy of each view with the other view's sharpened prediction (scDET, eq. 4).

    No gradient flows through the sharpened predictions. The paper divides the sum over target
    cells by the number of reference cells; this is the mean over target cells.

    Parameters
    ----------
    similarity, similarity_other
        Output of :func:`prototype_similarity` for the two views.
    tau, sharp
        Temperatures of the predictions and of the targets.
    """
    q, q_other = ((s.detach() / sharp).softmax(dim=1) for s in (similarity, similarity_other))
    return (
        soft_cross_entropy(similarity / tau, q_other)
        + soft_cross_entropy(similarity_other / tau, q)
    ) / 2


def distribution_divergence(mean: Tensor, pi: Tensor, rho: float) -> Tensor:
    """``KL(mean || pi^rho)`` with normalised ``pi^rho``: one of the two terms of scDET's eq. 5.

    Parameters
    ----------
    mean
        Mean prediction, (n_types,).
    pi
        Estimated proportion of each type, (n_types,), all positive.
    rho
        1 for the estimate itself, 0 for a uniform distribution.
    """
    target = (rho * pi.log()).log_softmax(dim=0)
    # Types without cells have a mean of 0, whose infinite logarithm would give NaN gradients.
    log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return (mean * (log_mean - target)).sum()


def rectify(logits: Tensor, pi: Tensor, gamma: float) -> Tensor:
    """Correct probabilities for class imbalance: logits minus ``gamma log pi`` (scDET, eq. 7)."""
    return (logits - gamma * pi.log()).softmax(dim=1)


def sampling_rate(pi: Tensor, in_batch: Tensor, alpha: float, beta: float) -> Tensor:
    """Fraction of pseudo-labels to use for each predicted type, (n_types,) (scDET, eq. 8).

    Parameters
    ----------
    pi
        Estimated proportion of each type, (n_types,), all positive.
    in_batch
        Types among the minibatch's labels, (n_types,) bool; these use ``alpha``, others ``beta``.
    alpha, beta
        0 uses all pseudo-labels, 1 the same number for every type.
    """
    exponent = torch.where(in_batch, alpha, beta)
    return (pi / pi.min()).pow(-exponent)


def most_confident(p: Tensor, rate: Tensor) -> Tensor:
    """Select the most confident cells of each predicted type.

    Parameters
    ----------
    p
        Rectified probabilities, (n_cells, n_types).
    rate
        Fraction of cells to select per type, (n_types,); rounded up to whole cells.

    Returns
    -------
    Sorted positions of the selected cells.
    """
    confidence, code = p.max(dim=1)
    order = torch.argsort(confidence, descending=True, stable=True)
    order = order[torch.argsort(code[order], stable=True)]  # by type, most confident first
    n = torch.bincount(code, minlength=p.shape[1])
    rank = torch.arange(len(p), device=p.device) - (n.cumsum(0) - n)[code[order]]
    # (the factor keeps float32 rounding from adding a cell)
    keep = torch.ceil(rate * n * (1 - 1e-5))[code[order]]
    return order[rank < keep].sort().values


# -- Contrastive components ----------------------------------------------------------------------


def info_nce(z: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss on a sphere (contrastive components, eq. 5).

    Averages over the anchors that have a positive; the equation sums over all anchors.

    Parameters
    ----------
    z
        Embedding of unit length, (n_cells, n_latent).
    label
        Type codes, (n_cells,).
    temperature
        Divides the inner products.
    """
    return contrastive(z, label[:, None] == label, temperature)


def _off_diagonal(n: int, device: torch.device) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool, device=device)


def circles_info_nce(z: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Eq. 5 on every circle, with the same positives on each (contrastive components, eq. 6).

    Implemented as printed: no term links circle ``k`` to type ``k``, so the loss is invariant to
    the order of the circles. Averages over circles and over the anchors that have a positive; the
    equation sums over all. Computes (n_types, n_cells, n_cells) similarities.

    Parameters
    ----------
    z
        Position on each type's circle, (n_cells, n_types, 2), of unit length.
    label
        Type codes, (n_cells,).
    temperature
        Divides the inner products.
    """
    pair = _off_diagonal(len(z), z.device)
    positive = (label[:, None] == label) & pair
    circles = z.transpose(0, 1)
    similarity = circles @ circles.mT / temperature
    total = similarity.masked_fill(~pair, -torch.inf).logsumexp(dim=2)
    n = positive.sum(dim=1)
    if not n.any():
        return z.sum() * 0
    # (masked before the sum: the total of a single cell is -inf)
    share = (similarity - total[..., None]).masked_fill(~positive, 0.0).sum(dim=2)
    return -(share[:, n > 0] / n[n > 0]).mean()


def own_circle_info_nce(z: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Separate type ``k`` from all others on circle ``k``: our interpretation of eq. 6.

    On circle ``k`` cells of type ``k`` are positives of each other, and so are all other cells.
    Type ``k`` and the other cells have equal total weight, as anchors and in the denominator, so
    that rare types also shape their circle. Circles whose type is absent from the minibatch and
    anchors without a positive are left out.

    Parameters
    ----------
    z
        Position on each type's circle, (n_cells, n_types, 2), of unit length.
    label
        Type codes, (n_cells,).
    temperature
        Divides the inner products.
    """
    pair = _off_diagonal(len(z), z.device)
    own = label == torch.arange(z.shape[1], device=z.device)[:, None]  # (n_types, n_cells)
    positive = (own[:, :, None] == own[:, None, :]) & pair
    n_own = own.sum(dim=1, keepdim=True)
    n_side = torch.where(own, n_own, len(z) - n_own).to(z.dtype)
    circles = z.transpose(0, 1)
    similarity = circles @ circles.mT / temperature
    weighted = (similarity - n_side.log()[:, None, :]).masked_fill(~pair, -torch.inf)
    total = weighted.logsumexp(dim=2)
    n = positive.sum(dim=2)
    share = (similarity - total[..., None]).masked_fill(~positive, 0.0).sum(dim=2)
    weight = ((n > 0) & (n_own > 0)) / n_side
    if not weight.any():
        return z.sum() * 0
    return -(weight * share / n.clamp_min(1)).sum() / weight.sum()


# -- CICL ----------------------------------------------------------------------------------------


def student_t(h: Tensor, centroids: Tensor) -> Tensor:
    """Soft cluster assignment by Student's t kernel with one degree of freedom (CICL, eq. 8).

    Parameters
    ----------
    h
        Embedding, (n_cells, n_latent).
    centroids
        (n_clusters, n_latent).

    Returns
    -------
    Assignment, (n_cells, n_clusters); rows sum to 1.
    """
    q = 1 / (1 + torch.cdist(h, centroids).square())
    return q / q.sum(dim=1, keepdim=True)


def instance_contrast(z: Tensor, z_other: Tensor, temperature: float) -> Tensor:
    """Contrastive loss with the two views of each cell as positives (CICL, eqs. 12-14).

    The similarity is the cosine, as in the paper's text; the norm around the numerator of eq. 13 is
    a misprint. The positive pair is included in the denominator.

    Parameters
    ----------
    z, z_other
        Projections of the two views, (n_cells, n_features), not necessarily normalised.
    temperature
        Divides the similarities.
    """
    n = len(z)
    v = torch.nn.functional.normalize(torch.cat([z, z_other]), dim=1)
    views = torch.eye(n, dtype=torch.bool, device=z.device).repeat(2, 2)
    return contrastive(v, views, temperature)


def cluster_contrast(z: Tensor, z_other: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Contrastive loss with all views of a cluster's cells as positives (CICL, eqs. 15-16).

    For each view, the negative log ratio of its summed (exponentiated) similarities to the other
    views of its cluster and to the views of other clusters. Unlike in eq. 12, positives are not in
    the denominator, so that the loss can be negative: its lower bound is ``-2 / temperature`` minus
    the log ratio of the two counts. It is invariant to the numbering of the clusters, and 0 if all
    cells are in one cluster.

    Parameters
    ----------
    z, z_other
        Projections of the two views, (n_cells, n_features), not necessarily normalised.
    labels
        Cluster of each cell, (n_cells,), used for both views.
    temperature
        Divides the similarities.
    """
    v = torch.nn.functional.normalize(torch.cat([z, z_other]), dim=1)
    labels = labels.repeat(2)
    same = labels[:, None] == labels
    if bool(same.all()):
        return v.sum() * 0
    itself = torch.eye(len(v), dtype=torch.bool, device=v.device)
    similarity = v @ v.T / temperature
    near = similarity.masked_fill(~same | itself, -torch.inf).logsumexp(dim=1)
    far = similarity.masked_fill(same, -torch.inf).logsumexp(dim=1)
    return (far - near).mean()
