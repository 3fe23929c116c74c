"""The 58 checks of IFBench's test set (Pyatkin et al. 2025, arXiv:2507.02833), by family.

They decide as the reference did when its verdicts were published, its quirks included, so that scores compare with
the literature. Where a quirk makes an instruction easier than its words, the check's docstring says so. Of its later
changes only those are made that replace a crash by a verdict.
"""
