"""Whether rewards differ. No torch."""

from __future__ import annotations

from typing import Any

# relative: what two ways of adding up the same reward may differ by, far above float64's 2e-16
ROUNDING = 1e-9


def differ(lowest: Any, highest: Any) -> Any:
    """Whether the lowest and the highest of some rewards differ by more than rounding; numbers, or tensors of one shape.

    Of none (lowest inf, highest -inf): no. A verifier's weighted sum may be 0.3 or 0.30000000000000004: divided by its
    own standard deviation such a difference would become a whole advantage.
    """
    return highest - lowest > ROUNDING * (abs(lowest) + abs(highest))
