"""What a caller can get wrong. A wrong answer is a verdict, never one of these."""

from __future__ import annotations


class VerifierError(Exception):
    """Something a user can mend: `what` is wrong and where, `why` it matters, and the `cure`."""

    def __init__(self, what: str, why: str = "", cure: str = "") -> None:
        self.what, self.why, self.cure = what, why, cure
        super().__init__(" ".join(part for part in (what, why, cure) if part))


class SpecError(VerifierError):
    """A verifier's spec cannot be built: wrong shape, unknown argument, file that does not load."""


class UnknownVerifier(SpecError):
    """No verifier has this name."""


class NameTaken(VerifierError):
    """Two different verifiers want one name."""


class BadReference(VerifierError):
    """A row's reference cannot be judged against; found when data is loaded, before any training."""
