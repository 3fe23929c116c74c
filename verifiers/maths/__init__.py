"""Mathematical answers: found in a response (extract), read (numerals, answers, expressions), compared
(equality, identity), with math-verify behind guards for the rest (algebra). The verifiers are in judges."""
