"""tulu_lite: post-training recipes that run."""

__version__ = "0.1.0"

try:
    from verifiers import Verdict as _Verdict  # noqa: F401
except ImportError as _error:
    import importlib.util as _util

    _spec = _util.find_spec("verifiers")
    raise ImportError(
        "tulu_lite needs its own package `verifiers`, but Python finds "
        + (f"another distribution's at {_spec.origin}" if _spec and _spec.origin else "none")
        + f" ({_error}). Cure: pip uninstall verifiers, then install tulu-lite again."
    ) from _error
