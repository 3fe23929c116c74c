"""More wrong answers, as a policy with a million tries would find them. None may score, none may hang."""

from __future__ import annotations

import time

import pytest

from verifiers import Sample, Status, VerifierPool, build
from verifiers.maths import expressions, identity, judges

# Gold 5: several answers in one, or an answer taken back
HEDGES = [
    r"5 \text{ or } 6", "5/6", "5|6", r"5 \vee 6", r"5 \lor 6", "5 or 6", "either 5 or 6", r"5\text{, maybe }6",
    r"\{5,6\}", "5;6", "5 6", r"5\quad 6", "5-6", "5 to 6", r"5\sim 6", "[5,6]", "5...6", r"5,\ldots,10", "5 (or 6)",
    r"5 \text{(possibly 6)}", r"5 \pm 1", r"x=5 \text{ or } x=6", r"5 \land 6",
    r"5\text{ if }x>0, 6\text{ otherwise}", r"\begin{cases}5\\6\end{cases}", "5^{6}", "5_6", r"5\\6", r"5 \mid 6",
    r"\frac{5}{1} \text{ or } \frac{6}{1}", r"\{5\} \cup \{6\}", r"x \in \{5,6,7\}", r"5 \ne 6 = 6", "5 < 6",
    r"5 \le x \le 5.0001", r"\text{5 or 6}", "5,5.0,6", r"\text{between 4 and 6}", r"\approx 5", r"5 \approx 5.2",
    r"\sim 5", "5?", r"5+\epsilon", r"5\cdot x^0", "5 + 0x", "5 + O(h)", r"\boxed{5}\boxed{6}",
    r"5\text{ (but could be 6)}", r"5 \leftrightarrow 6", r"5 \Rightarrow 6", r"\lnot 6",
]  # fmt: skip

# Gold 5: characters that look like it, hold it, or change it
CHARACTERS = [
    "\u2464", "\u2165", "\u0965", "5\u0301", "5\u20dd", "5\u20e0", "\u2085", "\u2075", "5\xb0C", "\u3284", "V",
    "\u4e94", "\U0001d7d3x", "5\u200b6", "5\u202e6", "\u202e15", "5\u0338", "\xbd5", "5\ufe0f\u20e36", "S", "\u01bc",
    "\u0417",
]  # fmt: skip

# Gold 5: typesetting that hides, replaces or only positions
TYPESETTING = [
    r"\def\a{5}\a", r"\newcommand{\a}{5}\a", r"\hspace{5}", r"\hspace{1cm}5", r"\color{white}{6}5",
    r"\textcolor{red}{5}6", "6%5", "6 % 5", r"\sout{5}", r"\cancel{6}5", r"\rlap{6}5", r"\hphantom{5}",
    r"\vphantom{5}6", r"\smash{5}6", r"\label{5}", r"\tag{5}", r"6 \tag{5}", r"\ref{5}", r"\input{5}", r"\include{5}",
    r"\footnote{5}6", r"\text{answer: 5, or 6}", r"\verb|5|", r"\char53", r"\symbol{53}", r"\number5", r"\roman{5}",
    r"\romannumeral 5", r"\stackrel{5}{6}", r"\overset{5}{6}", r"\underset{5}{6}", r"\substack{5\\6}", r"\frac{5}{}",
    r"\frac{}{5}", "5^{}6", "5_{}", "{}_{5}", "{}^{5}", "5{6}", "{5}{1}", r"\mathrm{V}", r"\unicode{x35}",
    r"\raisebox{5pt}{6}", r"\begin{comment}6\end{comment}5", r"\not5", r"\overline{5}", r"\bar5", r"\hat{5}",
    r"\vec{5}", r"\dot{5}", "5'", "5''", r"5^{\prime}", "5^*", r"5^\dagger", "5^{-}", "5^{+}", r"5\bmod 3",
    r"5 \pmod{3}",
]  # fmt: skip

