"""What judging a cell asks of a model, of the pooled answer of several references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sctool._sets import Calibration, Hierarchy
from sctool.model import Prediction


@dataclass
class Consensus:
    """The types of an answer, in place of a trained model.

    Attributes have the names and the meaning of those of
    :class:`sctool.model.AnnotationModel`.
    """

    classes_: list[str]
    novel_classes_: list[str]
    novel_scores: np.ndarray
    class_colors_: dict[str, str]
    class_shares_: list[float] | None
    terms_: Mapping[str, str]
    calibration_: Calibration | None = None
    hierarchy_: Hierarchy | None = None
    sensitivity_: Mapping[str, float] = field(default_factory=dict)
    n_novel_: dict[str, int] | None = None
    preset_: str | None = None

    @property
    def names_(self) -> list[str]:
        return [*self.classes_, *self.novel_classes_]

    def _novel_score(self, prediction: Prediction) -> np.ndarray:
        return self.novel_scores
