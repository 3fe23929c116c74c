"""The language of a text as IFEval's reference says it: by langdetect, but seeded, so that it answers the same twice.

langdetect (Shuyo 2010) compares letter trigrams with 55 profiles that lie in the package, by sampling. It is weak
on a few words in capitals; the verifier `language` is this package's own.
"""

from __future__ import annotations

import functools
from typing import Any

LANGUAGES = frozenset(
    (
        "af", "ar", "bg", "bn", "ca", "cs", "cy", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "gu", "he",
        "hi", "hr", "hu", "id", "it", "ja", "kn", "ko", "lt", "lv", "mk", "ml", "mr", "ne", "nl", "no", "pa", "pl",
        "pt", "ro", "ru", "sk", "sl", "so", "sq", "sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi",
        "zh-cn", "zh-tw",
    )
)  # fmt: skip


@functools.cache
def _profiles() -> Any:
    """A factory of detectors of its own: the package's global one and its seed stay as the user has them."""
    from langdetect import PROFILES_DIRECTORY  # type: ignore[import-untyped]
    from langdetect.detector_factory import DetectorFactory  # type: ignore[import-untyped]

    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    return factory


def warm() -> None:
    """Read the profiles, half a second that no item's clock should pay."""
    _profiles()


@functools.lru_cache(maxsize=64)
def detect(text: str) -> str | None:
    """The code of the text's likeliest language; None when it has no letters."""
    from langdetect.lang_detect_exception import LangDetectException  # type: ignore[import-untyped]

    detector = _profiles().create()
    detector.seed = 0
    detector.append(text[:20_000])
    try:
        return str(detector.detect())
    except LangDetectException:
        return None


def is_language(text: str, code: str) -> bool:
    """Whether `detect` says `code`; a text without letters is in every language, as in the reference."""
    found = detect(text)
    return found is None or found == code