# Gold 5: code, names of a computer algebra system, undefined and nearly equal values, multiples
CODE_AND_VALUES = [
    "__import__('os').getpid()", "eval('5')", "exec('x=5')", "Symbol('x')", "sympify('5')", "S(5)", "Integer(5)",
    "lambda:5", "5 if True else 6", "5 or 6", "5 and 6", "[5,6][0]", "max(5,6)", "simplify(5)", "limit(5,x,0)", "oo",
    "zoo", "nan", "E+2", "I*I+6", "x.subs(x,5)", "Rational(5)", "True*5", "5==5", "1 if 5 else 0", "0x5", "0b101",
    "5e0L", "5j", "5L", "5_0", r"\operatorname{eval}(5)", r"\sum", r"\int", r"\lim", r"\prod", r"\infty-\infty",
    r"\frac{\infty}{\infty}", "0^0", r"\frac{0}{0}", r"\frac{5}{0}", r"\log 0", r"\sqrt{-25}", r"\arcsin 5",
    r"\tan 90^\circ", "0!", "(-1)!", r"\Gamma(6)", r"5\%", r"0.05\%", r"5\text{ dozen}", r"5\text{ thousand}", "5k",
    "5M", "5^{1.0000001}", "4.99999999999999999999", "5.00000000000000000001", "5+10^{-30}", r"4.\overline{9}8",
    "5-1e-18", "5.5", "05.0.0",
]  # fmt: skip

# (gold, answer, question): copied from the question, or left to be worked out
RESTATED = [
    ("4", "2+2", "What is $2+2$?"), ("4", "2 + 2", "What's 2+2?"),
    ("10", r"\binom{5}{2}", r"Compute $\binom{5}{2}$."), ("120", "5!", "Find $5!$."),
    ("6", r"\sqrt{36}", r"Simplify $\sqrt{36}$"), ("3", r"\log_2 8", r"Evaluate $\log_2 8$"),
    ("x^2-1", "(x-1)(x+1)", "Expand $(x-1)(x+1)$."), ("(x-1)(x+1)", "x^2-1", "Factor $x^2-1$."),
    (r"\frac{1}{2}", r"\sin 30^\circ", r"What is $\sin 30^\circ$?"), ("6", r"\int_0^6 dx", r"Evaluate $\int_0^6 dx$"),
    ("10", r"\sum_{k=1}^{4} k", r"Compute $\sum_{k=1}^{4} k$"),
    ("1", r"\sin^2 x + \cos^2 x", r"Simplify $\sin^2 x+\cos^2 x$"), ("-1", "i^2", "Compute $i^2$"),
    ("1024", "2^{10}", "What is $2^{10}$?"), ("3", r"\sqrt[3]{27}", r"What is $\sqrt[3]{27}$?"),
    ("56", r"7 \cdot 8", r"Compute $7 \cdot 8$."), ("56", r"7 \times 8", r"Compute $7 \cdot 8$."),
    ("56", r"8 \cdot 7", r"Compute $7 \cdot 8$."), ("56", "7*8", "What is 7 times 8?"),
    ("0.5", r"\frac{3}{6}", r"Reduce $\frac{3}{6}$."), (r"\frac12", r"\frac{3}{6}", r"Reduce $\frac{3}{6}$."),
    ("5", "x", "Solve $2x=10$ for $x$."), ("5", "2x=10", "Solve $2x=10$ for $x$."),
    ("x=5", "2x=10", "Solve $2x=10$."), ("4", "(2+2)", "What is $2+2$?"), ("4", "2+2+0", "What is $2+2$?"),
    ("4", "{2+2}", "What is $2+2$?"), ("4", "x=2+2", "What is $2+2$?"), ("4", "2+2=2+2", "What is $2+2$?"),
    (r"2\pi", r"\int_0^{2\pi} 1\,dx", r"Compute $\int_0^{2\pi} 1\,dx$"),
    ("4", "f(2)", "Let $f(x)=x^2$. Find $f(2)$."), ("1", "x/x", "Simplify $x/x$"),
    ("a+b", r"\frac{a^2-b^2}{a-b}", r"Simplify $\frac{a^2-b^2}{a-b}$."),
    ("x>3", "2x>6", "Solve $2x>6$."), ("y=2x+1", "4x-2y+2=0", "Write $4x-2y+2=0$ in slope-intercept form."),
]  # fmt: skip

