"""Direct preference optimisation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..base import Later, Number
from .pairs import PairStage

SMOOTHED = ("dpo", "robust", "simpo")  # the objectives for which label smoothing has a meaning


class DpoStage(PairStage):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290), length-normalised as in
    Tülu 3 (arXiv:2411.15124, eq. 6) unless told otherwise, and its variants."""

    kind: Literal["dpo"]
    init: str
    """The stage whose model is trained."""
    objective: Literal["dpo", "ipo", "robust", "hinge", "simpo"] = Later("dpo")
    """With h the difference of the two responses' log-probability ratios to the reference: dpo, -log sigmoid(beta h);
    ipo, (h - 1 / (2 beta))^2 (arXiv:2310.12036); robust, dpo made unbiased for labels of which `label_smoothing` are
    wrong (arXiv:2403.00409); hinge, max(0, 1 - beta h) (SLiC, arXiv:2305.10425); simpo, dpo without a reference and
    with the margin `gamma` (arXiv:2405.14734)."""
    length_normalised: bool = True
    """Divide each response's log-probability by its number of tokens (Tülu 3, SimPO); false: standard DPO."""
    beta: Number = Field(5.0, gt=0)
    """Strength of the tie to the reference: 5 when length-normalised (Tülu 3), about 0.1 when not. simpo: 2 to 10."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=0.5)] = Later(0.0)
    """Share of the pairs thought to be labelled the wrong way round: conservative DPO with dpo and simpo, and what
    robust corrects for."""
    gamma: Annotated[Number, Field(ge=0)] = Later(0.0)
    """simpo: by how much the chosen response's beta log pi should be higher; about half of beta (arXiv:2405.14734)."""
    reference: str | None = Later(None)
    """The stage (or `base`) whose model is the reference; by default the one that training starts from. Its
    log-probabilities are computed once and kept in the output folder, for every run with the same pairs."""

    @model_validator(mode="after")
    def _fits_the_objective(self) -> DpoStage:
        if self.label_smoothing and self.objective not in SMOOTHED:
            raise ValueError(
                f"label_smoothing has no meaning for {self.objective}; it goes with {', '.join(SMOOTHED)}"
            )
        if self.objective == "robust" and not self.label_smoothing:
            raise ValueError(
                "objective robust corrects for wrong labels, and label_smoothing, their share, is 0; give it, or write "
                "`objective: dpo`, which is the same"
            )
        if self.gamma and self.objective != "simpo":
            raise ValueError(f"gamma is simpo's margin and has no meaning for {self.objective}; leave it out")
        if self.objective == "simpo" and not self.length_normalised:
            raise ValueError("objective simpo compares mean log-probabilities; leave length_normalised out")
        if self.objective == "simpo" and self.reference is not None:
            raise ValueError("objective simpo has no reference; leave `reference` out")
        return self
