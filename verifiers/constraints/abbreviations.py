"""What `punkt` knows of English: abbreviations, words that begin sentences, and words of everyday prose.

Written by hand. Where there is a choice, these are as American news uses them, by which Punkt's English model was
made: "Calif." is an abbreviation, and "e.g.", "i.e.", "etc.", "no." and "fig." are none. `segment`, which need not
count like a published benchmark, knows those too.
"""

from __future__ import annotations

import re


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# In lower case and without their last full stop.
ABBREVIATIONS = _set(
    # letters that are initials of names more often than ends of sentences; of the others the next word decides
    "c d e f g h j k l m n p r s t v w "
    # people
    "adm col dr gen gov jr lt maj messrs mr mrs ms ph.d prof rep reps rev sen sr st "
    # times
    "a.m p.m jan feb aug sep sept oct nov dec fri tues wed yr "
    # companies and measures
    "bros cie co corp cos inc ltd b.v n.v s.a s.p.a chg ct ft mg va vs "
    # places
    "ala ariz ave calif colo conn d.c fla ga ill kan ky l.a mich minn n.c n.d n.h n.j n.m n.y nev okla ore pa "
    "s.c s.d tenn u.k u.n u.s u.s.a u.s.s.r vt w.va wash wis "
    # initials of the firms of that news (J.P. Morgan); others in one word (J.R.R.) end a sentence
    "a.h e.f g.d h.f j.b j.c j.j j.k j.p j.r l.f r.h r.j t.j"
)

# Capitalised after an abbreviation or "...", they begin a sentence: seldom part of a name or a heading.
STARTERS = _set(
    "although also among another any as at because before both but by during even following he her here his how "
    "however if in instead it its many meanwhile moreover most much nevertheless no none nor now once only others "
    "perhaps please several she similarly since so some still such that the their then there therefore these they "
    "this those though thus to under unlike until what when where whether which while why with yesterday "
    "your"
)

# After a number it begins no sentence: that news had headings such as "1988 Review", and the references count so.
AFTER_NUMBER = frozenset(("review",))

# Words that a lone initial ("A. Loud") is no name with.
_EVERYDAY = _set(
    "a about above across act add after again age air all almost an and animal answer are area ask away back bad ball "
    "be been begin best better big bird black blue boat body book box boy brief bring brown build buy call can car "
    "care case cat change check child choose circle city clean clear close cold color come cook cool copy could "
    "country cut dark data date day deep did difficult do does dog door down draw dress drink drive drop dry each "
    "early east easy eat edge end enough ever every eye face fact fall false family far farm fast father feel feet "
    "few final find fine finish fire first fish five fly follow food foot for force form four free friend from front "
    "full game get gift girl give go gold good got great green ground group grow had half hand happen hard has have "
    "head health hear heart heat heavy help high him hold home hot hour house hundred i idea inch increase inside "
    "into is island just keep key kind know land large last late laugh law lead learn leave left less let letter "
    "level life light like line list little live long look loud love low machine made main make man map mark may me "
    "mean men might mile mind minute miss money month moon more morning mother mountain mouth move music must my name "
    "near need never new next night nine north nothing notice number object of off office often oh old on one open "
    "or order other our out over own page paper part party pass past pay people person picture piece place plan plane "
    "plant play point poor possible power problem product program pull purple push put question quick quiet rain ran "
    "read real red remember rest rich right river road rock room round rule run safe said sail same sat save saw say "
    "school science sea second see seem send sentence set seven shall shape share sharp ship short should show side "
    "sign silent simple sing size sky sleep slow small smooth snow soft soil song soon sort sound south space special "
    "speed stand star start state stay step stop store story street strong study summary sun sure system table take "
    "talk tall teach team tell ten test than thank thing think three through time together told too took top toward "
    "town travel tree true try turn two type up us use usual very visit voice vote wait walk wall want war warm was "
    "watch water way we weak wear weather web week well went were west wheel white whole will wind winter wish wonder "
    "wood word work world would write wrong year yellow yes yet you young"
)
# ... and endings that many common words have and few names.
_ENDING = re.compile(
    r"(?:tion|sion|ing|ment|ity|ness|ly|ed|ive|ble|ous|ence|ance|ful|less|ic|ize|ism|ary|ure|ct|ple|ge|gy|ght|al|ent)s?$"
)


def abbreviated(word: str) -> bool:
    """Whether a word, in lower case and without its last full stop, is an abbreviation; "mid-Nov" is one too."""
    return word.rpartition("-")[2] in ABBREVIATIONS


def everyday(word: str) -> bool:
    """Whether a word, in lower case, is common outside names."""
    known = len(word) == 1 or word in STARTERS or word in _EVERYDAY
    return known or (len(word) > 5 and _ENDING.search(word) is not None)