# (gold, answer): units, bases, brackets, relations, collections, rounding, names
PAIRS = [
    ("5 cm", "5 mm"), ("5 cm", "0.05 km"), (r"5\text{ cm}", r"5\text{ cm}^3"), (r"5\text{ m/s}", r"5\text{ km/h}"),
    (r"5\text{ hours}", r"5\text{ minutes}"), (r"\$5", "5 cents"), (r"\$5", r"\pounds 5"), (r"50\%", "50"),
    ("0.5", r"0.5\%"), ("50", r"50\%"), ("0.5", "50"), (r"30^\circ", "30'"), (r"30^\circ", r"30\text{ rad}"),
    ("12_{10}", "12_8"), ("77_8", "77_{16}"), ("11_2", "11_3"), ("101_2", "101"), ("10", "10_2"),
    ("5:30 a.m.", "5:30 p.m."), ("(1,2)", "[1,2]"), ("(1,2)", r"1<x\le 2"), ("[1,2]", r"\{1,2\}"),
    (r"\{1\}", r"\{\{1\}\}"), ("(1,(2,3))", "((1,2),3)"), ("(1,2,3)", "(1,2),3"), ("x>5", "x>5, x<5"),
    ("x>5", r"x>5 \text{ or } x \le 5"), ("x>5", "x=5"), ("x>5", "5"), ("x>5", "x>4.9999999"), ("x<5", "x>5"),
    (r"x\le5", r"x\ge5"), ("x=5", "x=-5"), ("x=5", r"x \ne 5"), ("x=5", "y=5=x+1"), ("x=5", "x=5, y=6"),
    (r"\{x | x>5\}", "x<5"), ("1,2,3", "1,2"), ("1,2,3", "1,2,3,4"), ("1,2", "1,2,2,3"), (r"\pm5", "5"),
    ("5", r"\pm5"), (r"\pm 5", r"\pm 5, 0"), ("1", r"0.\overline{8}"), ("2^{10}", "2^{11}"), ("10^{100}", "10^{99}"),
    ("1000000", "1000001"), ("123456789012345678901234567890", "123456789012345678901234567891"),
    ("0.1", "0.10000000000000000555"), ("x+1", "x+1=0"), ("x^2", "x^{2.0000001}"), (r"\sin x", r"\sin y"),
    (r"\sin x", "sin"), ("x", "|x|"), (r"\frac{x^2}{x}+1", "x"), ("n!", "n"), ("A", "a, b"), ("(A)", "(B)"),
    (r"\text{yes}", r"\text{yes and no}"), (r"\text{yes}", "no"), (r"\text{no solution}", "x=0"), (r"\emptyset", "0"),
    (r"\mathbb{R}", r"\mathbb{C}"), (r"\infty", "10^{99}"), ("0", r"\infty-\infty"), ("1", r"\infty/\infty"),
    ("1", r"\frac{0}{0}"), ("1", "x^0"), ("0", "x-x+1e-9"), ("0", "0.0000000000001"), ("i", "-i"), ("3+4i", "3+4j"),
    ("3+4i", "5"), (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2&3&4\end{pmatrix}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\{1,2\}"), (r"\begin{pmatrix}1\\2\end{pmatrix}", "1,2,3"), ("3:4", "4:3"),
    ("3:4", "3.4"), ("3:45", "3.75"), ("2:05", "2:5"), ("12", "1{,}2"), ("12", r"1\,2"), ("12", "1~2"),
    ("1200", "12 00"), ("1.234", "1,234"), ("1,234", "1.234"), ("1,000", "1.000"), ("2,5", "2.5"), ("3,14", "(3,14]"),
    (r"\overline{AB}", r"\overline{CD}"), (r"\angle ABC", r"\angle CBD"), (r"\triangle ABC", "ABC"),
]  # fmt: skip

# Gold 5: a number that its words change or take back, macros that print another one, decoys beside it
WORDS = [
    rf"5\text{{ {words}}}"
    for words in (
        "squared", "cubed", "factorial", "halves", "thirds", "tenths", "thousandths", "half", "minus one", "plus one", "times two",
        "divided by two", "doubled", "point five", "and a half", "remainder 2", "modulo 3", "base seven", "lakh", "score", "tens",
        "less than it", "is wrong", "is not the answer", "isn't it", "is too small", "no wait", "never", "I guess", "approximately",
        "-ish", "alternatively six", "aka six", "though six also works", "however six", "six", "over six",
    )
]  # fmt: skip
MACROS = [
    r"\renewcommand{\six}{5}5", r"\let\a=5\a", r"\newcommand{\b}{6}5", r"\input{/etc/passwd}5", r"\write18{true}5", r"\csname 5\endcsname",
    r"\catcode`5=6 5", r"\expandafter5", r"\mathrlap{6}5", r"5\kern-1em6", r"5\hspace{-1em}0", r"5\phantom{0}", r"\underbrace{5}_{6}",
    r"\overbrace{6}^{5}", r"\begin{array}{c}5\\6\end{array}", r"5\star", r"\|5\|", r"\det(5)", r"\max(4,5)", r"\gcd(5,10)",
    "5 1", r"\frac{5}{1} 1", r"1 \quad 5", r"\sqrt{25 + 10^{-70}}", r"\sqrt[3]{125-10^{-90}}", r"5\text{ cm}^{-1}\cdot 2", "x(2)=5",
    r"2x \in \{5\}", r"x \ne 5", r"\lnot(5)", r"5 = 5 = 6", "(5,)", r"\{5,\{5\}\}",
]  # fmt: skip
# Gold 5, in prose: denied, doubted, or one of several
PROSE = [
    "The answer is not 5", "The answer isn't 5.", "The answer is anything but 5", "The answer cannot be 5.", "The answer is never 5",
    "The answer is 6. The answer is not 5.", "The answer is 5 squared.", "The answer is 5 and a half.", "The answer is 5 point five",
    "The answer is $5$ or $6$.", "The answer is $5$, $6$.", "The answer is $5$ and $6$", "The answer is $5$, or maybe $6$.", "Is the answer 5?",
    "The answer is 5?", "The answer is 4 < 5", "It is 5 thousandths", "It is 5 cubed", r"So it is 5\text{ minus one}.", r"It is \(5\) or \(6\)",
    "It is 5 is wrong", "The answer: 5 or so 6", "It is 6, not 5", "5 or 6", "5/6/7", "It is $x < 5$", "He comes at 3:5", "They are as 4:5.",
]  # fmt: skip


FORMS = (r"So the answer is $\boxed{%s}$.", "The answer is $%s$.")


def _refused(answer: str, gold: str, prompt: str = "") -> None:
    judge = build("math")
    judge.check_reference(gold)
    for form in FORMS:
        verdict = judge.verify(Sample(form.replace("%s", answer), gold, prompt))
        assert verdict.status is Status.INCORRECT, (form, verdict.reason, verdict.extracted)


@pytest.mark.parametrize("answer", HEDGES)
def test_no_hedge_scores(answer: str) -> None:
    _refused(answer, "5")


@pytest.mark.parametrize("answer", CHARACTERS)
def test_no_character_passes_for_a_digit(answer: str) -> None:
    _refused(answer, "5")


@pytest.mark.parametrize("answer", TYPESETTING)
def test_no_typesetting_scores(answer: str) -> None:
    _refused(answer, "5")


@pytest.mark.parametrize("answer", CODE_AND_VALUES)
def test_no_code_and_no_near_value_scores(answer: str) -> None:
    _refused(answer, "5")


@pytest.mark.parametrize("answer", [*WORDS, *MACROS])
def test_no_word_and_no_macro_changes_a_number_unseen(answer: str) -> None:
    _refused(answer, "5")


@pytest.mark.parametrize("response", PROSE)
@pytest.mark.parametrize("verifier", ["math", "gsm8k"])
def test_no_prose_hedges_or_denies(verifier: str, response: str) -> None:
    verdict = build(verifier).verify(Sample(response, "5"))
    assert verdict.status is Status.INCORRECT, (verdict.reason, verdict.extracted)


@pytest.mark.parametrize(("gold", "answer", "question"), RESTATED)
def test_the_question_is_no_answer(gold: str, answer: str, question: str) -> None:
    _refused(answer, gold, question)


@pytest.mark.parametrize(("gold", "answer"), PAIRS)
def test_no_near_miss_scores(gold: str, answer: str) -> None:
    _refused(answer, gold)


HOSTILE = {
    "million digits": "7" * 1_000_000,
    "million digits negative": "-" + "9" * 1_000_000,
    "million digits decimal": "0." + "3" * 1_000_000,
    "digits and commas": "1," * 200_000 + "000",
    "thousands": "1" + ",000" * 100_000,
    "1e400": "1e400",
    "1e-400": "1e-400",
    "1e9999999": "1e9999999",
    "10^{10^{10}}": "10^{10^{10}}",
    "2^{2^{2^{2^{2}}}}": "2^{2^{2^{2^{2}}}}",
    "tetration": "^".join(["9"] * 60),
    "double factorial tower": "(((9!)!)!)!",
    "factorial of power": "(10^{9})!",
    "binomials": r"\binom{\binom{99}{49}}{9}",
    "nested binom": r"\binom{" * 40 + "9" + "}{4}" * 40,
    "nested sqrt index": r"\sqrt[9]{" * 100 + "2" + "}" * 100,
    "continued fraction": r"1+\frac{1}{" * 60 + "2" + "}" * 60,
    "continued sqrt": r"\sqrt{1+" * 60 + "2" + "}" * 60,
    "frac of frac": r"\frac{\frac{" * 40 + "1" + "}{2}}{3}" * 40,
    "left right": r"\left(" * 500 + "1" + r"\right)" * 500,
    "abs": "|" * 500 + "1" + "|" * 500,
    "floors": r"\lfloor " * 100 + "1" + r"\rfloor " * 100,
    "sin tower": r"\sin(" * 60 + "1" + ")" * 60,
    "exp tower": r"\exp(" * 20 + "9" + ")" * 20,
    "exp of big": r"e^{e^{e^{9}}}",
    "log tiny": r"\log(10^{-999999})",
    "power tower of x": "x^{x^{x^{x^{x^{9}}}}}",
    "many symbols": "+".join("abcdefghjklmnopqrstuvwxyz" * 15),
    "product of sums": "".join(f"(a+{i}b)" for i in range(90)),
    "big poly power": "(a+b+c+d+e+f)^{999999}",
    "1^huge": "1^{99999999999999999999}",
    "(-1)^huge": "(-1)^{99999999999999999999}",
    "0.999^huge": "0.999^{1000000}",
    "near overflow": "(1+10^{-30})^{1000000}",
    "mod": "2^{1000000} \\pmod{7}",
    "gcd": r"\gcd(2^{1000},3^{1000})",
    "sum big": r"\sum_{k=1}^{1000} k^{1000}",
    "prod big": r"\prod_{k=1}^{999} k^{k}",
    "limit": r"\lim_{x\to0} \frac{\sin(\sin(\sin(\sin x)))-x}{x^{9}}",
    "int hard": r"\int_0^1 e^{x^2\sin(x)\log(x)} dx",
    "int nested": r"\int \int \int \frac{1}{x^5+x+1} dx dx dx",
    "matrix big": r"\begin{pmatrix}" + r"\\".join("&".join(["1"] * 30) for _ in range(30)) + r"\end{pmatrix}",
    "matrix nested": r"\begin{pmatrix}" * 30 + "1" + r"\end{pmatrix}" * 30,
    "matrix power": r"\begin{pmatrix}1&2\\3&4\end{pmatrix}^{999}",
    "det": r"\begin{vmatrix}" + r"\\".join("&".join("abcdefgh") for _ in range(8)) + r"\end{vmatrix}",
    "sets in sets": r"\{" * 100 + "1" + r"\}" * 100,
    "tuples": "(" * 6 + "1,2" + "),3" * 6,
    "unions": r" \cup ".join(f"({i},{i + 1})" for i in range(300)),
    "union same": r" \cup ".join(["(0,1)"] * 35),
    "or list": r" \text{ or } ".join(f"x>{i}" for i in range(300)),
    "pm many": r"\pm 1 " * 60,
    "pm nested": r"(\pm " * 6 + "1" + ")" * 6,
    "relations": "<".join(str(i) for i in range(300)),
    "equalities": "=".join(["5"] * 400),
    "approx": r"\approx ".join(["5"] * 300),
    "semicolons": ";" * 1500,
    "ratio": ":".join(["1"] * 500),
    "text nest": r"\text{" * 300 + "5" + "}" * 300,
    "boxed nest": r"\boxed{" * 300 + "5" + "}" * 300,
    "over": r"{1 \over " * 100 + "2" + "}" * 100,
    "over flat": "{" * 900 + r" \over 1",
    "choose": r"{5 \choose " * 100 + "2" + "}" * 100,
    "spaces in frac": r"\frac" + " " * 1500 + "{1}{2}",
    "spaces": "5" + " " * 1900 + "6",
    "percent": r"\%" * 900,
    "dollars2": "$1$ " * 450,
    "carets": "^" * 1900,
    "underscores": "_" * 1900,
    "primes": "x" + "'" * 1900,
    "minuses": "-" * 1900 + "5",
    "plus": "+" * 1900 + "5",
    "bangs": "5" + "!" * 1900,
    "combining": "5" + "\u0301" * 1900,
    "zalgo": "".join("5" + "\u0489" * 20 for _ in range(90)),
    "fullwidth": "\uff15" * 1900,
    "rtl": "\u202e" * 1900 + "5",
    "nulls": "\0" * 1900 + "5",
    "emoji": "5\ufe0f\u20e3" * 600,
    "letters": "a" * 1900,
    "words": "word " * 380,
    "hyphens": "a-" * 950,
    "apostrophes": "a'" * 950,
    "brackets": "[1," * 600 + "2" + "]" * 600,
    "french": "]1,2[" * 380,
    "cases": r"\begin{cases}" + r"x=1\\" * 300 + r"\end{cases}",
    "builder": r"\{x | " * 100 + "x>1" + r"\}" * 100,
    "overline": r"0.\overline{" + "3" * 1500 + "}",
    "dots": r"\dot{3}" * 250,
    "based": "1" * 900 + "_{" + "2" * 900 + "}",
    "residue": "9" * 30 + r" \pmod{" + "9" * 30 + "}",
    "label": "x_{" * 500 + "1" + "}" * 500 + "=5",
    "ands": "and " * 470,
    "ors": "5 or " * 380,
    "boxes and": r"\boxed{5} and " * 2000,
    "boxes words": r"\boxed{5} aaaaaaaaaaaa and " * 900,
    "box spaces": r"\boxed{5}" + " " * 30000 + r"\boxed{6}",
    "boxed then text": r"\boxed{5}\text{ and " * 500,
    "answer tags": "<answer>5" * 5000 + "</answer>",
    "think tags": "<think></think>" * 5000,
    "minerva": "Final Answer: The final answer is " * 900,
    "minerva2": "Final Answer: The final answer is $5$. I hope it is correct." * 300,
    "answeris spaces": "the answer is" + " " * 20000 + "x",
    "stars": "the answer is " + "*" * 20000,
    "hash digits": "#### " + "1 " * 20000,
    "frac tokens": r"\frac{1}{2} " * 3000,
    "per cent": "5 per " * 5000,
    "slashes": "1/" * 10000,
    "decimal points": "1." * 10000,
    "signs": "+-" * 10000 + "1",
    "escaped": "\\\\\\\\" * 4000 + "boxed{5}",
    "dollar pairs": "$x$ " * 8000,
    "display": r"\[x\] " * 5000,
    "brackets mixed": "([{" * 3000,
    "long line": "x " * 200000,
}

GOLDS = ("12345", r"\frac{\sqrt{3}}{2}", r"\{1,2\}", "x^2+1", r"(-\infty,3]", "(1,2)", r"\text{(C)}")


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_text_scores_or_hangs(name: str) -> None:
    judges.warm()
    for gold in GOLDS if len(HOSTILE[name]) < 50_000 else GOLDS[:1]:
        for form in ("%s", r"So \boxed{%s}", "The answer is $%s$"):
            response = form.replace("%s", HOSTILE[name])
            for verifier in ("math", "gsm8k", "boxed") if gold == "12345" else ("math",):
                began = time.process_time()
                verdict = build(verifier).verify(Sample(response, gold))
                assert verdict.status is Status.INCORRECT, (verifier, gold, form, verdict.reason)
                assert time.process_time() - began < 2, (verifier, gold, form)


@pytest.mark.parametrize(
    "words", ["but that is wrong", "or not", "if I am not mistaken", "maybe", "could be otherwise"]
)
def test_words_that_take_an_answer_back_are_no_unit(words: str) -> None:
    _refused(rf"5\text{{ {words}}}", "5")
    _refused(rf"\sqrt{{2}}\text{{ {words}}}", r"\sqrt{2}")


@pytest.mark.parametrize(
    "answer", [r"\int_0^5 dx", r"\sum_{k=1}^{5} 1", r"\lim_{x \to 5} x", r"\prod_{k=5}^{5} k"]
)
def test_what_is_left_to_be_worked_out_is_no_number(answer: str) -> None:
    _refused(answer, "5")


@pytest.mark.parametrize("mark", ["\u0301", "\u20dd", "\u20e0", "\u0338", "\u0336"])
@pytest.mark.parametrize("verifier", ["math", "number", "gsm8k"])
def test_a_marked_or_struck_digit_is_no_last_number(mark: str, verifier: str) -> None:
    assert build(verifier).verify(Sample(f"So it is 5{mark}", "5")).score == 0


def test_no_difference_can_be_made_to_vanish_where_functions_are_compared() -> None:
    """The points depend on both texts: zeros written for one pair of texts are not those of the new pair."""
    one = expressions.read("x")
    answer = "x"
    for _ in range(3):
        other = expressions.read(answer)
        assert one is not None
        assert other is not None
        points = [identity._point(["x"], i, identity._seed(one, other))["x"] for i in range(identity.POINTS)]
        zeros = "".join(f"(x-({p.numerator})/{p.denominator})" for p in points)
        answer = f"x+{zeros}"
        _refused(answer, "x")


def test_every_hostile_text_has_its_verdict_within_the_deadline() -> None:
    items = [("math", Sample(rf"\boxed{{{text}}}", gold)) for text in HOSTILE.values() for gold in GOLDS[:2]]
    with VerifierPool(workers=2, timeout_s=5) as pool:
        verdicts = pool.verify(items)
    assert {verdict.status for verdict in verdicts} == {Status.INCORRECT}
    assert max(verdict.seconds for verdict in verdicts) < 5.5
