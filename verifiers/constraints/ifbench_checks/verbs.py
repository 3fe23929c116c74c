"""Whether a text begins with a verb: by lists written by hand, endings, and the word that follows.

IFBench's reference asks NLTK's statistical tagger, whose weights are no part of this project. That tagger was taught
on news, where sentences seldom begin with an imperative, and takes some capitalised ones for names: those that are
common are listed in `_NAMES_TO_THE_REFERENCE`, and are no verbs here either.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from verifiers.constraints.ifbench_checks.plain import word_set

# Forms that are verbs whatever follows; modal ones ("can", "will") are none to the tagger.
_ALWAYS = word_set(
    "am is are was were be been being do does did done has have had having isn aren wasn weren doesn didn hasn "
    "hadn 'm 're 've began begun bought brought built came caught chose chosen fought gave given gone got gotten "
    "grew heard hid kept knew known lent made met paid ran said sang sat saw sent shook shown slept sold spoke "
    "spoken stolen swept taken taught tied told took torn went won wore worn wrote written woke born drawn "
    "driven eaten fallen flown forgotten forgiven frozen hidden held lost ridden risen shot spent sprung stood "
    "stuck struck sung sunk sworn thrown thought understood withdrawn according puts lets thank let"
)
# Base forms that begin a sentence as an imperative far more often than as a noun or adjective.
_BASE = word_set(
    "abandon abduct abolish absorb accelerate accept accomplish achieve acknowledge acquire act adapt add adhere "
    "adjust administer admire admit adopt advertise advise agree aim allow alter amend amplify analyse analyze "
    "announce anticipate apologize appear append apply appoint appreciate approve argue arise arrange ascertain "
    "ask assemble assert assess assign assist associate assume assure attach attain attend attract authorize "
    "avoid await bake banish become befriend beg begin behold believe belong bend beware bind bless boast "
    "bolster borrow breathe bring broaden browse build bury buy calculate calm capitalize capture carry carve "
    "catch categorize cease celebrate challenge check cherish choose circulate cite clarify classify clean cling "
    "collaborate collect combine come commence communicate compare compete compile complete comply compose "
    "compress compute conceal concentrate conclude confess confirm connect conquer consider consist consolidate "
    "construct consult consume contain continue contribute convert convey convince cooperate correct count "
    "create criticize critique cultivate curate dare debug decide declare decorate dedicate deduce defend define "
    "delegate delete deliver demonstrate deny depend depict deploy derive deserve designate destroy detect "
    "determine develop devise devote differentiate dig disable disagree disappear discard disclose discover "
    "discuss dispose distinguish distribute drag draw drift earn eat edit educate elaborate elect elevate "
    "eliminate embark embed embrace emerge emphasize employ empower enable enclose encode encourage endure "
    "enforce engage enhance enjoy enlist enrich enroll ensure enter entertain enumerate envision equip erase "
    "escape establish estimate evaluate evolve examine exceed excel exclude execute exist expand expect explain "
    "explore expose express extend extract facilitate fail fetch fill finalize find finish fix focus fold follow "
    "forget forgive format formulate foster fry fulfill gather generate get give glance go grab greet grow "
    "guarantee guess handle hang happen harness hear help hesitate hide highlight hold identify ignite ignore "
    "illustrate imagine immerse implement imply impose impress improve include incorporate indicate infer inform "
    "ingest inherit initialize initiate insert insist inspect inspire install instruct integrate intend interact "
    "interpret intervene introduce invent invest investigate invite involve join justify keep kneel know learn "
    "leave lend leverage lie lift list listen live load locate lose lower maintain make manage maximize mean "
    "measure memorize mention merge migrate minimize modify motivate move multiply navigate neglect negotiate "
    "notice notify nurture obey observe obtain occur offer omit open operate optimize organise organize overcome "
    "owe own parse participate pay perceive perform persist persuade pick plug ponder pop possess pour practise "
    "praise pray predict prefer prepare preserve pretend prevent print prioritize proceed process produce "
    "prohibit promote proofread propose protect prove provide publish pursue put query raise reach react read "
    "realize rearrange reassure rebuild recall receive recite recognize recommend recover recycle redesign "
    "redirect reduce refer refine reflect reformulate refuse register regulate reject relate relax rely remain "
    "remember remind remove rename render renew repeat rephrase replace represent reproduce require resist "
    "resolve respond restate restore restrict retain retell rethink retrieve return reveal revise revisit reword "
    "rework rewrite rotate save say scatter seek seem segment select sell send serve settle sharpen show shut "
    "simplify simulate sing sit skip solve sort speak specify spend split start stay steal stimulate stir stop "
    "strengthen strive structure study submit substitute subtract succeed suffer suggest summarise summarize "
    "suppose survive suspend sweeten tackle take teach tell tend think throw tie toss transfer transform "
    "translate transmit try turn tweak uncover underline understand undertake unfold unify unite unleash unlock "
    "unplug unravel unveil update upload urge use utilise utilize validate verify visualize wait wake wander "
    "want warn wash wear weave weigh whip win wipe withdraw wonder wrap write yearn yield zoom"
)
# Base forms, or adjectives, that are verbs if an object follows.
_WITH_OBJECT = word_set(
    "access address air alert answer approach attack award back balance base beat bill bite block blow board "
    "boil book bookmark boost bother bowl brainstorm brand break bridge brief brush call care cast cause center "
    "chain change charge chart clear click climb close coach code comment commit compromise concern conduct "
    "contact contract contrast control convict cook cool cost counter couple cover craft credit cross cut damage "
    "dance date deal delay demand deposit design detail direct display dive divide document double doubt draft "
    "dream dress drink drive drop dry ease end exchange excuse exercise exit experience experiment export face "
    "fear feature feed field fight film filter finance fire fit flag flip float forecast form frame free freeze "
    "fuel function fund gain grade grant grasp ground group guide hack hammer hand harm head heat hire hit hope "
    "house hunt hurt import increase index influence invoice issue journey judge kick kill kiss label lack land "
    "last laugh launch lay lead level light like limit link lock log look love map mark market marry master "
    "match matter mine miss mix model monitor name need note number nurse object offset order outline pack "
    "package paint park part pass paste pause pen pilot pin place plan plant play point position post power "
    "practice present press preview price profile program progress project promise prompt pull pump punch "
    "purchase push qualify question queue quiz quote race rank rate record regard release repair reply report "
    "request research respect rest result reverse review ride ring rise risk roast rock roll round route run "
    "sacrifice sample scale scan schedule score screen seal search season secure sense sentence separate set "
    "shake shape share shift shine ship shop short sign sketch sleep slice slow smell smile snap soak sound "
    "source speed spell spot spray spread stage stand state step stick store stream stress stretch strike strip "
    "struggle style supply support surf surprise surrender swap sweep swim switch table tag talk target taste "
    "tax team test thread time tip title top touch trace track trade train transport trap travel treat trim "
    "trust twist type upgrade value view visit voice volunteer vote walk warm waste watch water wish witness "
    "work worry zip"
)
# What follows a verb rather than a noun: articles, pronouns, possessives, small words; and with prepositions.
_OBJECT = word_set(
    "a an the this that these those it me us you them him her my your our his its their each every all some any both "
    "two three four five six seven eight nine ten one another no out up down off into with how what why whether if "
    "where who when by as through along"
)
_SMALL = _OBJECT | word_set("in on to at for from about against over around")
# Words in -ing and -ed that are none of a verb.
_NO_ING = word_set(
    "amazing anything beijing being bling boeing bring ceiling cling darling ding duckling dumpling during "
    "earring evening everything fling inkling king lightning morning nothing ping pudding ring shilling sibling "
    "sing sling something spring sterling sting string swing thing viking wedding wing wring"
)
_NOUNS_ING = word_set(
    "accounting advertising banking beginning blogging boxing building camping clothing coaching coding cooking "
    "cycling dancing drawing engineering exciting feeling filing finding fishing following gaming gardening "
    "greeting heading hearing hiking housing hunting interesting jogging landing learning lighting listing "
    "living manufacturing marketing meaning meeting mining missing modeling networking offering opening "
    "outstanding painting parking planning pricing printing processing programming publishing racing ranking "
    "rating reading recording recycling reporting running sailing saving savings setting shipping shopping "
    "singing skiing spelling staffing steering swimming teaching testing timing trading training understanding "
    "warning wellbeing writing yearning"
)
_NO_ED = word_set(
    "advanced aged ahmed animated bed beloved biped bred breed continued deed detailed embed exceed fed feed "
    "greed hundred indeed infrared kindred led limited mixed mohammed moped naked ned need newlywed overfed "
    "proceed purebred red reed related sacred seed shed shred sled speed succeed ted unexpected united wed weed "
    "wicked wretched zed"
)
# Capitalised, these are names or nouns to the reference's tagger, seen by its answers.
_NAMES_TO_THE_REFERENCE = word_set(
    "Understand Include Design Use List Describe Ensure Suggest Think Implement Discover Analyze Discuss Detect"
)
_INFLECTED = re.compile(r"[a-z]{2,}(?:ing|ed)")


def begins_with_verb(tokens: Sequence[str]) -> bool:
    """Whether the first of a text's tokens (the second is looked at too) is a verb in any form, no modal one."""
    if not tokens or tokens[0] in _NAMES_TO_THE_REFERENCE:
        return False
    word, after = tokens[0].lower(), tokens[1].lower() if len(tokens) > 1 else ""
    if word in _ALWAYS or word in _BASE:
        return True
    if word in _WITH_OBJECT:
        return after in _OBJECT
    if _INFLECTED.fullmatch(word) and word not in _NO_ING and word not in _NO_ED:
        return word not in _NOUNS_ING or after in _SMALL
    return word.endswith("s") and _base_of_third(word) in _BASE and after in _OBJECT


def _base_of_third(word: str) -> str:
    """The base form of "writes", "carries", "teaches"."""
    if word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes", "zzes", "oes")) else word[:-1]
