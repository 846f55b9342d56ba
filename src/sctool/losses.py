"""Losses and the operations inside them: pure torch functions of tensors, no AnnData.

Each is tested against a slow transcription of its paper's equation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sharpen(p: Tensor, temperature: float = 0.5) -> Tensor:
    """Less entropic pseudo-labels: ``p ** (1 / T)``, renormalised (scNym section 2 has T = 1/2).

    Parameters
    ----------
    p
        Probabilities, (n_cells, n_types).
    """
    q = p.pow(1 / temperature)
    return q / q.sum(dim=1, keepdim=True)


def mixup(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Each cell and its label mixed with those of a random partner, itself remaining dominant.

    Weights are drawn per cell from Beta(alpha, alpha), and the larger of the pair goes to the cell
    itself, so that row ``i`` of the output still stands for cell ``i`` (scNym, section 2).

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
    """Mean over cells of ``H(target, softmax(logits))``, both (n_cells, n_types); 0 of no cell."""
    loss = -(target * logits.log_softmax(dim=1)).sum(dim=1)
    return loss.mean() if len(loss) else logits.sum() * 0


def squared_error(logits: Tensor, target: Tensor, n: int | None = None) -> Tensor:
    """Mean over cells of ``||target - softmax(logits)||^2`` (scNym's L_SSL).

    ``n`` divides instead of the number of cells, where cells have been left out.
    """
    loss = (target - logits.softmax(dim=1)).pow(2).sum(dim=1)
    return loss.sum() / max(len(loss) if n is None else n, 1)


def sigmoid_ramp(step: float, length: float) -> float:
    """Weight that rises from about 0 to 1 over ``length``: ``exp(-5 (1 - step / length)^2)``.

    scNym states "a sigmoid schedule"; this is the usual one of consistency training.
    """
    if length <= 0:
        return 1.0
    t = min(max(step / length, 0.0), 1.0)
    return math.exp(-5.0 * (1.0 - t) ** 2)


# -- scDET ---------------------------------------------------------------------------------------


def _contrast(v: Tensor, u: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Mean over anchors ``v_i`` of their weighted log shares among all ``u_j``, ``j != i``.

    Anchors without any weight, such as the only cell of a type, contribute nothing.
    """
    self_pair = torch.eye(len(v), dtype=torch.bool, device=v.device)
    similarity = (v @ u.T / temperature).masked_fill(self_pair, -torch.inf)
    # The pair with itself has no share, and no weight either: 0 in place of -inf.
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
        Features of unit length, (n, n_features): both views of the cells, one below the other.
    positive
        (n, n) bool: pairs to bring together. For the unsupervised loss the two views of a cell,
        for the supervised one all views of cells of one type. The diagonal is ignored.
    temperature
        Divides the inner products.
    """
    return _contrast(v, v, positive.to(v.dtype), temperature)


def soft_contrastive(v: Tensor, v_other: Tensor, p: Tensor, temperature: float) -> Tensor:
    """Contrastive loss with pairs weighted by their chance of being of one type (scDET, eq. 9).

    Parameters
    ----------
    v, v_other
        Unit features of the two views of the same cells, (n_cells, n_features).
    p
        Rectified probabilities, (n_cells, n_types); the weight of a pair is ``p_i . p_j``.
    temperature
        Divides the inner products.
    """
    return _contrast(v, v_other, p @ p.T, temperature)


def prototype_logits(h: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarity of hidden features and prototypes, (n_cells, n_types) (scDET, eq. 2).

    Divided by a temperature they are the logits of the assignment.
    """
    return (
        torch.nn.functional.normalize(h, dim=1) @ torch.nn.functional.normalize(prototypes, dim=1).T
    )


def two_views_cross_entropy(logits: Tensor, logits_other: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of both views with the same target, averaged (scDET, eq. 3)."""
    return (soft_cross_entropy(logits, target) + soft_cross_entropy(logits_other, target)) / 2


def swapped_cross_entropy(cosine: Tensor, cosine_other: Tensor, tau: float, sharp: float) -> Tensor:
    """Cross entropy of each view with the other's sharper prediction (scDET, eq. 4).

    No gradient flows through the sharper predictions. The paper divides by the number of
    reference cells; the sum is over target cells, and so is our mean.

    Parameters
    ----------
    cosine, cosine_other
        From :func:`prototype_logits`, of the two views.
    tau, sharp
        Temperatures of the predictions and of the targets.
    """
    q, q_other = ((c.detach() / sharp).softmax(dim=1) for c in (cosine, cosine_other))
    return (
        soft_cross_entropy(cosine / tau, q_other) + soft_cross_entropy(cosine_other / tau, q)
    ) / 2


def distribution_divergence(mean: Tensor, pi: Tensor, rho: float) -> Tensor:
    """``KL(mean || pi^rho)``, the latter normalised: one of the two terms of scDET's eq. 5.

    Parameters
    ----------
    mean
        Mean prediction, (n_types,).
    pi
        Estimated share of each type, (n_types,), all above 0.
    rho
        1 for the estimate itself, 0 for a uniform distribution.
    """
    target = (rho * pi.log()).log_softmax(dim=0)
    # A type that no cell is given has a share of 0, whose logarithm must not reach the gradient.
    log_mean = mean.clamp_min(torch.finfo(mean.dtype).tiny).log()
    return (mean * (log_mean - target)).sum()


def rectify(logits: Tensor, pi: Tensor, gamma: float) -> Tensor:
    """Probabilities rid of the long tail's bias: logits less ``gamma log pi`` (scDET, eq. 7)."""
    return (logits - gamma * pi.log()).softmax(dim=1)


def sampling_rate(pi: Tensor, in_batch: Tensor, alpha: float, beta: float) -> Tensor:
    """Share of each predicted type's pseudo-labels to use, (n_types,) (scDET, eq. 8).

    Parameters
    ----------
    pi
        Estimated share of each type, all above 0.
    in_batch
        Bool, (n_types,): types among the minibatch's labels, which take ``alpha``.
    alpha, beta
        0 uses all, 1 as many of every type.
    """
    exponent = torch.where(in_batch, alpha, beta)
    return (pi / pi.min()).pow(-exponent)


def most_confident(p: Tensor, rate: Tensor) -> Tensor:
    """Of each predicted type, the given share of its cells with the highest probabilities.

    Parameters
    ----------
    p
        Rectified probabilities, (n_cells, n_types).
    rate
        Share of each type, rounded up to whole cells, (n_types,).

    Returns
    -------
    Positions, sorted.
    """
    confidence, code = p.max(dim=1)
    order = torch.argsort(confidence, descending=True, stable=True)
    order = order[torch.argsort(code[order], stable=True)]  # by type, the surest first
    n = torch.bincount(code, minlength=p.shape[1])
    rank = torch.arange(len(p), device=p.device) - (n.cumsum(0) - n)[code[order]]
    # (less what float32 cannot tell from a whole number)
    keep = torch.ceil(rate * n * (1 - 1e-5))[code[order]]
    return order[rank < keep].sort().values


# -- Contrastive components ----------------------------------------------------------------------


def info_nce(z: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Cells of one type together, all others apart, on a sphere (contrastive components, eq. 5).

    The mean over the anchors that have a positive, where the equation has the sum over all.

    Parameters
    ----------
    z
        Embedding of unit length, (n_cells, n_latent).
    label
        Code of each cell's type, (n_cells,).
    temperature
        Divides the inner products.
    """
    return contrastive(z, label[:, None] == label, temperature)


def _off_diagonal(n: int, device: torch.device) -> Tensor:
    return ~torch.eye(n, dtype=torch.bool, device=device)


def circles_info_nce(z: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Eq. 5 in each type's circle, with the same positives in all (contrastive components, eq. 6).

    As printed: since no term ties circle ``k`` to type ``k``, the loss is the same for circles in
    any order. The mean over circles and over the anchors that have a positive, where the equation
    has the sum over all. Time and memory are those of (n_types, n_cells, n_cells) similarities.

    Parameters
    ----------
    z
        A point on each type's circle, (n_cells, n_types, 2), all of unit length.
    label
        Code of each cell's type, (n_cells,).
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
    # (masked before the sum: where a cell is alone the total is -inf)
    share = (similarity - total[..., None]).masked_fill(~positive, 0.0).sum(dim=2)
    return -(share[:, n > 0] / n[n > 0]).mean()


def own_circle_info_nce(z: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Type ``k`` apart from all others in circle ``k``: eq. 6 in our reading of its aim.

    In circle ``k`` the positives of an anchor are the cells that agree with it on "is of type k".
    A type and the rest weigh the same, as anchors and in the denominator, so that a circle is its
    type's however rare that is. Circles whose type the minibatch lacks contribute nothing, nor do
    anchors without a positive.

    Parameters
    ----------
    z
        A point on each type's circle, (n_cells, n_types, 2), all of unit length.
    label
        Code of each cell's type, (n_cells,).
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
    """Soft assignment to clusters by Student's t with one degree of freedom (CICL, eq. 8).

    Parameters
    ----------
    h
        Embedding, (n_cells, n_latent).
    centroids
        (n_clusters, n_latent).

    Returns
    -------
    (n_cells, n_clusters), rows sum to 1.
    """
    q = 1 / (1 + torch.cdist(h, centroids).square())
    return q / q.sum(dim=1, keepdim=True)


def instance_contrast(z: Tensor, z_other: Tensor, temperature: float) -> Tensor:
    """Contrastive loss that brings the two views of each cell together (CICL, eqs. 12-14).

    Eq. 13 is cosine similarity (the norm around its numerator is a misprint: the text calls it
    so), and the pair itself stays in the denominator.

    Parameters
    ----------
    z, z_other
        Projections of the two views, (n_cells, n_features), of any length.
    temperature
        Divides the similarities.
    """
    n = len(z)
    v = torch.nn.functional.normalize(torch.cat([z, z_other]), dim=1)
    views = torch.eye(n, dtype=torch.bool, device=z.device).repeat(2, 2)
    return contrastive(v, views, temperature)


def cluster_contrast(z: Tensor, z_other: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Contrastive loss that brings all views of a cluster's cells together (CICL, eqs. 15-16).

    For each view, minus the logarithm of the summed similarities to its cluster's other views over
    those to the views of other clusters; unlike in eq. 12 the former are not in the denominator, so
    that it has no lower bound but ``-2 / temperature`` less the log ratio of the two counts. It
    compares no identities: any renaming of the clusters gives the same. If all cells are of one
    cluster there is nothing to contrast, and it is 0.

    Parameters
    ----------
    z, z_other
        Projections of the two views, (n_cells, n_features), of any length.
    labels
        Cluster of each cell, (n_cells,); both views have it.
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
