"""Constraints on how a response is written: IFEval's twenty-five, and single ones by arguments."""
