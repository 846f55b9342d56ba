"""Multinomial logistic regression: the closed-set floor that every other method has to beat."""

from __future__ import annotations

from typing import Any, ClassVar

from sctool.model._contrastive import ContrastiveClassifier, ContrastiveSettings


class LOGISTIC(ContrastiveClassifier):
    """Multinomial logistic regression on log1p CP10k; with a contrastive component if asked for.

    The optimum of a convex problem, so scikit-learn's L-BFGS finds it, on all labelled cells at
    once: the result depends on no seed and no number of epochs. Their selected genes are made dense
    for it up to 1 GiB (130,000 cells of 2,000 genes); more stay sparse.

    Parameters
    ----------
    adata
        Registered with :meth:`setup_anndata`.
    preset
        "default" alone; with a component, those of :class:`ContrastiveClassifier`.
    ignore_case
        Compare gene names without regard to case.
    **settings
        Changes to the preset, such as ``component="mls"``: see
        ``sctool.model._contrastive.ContrastiveSettings``.
    """

    PRESETS: ClassVar[dict[str, Any]] = {"default": ContrastiveSettings()}

    @classmethod
    def _resolve(cls, preset: str, changes: dict[str, Any]) -> Any:
        """The floor's settings; with a component, the contrastive classifier's."""
        if cls is LOGISTIC and changes.get("component"):
            return cls._of_its_backbone(ContrastiveClassifier._resolve(preset, changes))
        return super()._resolve(preset, changes)
